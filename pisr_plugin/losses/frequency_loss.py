"""Losses between spectra. All use orthonormal 2-D DFTs of each channel, whose values do not grow with the patch."""

from __future__ import annotations

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from pisr_plugin.losses.base import FeatureLoss
from pisr_plugin.utils.checks import check_choice, check_positive


@LOSS_REGISTRY.register()
class FrequencyLoss(FeatureLoss):
    r"""Mean absolute difference of two spectra.

    .. math:: \ell_\mathrm{complex} = \mathrm{mean} \, \tfrac12 (|\Re \Delta| + |\Im \Delta|), \qquad
              \ell_\mathrm{amplitude} = \mathrm{mean} \, \bigl| |\hat f_S| - |\hat f_T| \bigr|, \qquad
              \Delta = \hat f_S - \hat f_T

    over the frequencies that a real DFT keeps. ``'complex'`` is the frequency reconstruction loss of Rethinking
    Coarse-to-Fine Approach in Single Image Deblurring (MIMO-UNet, ICCV 2021), common in efficient SR with weights of
    0.05 to 0.1 beside L1; it is 0 where the features are equal. ``'amplitude'`` is the first part of Fourier Space
    Losses for Efficient Perceptual Image SR (ICCV 2021); it is 0 for any (cyclic) shift of the feature, so it needs
    another loss beside it.

    .. code-block:: yaml

        loss: {type: FrequencyLoss, loss_weight: 0.1}

    Args:
        loss_weight: Factor on the result.
        part: ``'complex'`` | ``'amplitude'``.

    Shape:
        estimate, target: (N, C, H, W), the same; output: scalar. No gradient reaches the target; half precision is
        lifted to float32.

    Raises:
        TypeError: the estimate is not a tensor (when called).
        ValueError: ``part`` is none of these (when built); shapes differ (when called).
    """

    requires_4d = True

    def __init__(self, loss_weight: float = 1.0, part: str = 'complex') -> None:
        super().__init__(loss_weight)
        check_choice('part', part, ('complex', 'amplitude'))
        self.part = part

    def compare(self, estimate: Tensor, target: Tensor) -> Tensor:
        if self.part == 'amplitude':
            return F.l1_loss(*(torch.fft.rfft2(feature, norm='ortho').abs() for feature in (estimate, target)))
        # The DFT is linear: one of the difference does the work of two.
        return torch.view_as_real(torch.fft.rfft2(estimate - target, norm='ortho')).abs().mean()


@LOSS_REGISTRY.register()
class FocalFrequencyLoss(FeatureLoss):
    r"""Squared difference of two spectra, weighted to where it is largest: Focal Frequency Loss (ICCV 2021).

    .. math:: \ell = \mathrm{mean} \, w |\Delta|^2, \qquad
              w = \frac{|\Delta|^\alpha}{\max |\Delta|^\alpha}, \qquad \Delta = \hat f_S - \hat f_T

    with one maximum for each channel of each image; the weights w in 0..1 carry no gradient. The loss is 0 where the
    features are equal. With all weights 1 it would be the MSE, by Parseval's theorem, so it is at most that.

    .. code-block:: yaml

        loss: {type: FocalFrequencyLoss, loss_weight: 1.0}

    Args:
        loss_weight: Factor on the result.
        alpha: How strongly large differences are preferred.

    Shape:
        estimate, target: (N, C, H, W), the same; output: scalar. No gradient reaches the target; half precision is
        lifted to float32.

    Raises:
        TypeError: the estimate is not a tensor (when called).
        ValueError: ``alpha`` is not above 0 (when built); shapes differ (when called).
    """

    requires_4d = True

    def __init__(self, loss_weight: float = 1.0, alpha: float = 1.0) -> None:
        super().__init__(loss_weight)
        check_positive('alpha', alpha)
        self.alpha = alpha

    def compare(self, estimate: Tensor, target: Tensor) -> Tensor:
        difference = torch.fft.fft2(estimate - target, norm='ortho')
        power = torch.view_as_real(difference).square().sum(-1)
        with torch.no_grad():
            largest = power.amax((-2, -1), keepdim=True)
            # Where features are equal in all, 0 / tiny is 0.
            weight = (power / largest.clamp_min(torch.finfo(power.dtype).tiny)).pow(self.alpha / 2)
        return (weight * power).mean()
