"""The teacher without an hourglass, for the PISR paper's ablation."""

from __future__ import annotations

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from pisr_plugin.archs.blocks import conv
from pisr_plugin.archs.fsrcnn_arch import FSRCNN


@ARCH_REGISTRY.register()
class HRFSRCNN(FSRCNN):
    """FSRCNN that reads the HR image: the teacher of PISR's Table 1, row 2 (ECCV 2020, section 4.2).

    A 9x9 convolution that keeps the size replaces the transposed convolution. All else is FSRCNN's, including the
    number of parameters (12,644) and the keys. The shape of ``last_layer.0.0.weight`` is (num_out_ch, d, 9, 9).

    The paper does not say how this teacher's feature, of HR size, is compared with the student's, of LR size. We
    average-pool it by ``upscale``, as the authors of VID match sizes. The module ``pooled`` outputs the pooled feature
    for taps only; the reconstruction does not use it.

    Args:
        num_in_ch: Channels of the HR image.
        num_out_ch: Channels of the reconstruction.
        upscale: Scale factor of the student, by which the tapped feature is pooled.
        d, s, m, per_channel_prelu: As for FSRCNN.

    Shape:
        (N, num_in_ch, H, W) in [0, 1] to (N, num_out_ch, H, W); ``pooled``: (N, d, H // upscale, W // upscale).
    """

    default_tap = 'pooled'
    inputs = ('gt',)

    def __init__(
        self,
        *,
        num_in_ch: int = 1,
        num_out_ch: int = 1,
        upscale: int,
        d: int = 56,
        s: int = 12,
        m: int = 4,
        per_channel_prelu: bool = False,
    ) -> None:
        super().__init__(
            num_in_ch=num_in_ch,
            num_out_ch=num_out_ch,
            upscale=upscale,
            d=d,
            s=s,
            m=m,
            per_channel_prelu=per_channel_prelu,
        )
        self.pooled = nn.AvgPool2d(upscale)
        self.last_layer = nn.Sequential(nn.Sequential(conv(d, num_out_ch, 9)))

    def forward(self, gt: torch.Tensor) -> torch.Tensor:
        x = self.features(gt)
        self.pooled(x)  # for taps only
        return self.last_layer(x)
