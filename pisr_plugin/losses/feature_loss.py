"""Losses that compare two features directly."""

from __future__ import annotations

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn

from .reduction import check_reduction, reduce


@LOSS_REGISTRY.register()
class FeatureMAELoss(nn.Module):
    """Mean absolute difference of two features, the plainest distillation loss of the PISR paper's Table 1.

    .. code-block:: yaml

        loss: {type: FeatureMAELoss, loss_weight: 1.0}

    Args:
        loss_weight: Factor on the result.
        reduction: ``'none'`` | ``'mean'`` | ``'sum'``.

    Shape:
        pred, target: the same; output: scalar, or theirs for ``'none'``. No gradient reaches the target.

    Raises:
        ValueError: Unknown ``reduction`` (when built); shapes that differ, even if they would broadcast (when called).
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean') -> None:
        super().__init__()
        check_reduction(reduction)
        self.loss_weight = loss_weight
        self.reduction = reduction

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if pred.shape != target.shape:
            raise ValueError(
                f'FeatureMAELoss: pred has shape {tuple(pred.shape)}, target {tuple(target.shape)}; '
                'they must be equal. The estimator Adapter changes the number of channels.'
            )
        return self.loss_weight * reduce((pred - target.detach()).abs(), self.reduction)
