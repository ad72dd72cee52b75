"""From gradients to updated weights: loss scaling, exchange between ranks, clipping, updates left out on NaN."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class OptimizerStep:
    """Updates the parameters of one optimizer. It reads nothing back from the device.

    Args:
        optimizer: Optimizer of the parameters.
        clip: Largest L2 norm of all gradients together, above 0; None: no clipping.
        skip: Whether to leave out, and count, an update whose gradient is not finite.
        scale: Whether to scale losses, for gradients in fp16.

    Attributes:
        parameters: The parameters that are updated.
        scaler: Loss scaling, or None.
        skipped: Number of updates left out, a tensor on the device.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, clip: float | None = None, skip: bool = False, scale: bool = False
    ) -> None:
        self.optimizer, self.clip, self.skip = optimizer, clip, skip
        self.parameters = [p for group in optimizer.param_groups for p in group['params']]
        device = self.parameters[0].device
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._sum = torch.zeros((), device=device)  # of all losses; it stays NaN or inf once a loss was
        self.scaler = torch.amp.GradScaler(device.type) if scale else None

    def zero_grad(self) -> None:
        """Deletes the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss to those of the parameters."""
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def __call__(self, total: Tensor) -> None:
        """Updates the parameters by the gradients since :meth:`zero_grad`.

        Args:
            total: Sum of the losses that gave the gradients.
        """
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

    def restart_scaling(self) -> None:
        """Lets the next step begin after one that failed between its first gradient and its update."""
        if self.scaler:
            state, device = self.scaler.state_dict(), self.parameters[0].device
            self.scaler = torch.amp.GradScaler(device.type)
            self.scaler.load_state_dict(state)

    @property
    def nonfinite(self) -> Tensor:
        """With ``skip`` the number of updates left out; else 1 once any loss was not finite. A tensor on the device."""
        return self.skipped if self.skip else self._sum.isfinite().logical_not().long()

    def _step_unless(self, bad: Tensor) -> None:
        """Updates the weights unless ``bad``; a fused optimizer looks at ``bad`` itself, on the device."""
        optimizer: Any = self.optimizer  # the types of torch lack both attributes that are set below
        if not getattr(optimizer, '_step_supports_amp_scaling', False):
            if not bad:
                optimizer.step()
            return
        optimizer.grad_scale, optimizer.found_inf = None, bad.float()
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf


def sync_gradients(net: nn.Module, now: bool) -> AbstractContextManager:
    """Under DDP, exchanges the gradients computed inside the block between ranks, or leaves them for a later block.

    Args:
        net: The network, wrapped by DistributedDataParallel or not.
        now: Whether to exchange them at the end of this block.
    """
    return net.no_sync() if isinstance(net, DistributedDataParallel) and not now else nullcontext()


def to_float32(value):
    """Converts half-precision tensors, alone or in a tuple, to float32."""
    if isinstance(value, tuple):
        return tuple(map(to_float32, value))
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
