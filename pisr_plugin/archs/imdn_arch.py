"""IMDN."""

from __future__ import annotations

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from pisr_plugin.archs.blocks import CCA, DistillationNet, conv


class IMDB(nn.Module):
    """Information multi-distillation block: three times a quarter of the channels is kept, the rest refined further.

    Args:
        num_feat: Channels in and out.

    Shape:
        (N, num_feat, H, W) to the same.
    """

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        kept = num_feat // 4
        self.sizes = (kept, num_feat - kept)
        self.c1 = conv(num_feat, num_feat, 3)
        self.c2 = conv(num_feat - kept, num_feat, 3)
        self.c3 = conv(num_feat - kept, num_feat, 3)
        self.c4 = conv(num_feat - kept, kept, 3)
        self.act = nn.LeakyReLU(0.05)
        self.cca = CCA(4 * kept, reduction=16)
        self.c5 = conv(4 * kept, num_feat, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept1, rest = self.act(self.c1(x)).split(self.sizes, dim=1)
        kept2, rest = self.act(self.c2(rest)).split(self.sizes, dim=1)
        kept3, rest = self.act(self.c3(rest)).split(self.sizes, dim=1)
        kept4 = self.c4(rest)  # the only one without activation
        return self.c5(self.cca(torch.cat((kept1, kept2, kept3, kept4), dim=1))) + x


@ARCH_REGISTRY.register()
class IMDN(DistillationNet):
    """Lightweight Image Super-Resolution with Information Multi-distillation Network (ACM MM 2019).

    Parameters: 694,404 / 703,059 / 715,176 for x2 / x3 / x4. Keys are those of the released files without their
    ``module.``: ``fea_conv``, ``IMDB<i>.c1``, ``IMDB<i>.cca.conv_du.0``, ``c.0``, ``LR_conv``, ``upsampler.0``.

    Args:
        num_in_ch: Channels of the input.
        num_out_ch: Channels of the output.
        num_feat: Width, 16 or more.
        num_block: Number of blocks (the authors' code always builds six).
        upscale: Scale factor, 2 or more.

    Shape:
        (N, num_in_ch, H, W) in [0, 1] to (N, num_out_ch, upscale * H, upscale * W).

    Raises:
        ValueError: An argument is out of its range.
    """

    block, prefix, min_feat = IMDB, 'IMDB', 16

    def __init__(
        self, *, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 64, num_block: int = 6, upscale: int
    ) -> None:
        super().__init__(num_in_ch, num_out_ch, num_feat, num_block, upscale)
