"""The mean absolute difference of two features."""

from __future__ import annotations

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from pisr_plugin.losses.base import FeatureLoss


@LOSS_REGISTRY.register()
class FeatureMAELoss(FeatureLoss):
    """Mean absolute difference of two features, the plainest distillation loss of the PISR paper's Table 1.

    .. code-block:: yaml

        loss: {type: FeatureMAELoss, loss_weight: 1.0}

    Args:
        loss_weight: Factor on the result.
        reduction: ``'none'`` | ``'mean'`` | ``'sum'``.

    Shape:
        estimate, target: the same, any; output: scalar, or theirs for ``'none'``. No gradient reaches the target; half
        precision is lifted to float32.

    Raises:
        TypeError: the estimate is not a tensor (when called).
        ValueError: ``reduction`` is unknown (when built); shapes differ, even if they would broadcast (when called).
    """

    def compare(self, estimate: Tensor, target: Tensor) -> Tensor:
        return (estimate - target).abs()
