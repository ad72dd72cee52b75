"""RFDN in the form of its paper; the competition model is :mod:`.erfdn_arch`."""

from __future__ import annotations

import torch
from basicsr.utils.registry import ARCH_REGISTRY

from pisr_plugin.archs.blocks import CCA, RFDB, DistillationNet


class ResidualRFDB(RFDB):
    """RFDB with channel attention on the fused feature and a skip around the whole block."""

    def __init__(self, num_feat: int) -> None:
        super().__init__(num_feat)
        self.cca = CCA(num_feat, reduction=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cca(super().forward(x)) + x


@ARCH_REGISTRY.register()
class RFDN(DistillationNet):
    """Residual Feature Distillation Network for Lightweight Image Super-Resolution (AIM workshop at ECCV 2020).

    The benchmark model of the paper: six blocks, channel attention, block skips. Parameters: 534,036 / 540,531 /
    549,624 for x2 / x3 / x4; RFDN-L is ``num_feat=52`` with 625,962 / 632,997 / 642,846. Its weights were never
    released (RFDN_AIM.pth belongs to ERFDN), so the attention's reduction of 4 and its place after the fusion are
    inferred: they give the published counts. Keys are named by analogy: ``fea_conv``, ``B<i>``, ``c.0``, ``LR_conv``,
    ``upsampler.0``.

    Args:
        num_in_ch: Channels of the input.
        num_out_ch: Channels of the output.
        num_feat: Width, 4 or more; half of it (rounded down) is kept aside in each step of a block.
        num_block: Number of blocks.
        upscale: Scale factor, 2 or more.

    Shape:
        (N, num_in_ch, H, W) in [0, 1] to (N, num_out_ch, upscale * H, upscale * W).

    Raises:
        ValueError: An argument is out of its range.
    """

    block, prefix, min_feat = ResidualRFDB, 'B', 4

    def __init__(
        self, *, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 48, num_block: int = 6, upscale: int
    ) -> None:
        super().__init__(num_in_ch, num_out_ch, num_feat, num_block, upscale)
