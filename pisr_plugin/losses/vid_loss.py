"""Variational information distillation (VID): how likely the teacher's feature is under the student's estimate.

Variational Information Distillation for Knowledge Transfer (CVPR 2019), with the Laplace distribution of Learning with
Privileged Information for Efficient Image SR (ECCV 2020, Eq. 10) and with the Gaussian of its Table 1. The defaults
give the numbers of the PISR authors' code; see VIDLaplaceLoss for the paper's plain form.
"""

from __future__ import annotations

import math

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn

from .reduction import check_reduction, reduce

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def vid_laplace_nll(
    location: torch.Tensor,
    scale: torch.Tensor,
    target: torch.Tensor,
    *,
    scale_factor: float = 0.1,
    eps: float = 1e-8,
    official_constant: bool = True,
    reduction: str = 'mean',
) -> torch.Tensor:
    """Negative log-likelihood of ``target`` under Laplace distributions; see :class:`VIDLaplaceLoss`."""
    location, scale, target = _checked(location, scale, target)
    constant = target.shape[1] * HALF_LOG_2PI + math.log(2) if official_constant else 0.0
    if reduction == 'mean' and scale.shape == location.shape and not torch.compiler.is_compiling():
        return _MeanLaplace.apply(location, scale, target, scale_factor, eps) + constant
    b = scale_factor * scale + eps
    return reduce(torch.log(b) + (target - location).abs() / b + constant, reduction)


class _MeanLaplace(torch.autograd.Function):
    """The mean of ``log b + |target - location| / b``, ``b = scale_factor * scale + eps``; its gradient in closed form.

    Written out step by step, autograd keeps and walks through twice as many maps; in a compiled graph it does not.
    """

    @staticmethod
    def forward(ctx, location, scale, target, scale_factor, eps):
        b = scale.mul(scale_factor).add_(eps)
        inverse = b.reciprocal()
        residual = location - target
        ratio = residual.abs().mul_(inverse)
        loss = b.log_().add_(ratio).mean()
        # d/dlocation = sign(residual) / b, d/dscale = k (1 - |residual| / b) / b, over the number of elements
        ctx.save_for_backward(residual.sign_().mul_(inverse), ratio.neg_().add_(1).mul_(inverse))
        ctx.scale_factor = scale_factor
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        by_location, by_scale = ctx.saved_tensors
        grad = grad / by_location.numel()
        return by_location * grad, by_scale * (grad * ctx.scale_factor), None, None, None


def vid_gaussian_nll(
    location: torch.Tensor,
    scale: torch.Tensor,
    target: torch.Tensor,
    *,
    scale_factor: float = 0.001,
    eps: float = 1e-8,
    official_constant: bool = True,
    reduction: str = 'mean',
) -> torch.Tensor:
    """Negative log-likelihood of ``target`` under Gaussian distributions; see :class:`VIDGaussianLoss`."""
    location, scale, target = _checked(location, scale, target)
    v = scale_factor * scale + eps
    loss = 0.5 * (torch.log(v) + (target - location) ** 2 / v)
    if official_constant:
        loss = loss + target.shape[1] * HALF_LOG_2PI
    return reduce(loss, reduction)


