"""One training step, from a batch to moved weights, in the precision and manner that the options ask for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from pisr_plugin.distill.links import Link
from pisr_plugin.distill.taps import TapReader
from pisr_plugin.models.adversary import Adversary
from pisr_plugin.models.update import Update, exchanging, lift

DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}
Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class StepOptions:
    """How a step is computed; the keys of ``train`` that bear these names.

    Attributes:
        amp: Trained network, estimators, teacher and discriminator under autocast to ``bf16`` or ``fp16`` (with loss
            scaling). Weights, losses and the update stay in float32.
        amp_teacher: The frozen teacher's weights and features in ``bf16`` or ``fp16``: faster than autocast.
        channels_last: Memory layout of images, features and weights. None: on a CPU, and where ``amp`` is on.
        compile: Forward pass and losses through ``torch.compile``, but for the discriminator.
        cuda_graph: The whole step, update and schedule included, recorded once and replayed as one launch.
        grad_clip: Largest L2 norm of all gradients together, the discriminator's by themselves; None: any.
        accumulate: Parts in which a batch is computed, to save memory; must divide the batch size.
        on_nan: ``stop``: the run ends when a loss is found not to be finite. ``skip``: a step whose gradient is not
            finite changes no weight and is counted; a discriminator's step is one of its own.
    """

    amp: str | None = None
    amp_teacher: str | None = None
    channels_last: bool | None = None
    compile: bool = False
    cuda_graph: bool = False
    grad_clip: float | None = None
    accumulate: int = 1
    on_nan: str = 'stop'

    @classmethod
    def of(cls, train_opt: Mapping) -> StepOptions:
        """Takes from ``train`` what concerns the step."""
        return cls(**{field.name: train_opt[field.name] for field in fields(cls) if field.name in train_opt})

    def memory_format(self, device: torch.device) -> torch.memory_format:
        """The layout of images and weights on ``device``."""
        wanted = self.channels_last
        if wanted is None:
            wanted = device.type == 'cpu' or self.amp is not None
        return torch.channels_last if wanted else torch.contiguous_format


class Objective(nn.Module):
    """The trained network's losses on a batch; pure, so that it can be compiled.

    Args:
        linked: The trained network with the estimators on its taps; possibly wrapped for distributed training.
        links: The comparisons with a teacher.
        inputs: What the network sees of a batch.
        cri_pix: Loss between reconstruction and gt, or None.
        cri_imitation: Loss between compact feature and lq, or None.
        autocast: Lower precision of the forward pass, or None. Losses are computed in float32.
        cri_perceptual: Called with reconstruction and gt, returns a perceptual and a style loss, either may be None,
            as BasicSR's ``PerceptualLoss``; or None.
        shows: Whether the reconstruction is returned too.
    """

    def __init__(
        self,
        linked: nn.Module,
        links: Sequence[Link],
        inputs: Sequence[str],
        cri_pix: nn.Module | None,
        cri_imitation: nn.Module | None,
        autocast: torch.dtype | None = None,
        cri_perceptual: nn.Module | None = None,
        shows: bool = False,
    ) -> None:
        super().__init__()
        self.linked, self.links, self.inputs = linked, list(links), tuple(inputs)
        self.cri_pix, self.cri_imitation, self.cri_perceptual = cri_pix, cri_imitation, cri_perceptual
        self.autocast, self.shows = autocast, shows

    def forward(
        self, batch: Batch, targets: Mapping[str, Tensor], active: Sequence[bool]
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Returns the losses by name, and the reconstruction (N, C, H, W) if it is to be shown.

        Args:
            batch: ``lq`` and ``gt``.
            targets: The teacher's features by tap.
            active: Whether each link counts now.
        """
        output, estimates = self._run(batch)
        sr, compact = lift(split_output(output)[0]), split_output(output)[1]
        losses = {}
        if self.cri_pix:
            losses['l_pix'] = self.cri_pix(sr, batch['gt'])
        if self.cri_perceptual:
            found = zip(('l_percep', 'l_style'), self.cri_perceptual(sr, batch['gt']))
            losses.update((name, value) for name, value in found if value is not None)
        if self.cri_imitation:
            losses['l_imitation'] = self.cri_imitation(lift(compact), batch['lq'])
        for link, counts in zip(self.links, active):
            losses[f'l_distill_{link.name}'] = link(lift(estimates[link.name]), lift(targets[link.teacher]), counts)
        return losses, sr if self.shows else None

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Tensor:
        """The reconstruction alone, without graph."""
        return lift(split_output(self._run(batch)[0])[0])

    def _run(self, batch: Batch) -> tuple[object, dict]:
        images = [batch[name] for name in self.inputs]
        if self.autocast is None:
            return self.linked(*images)
        with torch.autocast(images[0].device.type, self.autocast):
            return self.linked(*images)


