"""One training step: from a batch to updated weights, in the precision and manner that the options ask for."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pisr_plugin.archs.network_info import split_output
from pisr_plugin.distill.links import Link
from pisr_plugin.distill.taps import TapReader
from pisr_plugin.models.gan import GANStep
from pisr_plugin.models.optim import OptimizerStep, sync_gradients, to_float32
from pisr_plugin.utils.errors import OptionsError, first_line

DTYPES: dict[str | None, torch.dtype] = {'bf16': torch.bfloat16, 'fp16': torch.float16}
Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class StepOptions:
    """How a step is computed: the keys of ``train`` with these names.

    Attributes:
        amp: Autocast of trained network, estimators, teacher and discriminator to ``bf16`` or ``fp16`` (with loss
            scaling). Weights, losses and the update stay in float32.
        amp_teacher: Precision of the frozen teacher's weights and features, ``bf16`` or ``fp16``; faster than autocast.
        channels_last: Memory layout of images, features and weights. None: channels_last on a CPU and with ``amp``.
        compile: Whether ``torch.compile`` is used for the teacher, the forward pass and the losses, without the
            discriminator's. None: on a GPU, for PReLU's gradient alone.
        cuda_graph: Whether the whole step, update and schedule included, is recorded once and replayed as one launch.
            None: on a GPU, where the step can be recorded and runs no code of other packages.
        grad_clip: Largest L2 norm of all gradients together, above 0; the discriminator's are clipped by themselves.
            None: no clipping.
        accumulate: Number of parts in which a batch is computed, to save memory; must divide the batch size.
        on_nan: ``stop`` ends the run when a loss is not finite. ``skip`` leaves out, and counts, each update whose
            gradient is not finite; a discriminator's update is one of its own.

    Raises:
        OptionsError: a value is out of its range.
    """

    amp: Literal['bf16', 'fp16'] | None = None
    amp_teacher: Literal['bf16', 'fp16'] | None = None
    channels_last: bool | None = None
    compile: bool | None = None
    cuda_graph: bool | None = None
    grad_clip: float | None = None
    accumulate: int = 1
    on_nan: Literal['stop', 'skip'] = 'stop'

    def __post_init__(self) -> None:
        checks = {
            'amp': (self.amp is None or self.amp in DTYPES, 'bf16, fp16 or nothing'),
            'amp_teacher': (self.amp_teacher is None or self.amp_teacher in DTYPES, 'bf16, fp16 or nothing'),
            'grad_clip': (self.grad_clip is None or 0 < self.grad_clip < math.inf, 'a number above 0, or nothing'),
            'accumulate': (isinstance(self.accumulate, int) and self.accumulate >= 1, 'a whole number from 1 on'),
            'on_nan': (self.on_nan in ('stop', 'skip'), 'stop or skip'),
        }
        for name, (fits, expected) in checks.items():
            if not fits:
                raise OptionsError(f'train.{name}: out of range (found {getattr(self, name)!r}). Expected {expected}.')

    @classmethod
    def of(cls, train_opt: Mapping) -> StepOptions:
        """Takes the keys that concern the step from ``train``."""
        return cls(**{field.name: train_opt[field.name] for field in fields(cls) if field.name in train_opt})

    def memory_format(self, device: torch.device) -> torch.memory_format:
        """Returns the layout of images and weights on ``device``."""
        wanted = self.channels_last
        if wanted is None:
            wanted = device.type == 'cpu' or self.amp is not None
        return torch.channels_last if wanted else torch.contiguous_format


class TrainingLosses(nn.Module):
    """The trained network's losses on a batch, without side effects, so that it can be compiled.

    Args:
        linked: The trained network with the estimators on its taps; may be wrapped by DistributedDataParallel.
        links: Comparisons with a teacher.
        inputs: What the network sees of a batch: ``lq``, ``gt`` or both.
        cri_pix: Loss between reconstruction and gt, or None.
        cri_imitation: Loss between compact feature and lq, or None.
        autocast: Lower precision of the forward pass, or None. Losses are computed in float32.
        cri_perceptual: BasicSR's ``PerceptualLoss`` or one that is called alike: from reconstruction and gt to a
            perceptual and a style loss, either of which may be None; or None.
        return_sr: Whether the reconstruction is returned too.
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
        return_sr: bool = False,
    ) -> None:
        super().__init__()
        self.linked, self.links, self.inputs = linked, list(links), tuple(inputs)
        self.cri_pix, self.cri_imitation, self.cri_perceptual = cri_pix, cri_imitation, cri_perceptual
        self.autocast, self.return_sr = autocast, return_sr

    def forward(
        self, batch: Batch, features: Mapping[str, Tensor], active: Sequence[bool]
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Returns the losses by name, and with ``return_sr`` the reconstruction (N, C, H, W).

        Args:
            batch: ``lq`` and ``gt``.
            features: The teacher's features by tap.
            active: Whether each link counts in this iteration.
        """
        output, estimates = self._run(batch)
        sr, compact = split_output(output)
        sr = to_float32(sr)
        losses = {}
        if self.cri_pix:
            losses['l_pix'] = self.cri_pix(sr, batch['gt'])
        if self.cri_perceptual:
            found = zip(('l_percep', 'l_style'), self.cri_perceptual(sr, batch['gt']))
            losses.update((name, value) for name, value in found if value is not None)
        if self.cri_imitation:
            losses['l_imitation'] = self.cri_imitation(to_float32(compact), batch['lq'])
        for link, counts in zip(self.links, active):
            losses[f'l_distill_{link.name}'] = link(
                to_float32(estimates[link.name]), to_float32(features[link.teacher]), counts
            )
        return losses, sr if self.return_sr else None

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Tensor:
        """Returns the reconstruction (N, C, H, W) alone, without gradients."""
        return to_float32(split_output(self._run(batch)[0])[0])

    def _run(self, batch: Batch) -> tuple[object, dict]:
        images = [batch[name] for name in self.inputs]
        if self.autocast is None:
            return self.linked(*images)
        with torch.autocast(images[0].device.type, self.autocast):
            return self.linked(*images)


class TeacherFeatures:
    """Computes the frozen teacher's features without gradients, and no layer behind the last tap.

    Args:
        teacher: The teacher in evaluation mode, without gradients.
        taps: Taps to read.
        inputs: What the teacher sees of a batch: ``lq``, ``gt`` or both.
        dtype: Precision that the teacher's weights and images are converted to, or None.
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
        """Returns ``{tap: feature}``."""
        images = [batch[name].to(self.dtype) if self.dtype else batch[name] for name in self.inputs]
        if self.autocast is None or self.dtype:
            return self._read(images)
        with torch.autocast(images[0].device.type, self.autocast):
            return self._read(images)

    def _read(self, images: Sequence[Tensor]) -> dict[str, Tensor]:
        if not torch.compiler.is_compiling():
            return self.reader.read(*images)
        with self.reader.reading() as features:  # the compiler itself leaves out what no tap needs
            self.teacher(*images)
        return dict(features)


class Compiled:
    """Calls a function compiled by ``torch.compile``, or as it is once the first call has shown that this fails.

    Args:
        function: Function or module.
        warn: Called with one line when it cannot be compiled.
    """

    def __init__(self, function: Callable, warn: Callable[[str], None]) -> None:
        self.function, self.warn = function, warn
        self._run: Callable = torch.compile(function)
        self._proven = False

    def __call__(self, *arguments: Any) -> Any:
        if self._proven:
            return self._run(*arguments)
        try:
            found = self._run(*arguments)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            self.warn(f'train.compile: this network cannot be compiled here, so it runs as it is: {first_line(error)}')
            self._run = self.function
            found = self._run(*arguments)
        self._proven = True
        return found


class TrainingStep:
    """Computes the losses of a batch and updates the weights. It reads nothing back from the device.

    Args:
        training_losses: From batch, teacher's features and active links to losses; with a GAN also to the
            reconstruction.
        teacher_features: From a batch to the teacher's features; None without a teacher.
        optimizer_step: Updates the trained parameters.
        options: How the step is computed.
        gan_step: The discriminator's part, or None.
        after: Called after each update, e.g. to average the weights; or None.
        warn: Called with one line when a requested speed-up is not possible.

    Attributes:
        gather: From ``indices`` to ``lq`` and ``gt``, where batches hold only indices; else None.
    """

    gather: Callable[[Tensor], Batch] | None = None

    def __init__(
        self,
        training_losses: TrainingLosses,
        teacher_features: Callable[[Batch], dict[str, Tensor]] | None,
        optimizer_step: OptimizerStep,
        options: StepOptions,
        gan_step: GANStep | None = None,
        after: Callable[[], None] | None = None,
        warn: Callable[[str], None] = print,
    ) -> None:
        self.training_losses, self.teacher_features = training_losses, teacher_features
        self.optimizer_step, self.options, self.gan_step = optimizer_step, options, gan_step
        self.after = after
        self._losses: Callable = training_losses
        self._features: Callable | None = teacher_features
        if options.compile:
            self._losses = Compiled(training_losses, warn)
            self._features = Compiled(teacher_features, warn) if teacher_features else None

    def __call__(self, batch: Batch, active: Sequence[bool], updates_generator: bool = True) -> dict[str, Tensor]:
        """Makes one step.

        Args:
            batch: ``lq`` and ``gt`` on the device, or ``indices`` for :attr:`gather`.
            active: Whether each link counts in this iteration.
            updates_generator: Whether the trained network is updated; if not, the discriminator alone is.

        Returns:
            The losses by name, means over the batch, on the device.
        """
        if self.gather:
            batch = self.gather(batch['indices'])
        parts = [batch] if self.options.accumulate == 1 else _split_batch(batch, self.options.accumulate)
        if updates_generator:
            losses, sr = self._update_generator(parts, active)
        else:
            losses, sr = {}, [self.training_losses.reconstruct(part) for part in parts]
        if self.gan_step:
            losses |= self.gan_step.update_discriminator([part['gt'] for part in parts], sr)
        if self.after:
            self.after()
        return losses

    def _update_generator(
        self, parts: Sequence[Batch], active: Sequence[bool]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Updates the trained network; returns its losses, and with a GAN the reconstruction of each part."""
        self.optimizer_step.zero_grad()
        count = len(parts)
        done: list[tuple[dict[str, Tensor], Tensor, Tensor | None]] = []
        for part in parts:
            with sync_gradients(self.training_losses.linked, now=len(done) == count - 1):
                done.append(self._backward(part, active, count))
        losses, total, _ = done[0]
        if count > 1:
            losses = {
                name: functools.reduce(torch.add, [found[name] for found, _, _ in done]) / count for name in losses
            }
            total = functools.reduce(torch.add, [total for _, total, _ in done]) / count
        self.optimizer_step(total)
        return losses, [sr for _, _, sr in done if sr is not None]

    def _backward(
        self, batch: Batch, active: Sequence[bool], count: int
    ) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """Adds the gradients of one of ``count`` parts; returns its losses, their sum and the reconstruction."""
        features = self._features(batch) if self._features else {}
        losses, sr = self._losses(batch, features, active)
        if self.gan_step:
            assert sr is not None  # a GAN needs ``return_sr``
            losses['l_gan'] = self.gan_step.loss(sr)
            sr = sr.detach()
        total = functools.reduce(torch.add, losses.values())
        self.optimizer_step.backward(total if count == 1 else total / count)
        return {name: value.detach() for name, value in losses.items()}, total.detach(), sr


def _split_batch(batch: Batch, parts: int) -> list[Batch]:
    chunks = {name: value.chunk(parts) for name, value in batch.items()}
    return [{name: values[i] for name, values in chunks.items()} for i in range(parts)]
