"""One training step, from a batch to moved weights, in the precision and manner that the options ask for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from pisr_plugin.distill.links import Link
from pisr_plugin.distill.taps import TapReader

DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}
Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class StepOptions:
    """How a step is computed; the keys of ``train`` that bear these names.

    Attributes:
        amp: Trained network, estimators and teacher under autocast to ``bf16`` or ``fp16`` (with loss scaling).
            Weights, losses and the update stay in float32.
        amp_teacher: The frozen teacher's weights and features in ``bf16`` or ``fp16``: faster than autocast.
        channels_last: Memory layout of images, features and weights. None: on a CPU, and where ``amp`` is on.
        compile: Forward pass and losses through ``torch.compile``.
        cuda_graph: The whole step, update and schedule included, recorded once and replayed as one launch.
        grad_clip: Largest L2 norm of all gradients together; None: any.
        accumulate: Parts in which a batch is computed, to save memory; must divide the batch size.
        on_nan: ``stop``: the run ends when a loss is found not to be finite. ``skip``: a step whose gradient is not
            finite changes no weight and is counted.
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
    """

    def __init__(
        self,
        linked: nn.Module,
        links: Sequence[Link],
        inputs: Sequence[str],
        cri_pix: nn.Module | None,
        cri_imitation: nn.Module | None,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.linked, self.links, self.inputs = linked, list(links), tuple(inputs)
        self.cri_pix, self.cri_imitation = cri_pix, cri_imitation
        self.autocast = autocast

    def forward(self, batch: Batch, targets: Mapping[str, Tensor], active: Sequence[bool]) -> dict[str, Tensor]:
        """Returns the losses by name.

        Args:
            batch: ``lq`` and ``gt``.
            targets: The teacher's features by tap.
            active: Whether each link counts now.
        """
        images = [batch[name] for name in self.inputs]
        if self.autocast is None:
            output, estimates = self.linked(*images)
        else:
            with torch.autocast(images[0].device.type, self.autocast):
                output, estimates = self.linked(*images)
        sr, compact = split_output(output)
        losses = {}
        if self.cri_pix:
            losses['l_pix'] = self.cri_pix(_lift(sr), batch['gt'])
        if self.cri_imitation:
            losses['l_imitation'] = self.cri_imitation(_lift(compact), batch['lq'])
        for link, counts in zip(self.links, active):
            losses[f'l_distill_{link.name}'] = link(_lift(estimates[link.name]), _lift(targets[link.teacher]), counts)
        return losses


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
        objective: From batch, targets and active links to losses.
        targets: From a batch to the teacher's features; None without a teacher.
        optimizer: Of the trained parameters.
        options: How.
        after: Called after the weights have moved, e.g. to average them.
        warn: Told in one line when a speed-up is not to be had.

    Attributes:
        scaler: Loss scaling for fp16, else None.
    """

    def __init__(
        self,
        objective: Objective,
        targets: Targets | None,
        optimizer: torch.optim.Optimizer,
        options: StepOptions,
        after: Callable[[], None] | None = None,
        warn: Callable[[str], None] = print,
    ) -> None:
        self.objective, self.targets, self.optimizer, self.options = objective, targets, optimizer, options
        self.after, self.warn = after, warn
        self.parameters = [p for group in optimizer.param_groups for p in group['params']]
        device = self.parameters[0].device
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._sum = torch.zeros((), device=device)  # of all losses so far; once not finite it stays so
        self.scaler = torch.amp.GradScaler(device.type) if options.amp == 'fp16' else None
        self.losses_of = torch.compile(objective) if options.compile else objective
        self._trusted = not options.compile

    def __call__(self, batch: Batch, active: Sequence[bool]) -> dict[str, Tensor]:
        """Makes one step.

        Args:
            batch: ``lq`` and ``gt`` on the device.
            active: Whether each link counts now.

        Returns:
            The losses by name, means over the batch, on the device.
        """
        self.optimizer.zero_grad(set_to_none=True)
        whole = self.options.accumulate == 1
        losses, total = self._backward(batch, active) if whole else self._accumulate(batch, active)
        self._update(total)
        if self.after:
            self.after()
        return losses

    def _backward(self, batch: Batch, active: Sequence[bool], share: float = 1) -> tuple[dict[str, Tensor], Tensor]:
        """Adds a batch's gradients, times ``share``; returns its losses and their sum."""
        losses = self._losses(batch, self.targets(batch) if self.targets else {}, active)
        total = functools.reduce(torch.add, losses.values())
        scaled = total if share == 1 else total * share
        (self.scaler.scale(scaled) if self.scaler else scaled).backward()
        return {name: value.detach() for name, value in losses.items()}, total.detach()

    def _accumulate(self, batch: Batch, active: Sequence[bool]) -> tuple[dict[str, Tensor], Tensor]:
        """As :meth:`_backward`, part by part; under DDP gradients are exchanged with the last part only."""
        parts = self.options.accumulate
        done = []
        for part in _split_batch(batch, parts):
            local = len(done) < parts - 1 and hasattr(self.objective.linked, 'no_sync')
            with self.objective.linked.no_sync() if local else nullcontext():
                done.append(self._backward(part, active, 1 / parts))
        losses = {name: sum(found[name] for found, _ in done) / parts for name in done[0][0]}
        return losses, sum(total for _, total in done) / parts

    @property
    def nonfinite(self) -> Tensor:
        """On the device: with ``on_nan: skip`` the number of steps left out; else 1 once any loss was not finite."""
        return self._skipped if self.options.on_nan == 'skip' else self._sum.isfinite().logical_not().long()

    def _losses(self, batch: Batch, targets: Mapping[str, Tensor], active: Sequence[bool]) -> dict[str, Tensor]:
        if self._trusted:
            return self.losses_of(batch, targets, active)
        try:
            losses = self.losses_of(batch, targets, active)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            self.warn(f'train.compile: this network cannot be compiled here, going on without: {_first_line(error)}')
            self.losses_of = self.objective
            losses = self.objective(batch, targets, active)
        self._trusted = True
        return losses

    def _update(self, total: Tensor) -> None:
        clip, skip = self.options.grad_clip, self.options.on_nan == 'skip'
        if (clip or skip) and self.scaler:
            self.scaler.unscale_(self.optimizer)
        if clip or skip:
            norm = nn.utils.clip_grad_norm_(self.parameters, clip or float('inf'))
        if skip:
            bad = norm.isfinite().logical_not()
            self._skipped.add_(bad)
        else:
            self._sum.add_(total)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif skip:
            self._step_unless(bad)
        else:
            self.optimizer.step()

    def _step_unless(self, bad: Tensor) -> None:
        """Moves the weights unless ``bad``, without reading it back where the optimizer can look at it itself."""
        optimizer = self.optimizer
        if not getattr(optimizer, '_step_supports_amp_scaling', False):
            if not bad:
                optimizer.step()
            return
        optimizer.grad_scale, optimizer.found_inf = None, bad.float()
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf


def build_optimizer(cls: type[torch.optim.Optimizer], params: list[Tensor], **options) -> torch.optim.Optimizer:
    """Builds an optimizer in its quickest form: fused where it can be, unless the options choose one."""
    if {'fused', 'foreach'} & options.keys() or 'fused' not in inspect.signature(cls).parameters:
        return cls(params, **options)
    try:
        return cls(params, fused=True, **options)
    except RuntimeError:  # not on this device, or not in this torch
        return cls(params, **options)


def split_output(output: object) -> tuple[Tensor, Tensor | None]:
    """Separates the reconstruction from the compact feature that a hourglass teacher returns beside it."""
    return output if isinstance(output, tuple) else (output, None)


def _split_batch(batch: Batch, parts: int) -> list[Batch]:
    chunks = {name: value.chunk(parts) for name, value in batch.items()}
    return [{name: values[i] for name, values in chunks.items()} for i in range(parts)]


def _lift(value):
    """Lifts half-precision tensors, alone or in a tuple, to float32."""
    if isinstance(value, tuple):
        return tuple(map(_lift, value))
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
