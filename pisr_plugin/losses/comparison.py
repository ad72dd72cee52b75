"""What the losses between one estimate and one target of the teacher share: checks, precision, weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Comparison(nn.Module):
    """Base of losses over a link that take a single tensor on either side.

    A subclass implements :meth:`compare` on what is known to fit. Attributes of the class say what fits:
    ``maps`` asks for (N, C, H, W) instead of any shape, ``any_channels`` lets the two C differ.

    Args:
        loss_weight: Factor on the result.
    """

    maps = False
    any_channels = False

    def __init__(self, loss_weight: float) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def compare(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Returns the unweighted scalar; both arguments are float32 or float64, the target has no gradient."""
        raise NotImplementedError

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        self._check(estimate, target)
        dtype = torch.promote_types(estimate.dtype, torch.float32)
        # Autocast would send the products of some losses back to half precision.
        with torch.autocast(estimate.device.type, enabled=False):
            return self.loss_weight * self.compare(estimate.to(dtype), target.detach().to(dtype))

    def _check(self, estimate: object, target: Tensor) -> None:
        name = type(self).__name__
        if not isinstance(estimate, Tensor):
            raise TypeError(
                f'{name}: the estimate is a {type(estimate).__name__}, needed is one tensor. '
                'Use the estimator Adapter, or none.'
            )
        left, right = list(estimate.shape), list(target.shape)
        fits = not self.maps or len(left) == len(right) == 4
        if self.any_channels:
            fits = fits and left[:1] + left[2:] == right[:1] + right[2:]
        else:
            fits = fits and left == right
        if not fits:
            needed = 'both must be (N, C, H, W) and ' if self.maps else 'they must be '
            needed += (
                'equal but for C.'
                if self.any_channels
                else 'equal. The estimator Adapter changes the number of channels.'
            )
            raise ValueError(f'{name}: the estimate has shape {tuple(left)}, the target {tuple(right)}; {needed}')


def check_choice(argument: str, value: object, possible: tuple[str, ...]) -> None:
    """Refuses a value that is none of ``possible``, so that a loss fails when it is built."""
    if value not in possible:
        raise ValueError(f'{argument}: found {value!r}, possible: {", ".join(possible)}')


def check_positive(argument: str, value: float) -> None:
    """Refuses a number that is not above 0, so that a loss fails when it is built."""
    if not value > 0:
        raise ValueError(f'{argument}: found {value!r}, possible: a number above 0')