class _VIDLoss(nn.Module):
    """What both distributions share: arguments, the (location, scale) pair, the weight."""

    nll = None

    def __init__(
        self,
        loss_weight: float,
        scale_factor: float,
        eps: float,
        official_constant: bool,
        reduction: str,
    ) -> None:
        super().__init__()
        if not scale_factor > 0:
            raise ValueError(f'scale_factor: found {scale_factor!r}, possible: a positive number')
        if not eps >= 0:
            raise ValueError(f'eps: found {eps!r}, possible: 0 or a positive number')
        check_reduction(reduction)
        self.loss_weight = loss_weight
        self.options = {
            'scale_factor': scale_factor,
            'eps': eps,
            'official_constant': official_constant,
            'reduction': reduction,
        }

    def forward(self, pred: tuple[torch.Tensor, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        if not isinstance(pred, (tuple, list)) or len(pred) != 2:
            raise TypeError(
                f'{type(self).__name__}: pred is {_describe(pred)}, needed is a pair (location, scale), '
                'which the estimator LocationScale gives'
            )
        location, scale = pred
        return self.loss_weight * type(self).nll(location, scale, target, **self.options)


@LOSS_REGISTRY.register()
class VIDLaplaceLoss(_VIDLoss):
    r"""Laplace negative log-likelihood of a teacher's feature under the student's estimate.

    .. math:: b = k \cdot \mathrm{scale} + \epsilon, \qquad
              \ell = \log b + |f - \mu| / b \; [\, + \tfrac{C}{2} \log 2\pi + \log 2 \,]

    for the target :math:`f` with C channels, averaged over all elements. For a fixed location it is smallest at
    :math:`b = |f - \mu|`; with :math:`b = 1` it is the MAE plus the constant.

    ``scale_factor=1, eps=0, official_constant=False`` is Eq. 10 of the paper. The defaults are the authors' code:
    its factor 0.1 shrinks the initial scale (about 0.69) to the size of the residuals, its eps keeps the quotient
    finite, its bracketed constant (52.15 at 56 channels) moves the value only, never the gradient.

    .. code-block:: yaml

        loss: {type: VIDLaplaceLoss, loss_weight: 1e-6}

    Args:
        loss_weight: Factor on the result. The paper uses 1e-6.
        scale_factor: Factor k on the scale map.
        eps: Added to the scaled map.
        official_constant: Whether to add the bracketed constant.
        reduction: ``'none'`` | ``'mean'`` | ``'sum'``.

    Shape:
        pred: a pair of location (N, C, ...) and positive scale with each size after N equal to the location's or 1;
        target: (N, C, ...), through which no gradient flows; output: scalar, or the target's shape for ``'none'``.
        Half-precision features are lifted to float32, where eps can be represented.

    Raises:
        ValueError: An argument is out of its range (when built); shapes do not fit (when called).
        TypeError: ``pred`` is no pair (when called).
    """

    nll = staticmethod(vid_laplace_nll)

    def __init__(
        self,
        loss_weight: float = 1.0,
        scale_factor: float = 0.1,
        eps: float = 1e-8,
        official_constant: bool = True,
        reduction: str = 'mean',
    ) -> None:
        super().__init__(loss_weight, scale_factor, eps, official_constant, reduction)


@LOSS_REGISTRY.register()
class VIDGaussianLoss(_VIDLoss):
    r"""Gaussian negative log-likelihood of a teacher's feature under the student's estimate.

    .. math:: v = k \cdot \mathrm{scale} + \epsilon, \qquad
              \ell = \tfrac12 \log v + (f - \mu)^2 / (2 v) \; [\, + \tfrac{C}{2} \log 2\pi \,]

    for the target :math:`f` with C channels, averaged over all elements. For a fixed location it is smallest at
    :math:`v = (f - \mu)^2`; with :math:`v = 1` it is half the MSE plus the constant. The paper gives no formula; the
    defaults are the authors' code, where k = 0.001.

    .. code-block:: yaml

        loss: {type: VIDGaussianLoss, loss_weight: 1e-6}

    Args:
        loss_weight: Factor on the result. The paper uses 1e-6.
        scale_factor: Factor k on the scale map, which here is a variance.
        eps: Added to the scaled map.
        official_constant: Whether to add the bracketed constant.
        reduction: ``'none'`` | ``'mean'`` | ``'sum'``.

    Shape, raises:
        As VIDLaplaceLoss.
    """

    nll = staticmethod(vid_gaussian_nll)

    def __init__(
        self,
        loss_weight: float = 1.0,
        scale_factor: float = 0.001,
        eps: float = 1e-8,
        official_constant: bool = True,
        reduction: str = 'mean',
    ) -> None:
        super().__init__(loss_weight, scale_factor, eps, official_constant, reduction)


def _checked(
    location: torch.Tensor, scale: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if location.shape != target.shape:
        raise ValueError(f'location has shape {tuple(location.shape)}, target {tuple(target.shape)}; must be equal')
    fits = scale.ndim == target.ndim and all(
        size == whole or (size == 1 and axis > 0)
        for axis, (size, whole) in enumerate(zip(scale.shape, target.shape, strict=True))
    )
    if not fits:
        raise ValueError(
            f'scale has shape {tuple(scale.shape)}, target {tuple(target.shape)}; '
            'each size must be equal, or 1 from the channels on'
        )
    dtype = torch.promote_types(location.dtype, torch.float32)
    return location.to(dtype), scale.to(dtype), target.detach().to(dtype)


def _describe(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f'one tensor of shape {tuple(value.shape)}'
    if isinstance(value, (tuple, list)):
        return f'a {type(value).__name__} of {len(value)}'
    return f'of type {type(value).__name__}'
