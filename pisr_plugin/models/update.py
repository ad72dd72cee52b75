"""How gradients move weights: scaled, exchanged between ranks, clipped, left out when they are not finite."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


class Update:
    """Moves the parameters of one optimizer. Nothing is read back from the device.

    Args:
        optimizer: Of the parameters.
        clip: Largest L2 norm of their gradients together; None: any.
        skip: Leave out, and count, an update whose gradient is not finite.
        scale: Scale losses, for gradients in fp16.

    Attributes:
        parameters: What is moved.
        scaler: Loss scaling, or None.
        skipped: On the device: how many updates were left out.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, clip: float | None = None, skip: bool = False, scale: bool = False
    ) -> None:
        self.optimizer, self.clip, self.skip = optimizer, clip, skip
        self.parameters = [p for group in optimizer.param_groups for p in group['params']]
        device = self.parameters[0].device
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._sum = torch.zeros((), device=device)  # of all losses so far; once not finite it stays so
        self.scaler = torch.amp.GradScaler(device.type) if scale else None

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss."""
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def __call__(self, total: Tensor) -> None:
        """Moves the parameters by the gradients of all losses since :meth:`zero_grad`, whose sum is ``total``."""
        if (self.clip or self.skip) and self.scaler:
            self.scaler.unscale_(self.optimizer)
        if self.clip or self.skip:
            norm = nn.utils.clip_grad_norm_(self.parameters, self.clip or float('inf'))
        if self.skip:
            bad = norm.isfinite().logical_not()
            self.skipped.add_(bad)
        else:
            self._sum.add_(total)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif self.skip:
            self._step_unless(bad)
        else:
            self.optimizer.step()

    @property
    def nonfinite(self) -> Tensor:
        """On the device: with ``skip`` the number of updates left out; else 1 once any loss was not finite."""
        return self.skipped if self.skip else self._sum.isfinite().logical_not().long()

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


def exchanging(net: nn.Module, now: bool) -> AbstractContextManager:
    """Under DDP, gradients of what runs within are exchanged between ranks ``now``, or with the next that are."""
    return nullcontext() if now or not hasattr(net, 'no_sync') else net.no_sync()


def lift(value):
    """Lifts half-precision tensors, alone or in a tuple, to float32."""
    if isinstance(value, tuple):
        return tuple(map(lift, value))
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
