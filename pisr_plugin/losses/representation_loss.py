"""Distillation of a representation of the degradation (KDSR)."""

from __future__ import annotations

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from pisr_plugin.losses.base import FeatureLoss
from pisr_plugin.utils.checks import check_positive


@LOSS_REGISTRY.register()
class RepresentationKLLoss(FeatureLoss):
    r"""Divergence of two softened representations: Knowledge Distillation based Degradation Estimation (ICLR 2023).

    .. math:: \ell = \frac1N \sum_n \mathrm{KL} \bigl( \mathrm{softmax}(D_T / \tau) \, \| \,
              \mathrm{softmax}(D_S / \tau) \bigr)

    over all entries of each image's representation. It is 0, its minimum, where the two softmaxes agree, that is where
    the representations of an image are equal up to a constant. Temperature 0.15 and weight 1 are the KDSR authors';
    there is no factor of the squared temperature, which Hinton et al. use.

    .. code-block:: yaml

        loss: {type: RepresentationKLLoss, loss_weight: 1.0, temperature: 0.15}

    Args:
        loss_weight: Factor on the result.
        temperature: Divisor tau of both representations; small ones stress the largest entries.

    Shape:
        estimate, target: (N, D) or (N, ...), the same; output: scalar. No gradient reaches the target; half precision
        is lifted to float32.

    Raises:
        TypeError: the estimate is not a tensor (when called).
        ValueError: ``temperature`` is not above 0 (when built); shapes differ (when called).
    """

    def __init__(self, loss_weight: float = 1.0, temperature: float = 0.15) -> None:
        super().__init__(loss_weight)
        check_positive('temperature', temperature)
        self.temperature = temperature

    def compare(self, estimate: Tensor, target: Tensor) -> Tensor:
        student, teacher = (F.log_softmax(x.flatten(1) / self.temperature, dim=1) for x in (estimate, target))
        return F.kl_div(student, teacher, reduction='batchmean', log_target=True)
