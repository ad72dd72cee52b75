"""Hints: the student regresses the teacher's feature (FitNets)."""

from __future__ import annotations

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from pisr_plugin.losses.base import FeatureLoss


@LOSS_REGISTRY.register()
class HintLoss(FeatureLoss):
    r"""Half the mean squared difference of two features: FitNets: Hints for Thin Deep Nets (ICLR 2015), Eq. 3.

    .. math:: \ell = \tfrac12 \, \mathrm{mean} \, (r(f_S) - f_T)^2

    The paper sums over the feature; the mean keeps the weight independent of patch and width. Its regressor r is a
    convolution: the estimator Adapter. The loss is 0, its minimum, where the two are equal. It is the Gaussian
    negative log-likelihood of VIDGaussianLoss with the variance fixed at 1.

    .. code-block:: yaml

        estimator: {type: Adapter}
        loss: {type: HintLoss, loss_weight: 1.0}

    Args:
        loss_weight: Factor on the result.

    Shape:
        estimate, target: the same, any; output: scalar. No gradient reaches the target; half precision is lifted to
        float32.

    Raises:
        TypeError: the estimate is not a tensor (when called).
        ValueError: shapes differ (when called).
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)

    def compare(self, estimate: Tensor, target: Tensor) -> Tensor:
        return 0.5 * F.mse_loss(estimate, target)
