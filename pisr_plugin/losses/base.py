"""The base of all distillation losses: it checks what a loss is given and sets precision, weight and reduction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pisr_plugin.utils.checks import check_choice

REDUCTIONS = ('none', 'mean', 'sum')


class FeatureLoss(nn.Module):
    """Base of losses between the student's estimate and the teacher's feature.

    A subclass implements :meth:`compare`. Three class attributes say what it compares.

    Attributes:
        requires_4d: Both features must be (N, C, H, W). Otherwise any shape is accepted.
        allow_channel_mismatch: The two features may have different numbers of channels.
        requires_scale: The estimate is a pair (location, scale), which the estimator ``LocationScale`` returns.
            Otherwise it is one tensor. :func:`pisr_plugin.distill.links.build_links` reads this to fit the estimator.

    Args:
        loss_weight: Factor on the result.
        reduction: How a map of losses becomes the result: ``'none'`` | ``'mean'`` | ``'sum'``. A subclass whose
            :meth:`compare` returns a scalar leaves it at ``'mean'``.

    Raises:
        ValueError: ``reduction`` is unknown (when built); the shapes do not fit (when called).
        TypeError: the estimate is of the wrong kind (when called).
    """

    requires_4d = False
    allow_channel_mismatch = False
    requires_scale = False

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean') -> None:
        super().__init__()
        check_choice('reduction', reduction, REDUCTIONS)
        self.loss_weight, self.reduction = loss_weight, reduction

    def compare(self, estimate: Any, target: Tensor) -> Tensor:
        """Returns the unweighted loss, a scalar or a map that :attr:`reduction` is applied to.

        Args:
            estimate: One tensor, or (location, scale) with ``requires_scale``; float32 or float64.
            target: The teacher's feature, without gradient, of the same dtype.
        """
        raise NotImplementedError

    def forward(self, estimate: Tensor | tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        location = self._check(estimate, target)
        dtype = torch.promote_types(location.dtype, torch.float32)
        lifted = estimate.to(dtype) if isinstance(estimate, Tensor) else tuple(x.to(dtype) for x in estimate)
        # Autocast would compute the matrix products of some losses in half precision again.
        with torch.autocast(location.device.type, enabled=False):
            value = self.compare(lifted, target.detach().to(dtype))
            return self.loss_weight * (_reduce(value, self.reduction) if value.ndim else value)

    def _check(self, estimate: object, target: Tensor) -> Tensor:
        """Raises unless estimate and target fit; returns the estimate, or its location."""
        name = type(self).__name__
        if self.requires_scale:
            if not isinstance(estimate, (tuple, list)) or len(estimate) != 2:
                raise TypeError(
                    f'{name}: the estimate is {_describe(estimate)}. Expected a pair (location, scale), '
                    'which the estimator LocationScale returns.'
                )
            location = estimate[0]
        elif isinstance(estimate, Tensor):
            location = estimate
        else:
            raise TypeError(
                f'{name}: the estimate is {_describe(estimate)}. Expected one tensor. '
                'Use the estimator Adapter, or none.'
            )
        left, right = list(location.shape), list(target.shape)
        fits = not self.requires_4d or len(left) == len(right) == 4
        if self.allow_channel_mismatch:
            fits = fits and left[:1] + left[2:] == right[:1] + right[2:]
        else:
            fits = fits and left == right
        if not fits:
            expected = 'both (N, C, H, W), ' if self.requires_4d else ''
            expected += (
                'equal in all but C.'
                if self.allow_channel_mismatch
                else 'equal shapes. The estimator Adapter changes the number of channels.'
            )
            raise ValueError(
                f'{name}: the estimate has shape {tuple(left)}, the target {tuple(right)}. Expected {expected}'
            )
        if self.requires_scale:
            _check_scale(name, estimate[1], target)
        return location


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    """Returns the map ``loss`` itself, its mean or its sum over all elements."""
    return loss if reduction == 'none' else getattr(loss, reduction)()


def _check_scale(name: str, scale: Tensor, target: Tensor) -> None:
    fits = scale.ndim == target.ndim and all(
        size == whole or (size == 1 and axis > 0)
        for axis, (size, whole) in enumerate(zip(scale.shape, target.shape, strict=True))
    )
    if not fits:
        raise ValueError(
            f'{name}: the scale has shape {tuple(scale.shape)}, the target {tuple(target.shape)}. '
            'Expected equal sizes, or 1 from the channels on.'
        )


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f'one tensor of shape {tuple(value.shape)}'
    if isinstance(value, (tuple, list)):
        return f'a {type(value).__name__} of {len(value)}'
    return f'of type {type(value).__name__}'
