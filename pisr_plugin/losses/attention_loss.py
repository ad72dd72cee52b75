"""Attention transfer: where a feature is strong, not what it holds."""

from __future__ import annotations

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from pisr_plugin.losses.base import FeatureLoss
from pisr_plugin.utils.checks import check_positive


@LOSS_REGISTRY.register()
class AttentionTransferLoss(FeatureLoss):
    r"""Distance of two spatial attention maps: Paying More Attention to Attention (ICLR 2017), Eq. 2.

    .. math:: Q = \mathrm{vec} \sum_c |f_c|^p, \qquad
              \ell = \mathrm{mean} \left( \frac{Q_S}{\|Q_S\|_2} - \frac{Q_T}{\|Q_T\|_2} \right)^2

    with one norm for each image. The paper's Eq. 2 takes the norm of the difference; its square is what the authors'
    code minimises, averaged over positions and images, and is smooth at 0. Since every Q has length 1, values are
    about 1/(H W): weights are large, 1e3 in the paper. The loss is 0 where the attention maps are proportional,
    whatever the channels are: neither an estimator nor equal widths are needed.

    .. code-block:: yaml

        loss: {type: AttentionTransferLoss, loss_weight: 1000}

    Args:
        loss_weight: Factor on the result; it holds the paper's beta / 2.
        p: Power of the absolute values; larger ones stress the strongest channels.

    Shape:
        estimate: (N, C, H, W); target: (N, C', H, W); output: scalar. No gradient reaches the target; half precision
        is lifted to float32.

    Raises:
        TypeError: the estimate is not a tensor (when called).
        ValueError: ``p`` is not above 0 (when built); shapes differ in more than C (when called).
    """

    requires_4d = True
    allow_channel_mismatch = True

    def __init__(self, loss_weight: float = 1.0, p: float = 2.0) -> None:
        super().__init__(loss_weight)
        check_positive('p', p)
        self.p = p

    def compare(self, estimate: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(self._attention(estimate), self._attention(target))

    def _attention(self, feature: Tensor) -> Tensor:
        # The mean over channels instead of the sum, which the norm cancels, keeps powers of wide features small.
        return F.normalize(feature.abs().pow(self.p).mean(1).flatten(1))
