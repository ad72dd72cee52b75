"""Statistical maps: what a feature is like at each position, over all channels."""

from __future__ import annotations

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from pisr_plugin.losses.base import FeatureLoss
from pisr_plugin.utils.checks import check_choice

STATISTICS = {
    'mean': lambda feature: feature.mean(1),
    'mean_square': lambda feature: feature.square().mean(1),
    'max': lambda feature: feature.amax(1),
    'min': lambda feature: feature.amin(1),
}


@LOSS_REGISTRY.register()
class StatisticalMapLoss(FeatureLoss):
    r"""Mean squared difference of statistics over channels: Image SR Using Knowledge Distillation (SRKD, ACCV 2018).

    .. math:: G(f) \in \mathbb R^{H \times W}, \quad
              G_\mathrm{mean} = \tfrac1C \sum_c f_c, \quad G_\mathrm{mean\_square} = \tfrac1C \sum_c f_c^2, \quad
              G_\mathrm{max} = \max_c f_c, \quad G_\mathrm{min} = \min_c f_c; \qquad
              \ell = \mathrm{mean} \, (G(f_S) - G(f_T))^2

    The loss is 0 where the maps agree, whatever single channels hold, so widths may differ and no estimator is needed.
    The paper taps three depths, one link each; several statistics of a place are several links too.

    .. code-block:: yaml

        loss: {type: StatisticalMapLoss, statistic: mean, loss_weight: 1.0}

    Args:
        loss_weight: Factor on the result.
        statistic: ``'mean'`` | ``'mean_square'`` | ``'max'`` | ``'min'``.

    Shape:
        estimate: (N, C, H, W); target: (N, C', H, W); output: scalar. No gradient reaches the target; half precision
        is lifted to float32.

    Raises:
        TypeError: the estimate is not a tensor (when called).
        ValueError: ``statistic`` is none of these (when built); shapes differ in more than C (when called).
    """

    requires_4d = True
    allow_channel_mismatch = True

    def __init__(self, loss_weight: float = 1.0, statistic: str = 'mean') -> None:
        super().__init__(loss_weight)
        check_choice('statistic', statistic, tuple(STATISTICS))
        self.statistic = statistic

    def compare(self, estimate: Tensor, target: Tensor) -> Tensor:
        statistic = STATISTICS[self.statistic]
        return F.mse_loss(statistic(estimate), statistic(target))
