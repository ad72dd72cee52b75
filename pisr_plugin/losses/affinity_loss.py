"""Feature affinity: how the parts of a feature resemble each other."""

from __future__ import annotations

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from pisr_plugin.losses.base import FeatureLoss
from pisr_plugin.utils.checks import check_choice, check_int


@LOSS_REGISTRY.register()
class FeatureAffinityLoss(FeatureLoss):
    r"""Mean absolute difference of two affinity matrices: FAKD (ICIP 2020), spatial affinity.

    .. math:: A = \tilde F^\top \tilde F \in \mathbb R^{HW \times HW}, \qquad
              \ell = \mathrm{mean} \, |A_S - A_T|

    for a feature F of shape (C, H W) whose columns, one for each position, are scaled to length 1: A holds the
    cosines between all positions of an image, in -1..1. The loss is 0 where these agree; rotating the channels or
    rescaling positions changes nothing, so widths may differ and no estimator is needed.

    A grows with the fourth power of the patch: 64 MiB for one image at 64 x 64, 324 MiB at 96 x 96, several times in
    training. ``pool: 2`` averages the feature over 2 x 2 positions first and needs a sixteenth. The paper distils
    patches of 48 x 48 unpooled.

    .. code-block:: yaml

        loss: {type: FeatureAffinityLoss, loss_weight: 1.0, pool: 2}

    Args:
        loss_weight: Factor on the result.
        pool: Side of the windows averaged before; what does not fill one is left out.
        kind: ``'spatial'`` | ``'channel'``: cosines between positions, or between channels, the smaller matrix that
            the paper compares with.

    Shape:
        estimate: (N, C, H, W); target: (N, C', H, W), C' = C for ``'channel'``; output: scalar. No gradient reaches
        the target; half precision is lifted to float32.

    Raises:
        TypeError: the estimate is not a tensor (when called).
        ValueError: an argument is out of its range (when built); shapes do not fit (when called).
    """

    requires_4d = True

    def __init__(self, loss_weight: float = 1.0, pool: int = 1, kind: str = 'spatial') -> None:
        super().__init__(loss_weight)
        check_choice('kind', kind, ('spatial', 'channel'))
        check_int('pool', pool)
        self.pool = pool
        self.allow_channel_mismatch = self.spatial = kind == 'spatial'

    def compare(self, estimate: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(self._affinity(estimate), self._affinity(target))

    def _affinity(self, feature: Tensor) -> Tensor:
        if self.pool > 1:
            feature = F.avg_pool2d(feature, self.pool)
        vectors = feature.flatten(2)
        if self.spatial:
            vectors = vectors.transpose(1, 2)
        # Where all channels are 0 a position has no direction. The eps keeps the gradient there finite.
        vectors = F.normalize(vectors, dim=2, eps=1e-6)
        return vectors @ vectors.transpose(1, 2)
