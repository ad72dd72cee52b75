"""Variational information distillation (VID): how likely the teacher's feature is under the student's estimate.

Variational Information Distillation for Knowledge Transfer (CVPR 2019), with the Laplace distribution of Learning with
Privileged Information for Efficient Image SR (ECCV 2020, Eq. 10) and with the Gaussian of its Table 1. The defaults
give the numbers of the PISR authors' code; see VIDLaplaceLoss for the paper's plain form.
"""

from __future__ import annotations

import math

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from pisr_plugin.losses.base import FeatureLoss
from pisr_plugin.utils.checks import check_positive

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class _MeanLaplace(torch.autograd.Function):
    """Computes the mean of ``log b + |target - location| / b``, ``b = scale_factor * scale + eps``.

    Its gradient is written in closed form: autograd would keep twice as many maps. A compiled graph does not need it.
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


class _VIDLoss(FeatureLoss):
    """Base of both distributions."""

    requires_scale = True

    def __init__(
        self,
        loss_weight: float = 1.0,
        scale_factor: float = 0.1,
        eps: float = 1e-8,
        official_constant: bool = True,
        reduction: str = 'mean',
    ) -> None:
        super().__init__(loss_weight, reduction)
        check_positive('scale_factor', scale_factor)
        if not eps >= 0:
            raise ValueError(f'eps: out of range (found {eps!r}). Expected 0 or a positive number.')
        self.scale_factor, self.eps, self.official_constant = scale_factor, eps, official_constant


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
        estimate: a pair of location (N, C, ...) and positive scale with each size after N equal to the location's or
        1; target: (N, C, ...); output: scalar, or the target's shape for ``'none'``. No gradient reaches the target;
        half precision is lifted to float32, where eps can be represented.

    Raises:
        TypeError: the estimate is not a pair (when called).
        ValueError: an argument is out of its range (when built); shapes do not fit (when called).
    """

    def compare(self, estimate: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        location, scale = estimate
        constant = target.shape[1] * HALF_LOG_2PI + math.log(2) if self.official_constant else 0.0
        # a mean can be computed without keeping the map
        if self.reduction == 'mean' and scale.shape == location.shape and not torch.compiler.is_compiling():
            return _MeanLaplace.apply(location, scale, target, self.scale_factor, self.eps) + constant
        b = self.scale_factor * scale + self.eps
        return torch.log(b) + (target - location).abs() / b + constant


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

    def __init__(
        self,
        loss_weight: float = 1.0,
        scale_factor: float = 0.001,
        eps: float = 1e-8,
        official_constant: bool = True,
        reduction: str = 'mean',
    ) -> None:
        super().__init__(loss_weight, scale_factor, eps, official_constant, reduction)

    def compare(self, estimate: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        location, scale = estimate
        v = self.scale_factor * scale + self.eps
        loss = 0.5 * (torch.log(v) + (target - location) ** 2 / v)
        return loss + target.shape[1] * HALF_LOG_2PI if self.official_constant else loss
