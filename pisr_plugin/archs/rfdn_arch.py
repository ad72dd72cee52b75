"""RFDN in the form of its paper; the competition model is :mod:`.erfdn_arch`."""

from __future__ import annotations

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from .blocks import CCA, RFDB, check_int, conv, pixel_shuffle_tail


class ResidualRFDB(RFDB):
    """RFDB with channel attention on the fused feature and a skip around the whole block."""

    def __init__(self, num_feat: int) -> None:
        super().__init__(num_feat)
        self.cca = CCA(num_feat, reduction=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cca(super().forward(x)) + x


@ARCH_REGISTRY.register()
class RFDN(nn.Module):
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

    # The last feature at LR size is the sum LR_conv(..) + fea_conv(..), which no submodule outputs.
    default_tap = 'upsampler@input'

    def __init__(
        self, *, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 48, num_block: int = 6, upscale: int
    ) -> None:
        super().__init__()
        check_int('num_in_ch', num_in_ch)
        check_int('num_out_ch', num_out_ch)
        check_int('num_feat', num_feat, minimum=4)
        check_int('num_block', num_block)
        check_int('upscale', upscale, minimum=2)
        self.block_names = [f'B{i}' for i in range(1, num_block + 1)]

        self.fea_conv = conv(num_in_ch, num_feat, 3)
        for name in self.block_names:
            self.add_module(name, ResidualRFDB(num_feat))
        self.c = nn.Sequential(conv(num_feat * num_block, num_feat, 1), nn.LeakyReLU(0.05))
        self.LR_conv = conv(num_feat, num_feat, 3)
        self.upsampler = pixel_shuffle_tail(num_feat, num_out_ch, upscale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shallow = x = self.fea_conv(x)
        features = []
        for name in self.block_names:
            x = getattr(self, name)(x)
            features.append(x)
        x = self.LR_conv(self.c(torch.cat(features, dim=1))) + shallow
        return self.upsampler(x)