class Targets:
    """The frozen teacher's features: no graph, and no layer behind the last tap.

    Args:
        teacher: In eval mode, without gradients.
        taps: What is read.
        inputs: What the teacher sees of a batch.
        dtype: Precision of the teacher's weights and of the images it gets.
        autocast: Lower precision of its forward pass, or None.
    """

    def __init__(
        self,
        teacher: nn.Module,
        taps: Sequence[str],
        inputs: Sequence[str],
        dtype: torch.dtype | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.teacher = teacher.to(dtype) if dtype else teacher
        self.reader = TapReader(teacher, dict.fromkeys(taps)).attach()
        self.inputs, self.dtype, self.autocast = tuple(inputs), dtype, autocast

    @torch.no_grad()
    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        images = [batch[name].to(self.dtype) if self.dtype else batch[name] for name in self.inputs]
        if self.autocast is None or self.dtype:
            return self.reader.read(*images)
        with torch.autocast(images[0].device.type, self.autocast):
            return self.reader.read(*images)


class TrainingStep:
    """Computes the losses of a batch and moves the weights.

    Nothing is read back from the device.

    Args:
        objective: From batch, targets and active links to losses; with an adversary also to the reconstruction.
        targets: From a batch to the teacher's features; None without a teacher.
        update: Moves the trained parameters.
        options: How.
        adversary: A discriminator that judges reconstructions and learns beside the trained network, or None.
        after: Called after the weights have moved, e.g. to average them.
        warn: Told in one line when a speed-up is not to be had.
    """

    def __init__(
        self,
        objective: Objective,
        targets: Targets | None,
        update: Update,
        options: StepOptions,
        adversary: Adversary | None = None,
        after: Callable[[], None] | None = None,
        warn: Callable[[str], None] = print,
    ) -> None:
        self.objective, self.targets, self.update, self.options = objective, targets, update, options
        self.adversary, self.after, self.warn = adversary, after, warn
        self.losses_of = torch.compile(objective) if options.compile else objective
        self._trusted = not options.compile

    def __call__(self, batch: Batch, active: Sequence[bool], moves: bool = True) -> dict[str, Tensor]:
        """Makes one step.

        Args:
            batch: ``lq`` and ``gt`` on the device.
            active: Whether each link counts now.
            moves: Whether the trained network moves; if not, the adversary alone does.

        Returns:
            The losses by name, means over the batch, on the device.
        """
        parts = [batch] if self.options.accumulate == 1 else _split_batch(batch, self.options.accumulate)
        if moves:
            losses, shown = self._train(parts, active)
        else:
            losses, shown = {}, [self.objective.reconstruct(part) for part in parts]
        if self.adversary:
            losses |= self.adversary.learn([part['gt'] for part in parts], shown)
        if self.after:
            self.after()
        return losses

    def _train(self, parts: Sequence[Batch], active: Sequence[bool]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Moves the trained network; returns its losses on the batch, and its reconstructions of the parts."""
        self.update.zero_grad()
        count, done = len(parts), []
        for part in parts:
            with exchanging(self.objective.linked, now=len(done) == count - 1):
                done.append(self._backward(part, active, count))
        losses, total, _ = done[0]
        if count > 1:
            losses = {name: sum(found[name] for found, _, _ in done) / count for name in losses}
            total = sum(total for _, total, _ in done) / count
        self.update(total)
        return losses, [shown for _, _, shown in done]

    def _backward(
        self, batch: Batch, active: Sequence[bool], count: int
    ) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """Adds the gradients of one of ``count`` parts; returns its losses, their sum and the reconstruction."""
        losses, shown = self._losses(batch, self.targets(batch) if self.targets else {}, active)
        if self.adversary:
            losses['l_gan'] = self.adversary.loss(shown)
            shown = shown.detach()
        total = functools.reduce(torch.add, losses.values())
        self.update.backward(total if count == 1 else total / count)
        return {name: value.detach() for name, value in losses.items()}, total.detach(), shown

    def _losses(
        self, batch: Batch, targets: Mapping[str, Tensor], active: Sequence[bool]
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        if self._trusted:
            return self.losses_of(batch, targets, active)
        try:
            found = self.losses_of(batch, targets, active)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            self.warn(f'train.compile: this network cannot be compiled here, going on without: {_first_line(error)}')
            self.losses_of = self.objective
            found = self.objective(batch, targets, active)
        self._trusted = True
        return found


def split_output(output: object) -> tuple[Tensor, Tensor | None]:
    """Separates the reconstruction from the compact feature that a hourglass teacher returns beside it."""
    return output if isinstance(output, tuple) else (output, None)


def _split_batch(batch: Batch, parts: int) -> list[Batch]:
    chunks = {name: value.chunk(parts) for name, value in batch.items()}
    return [{name: values[i] for name, values in chunks.items()} for i in range(parts)]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
