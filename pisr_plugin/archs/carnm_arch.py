"""CARN-M, the mobile form of CARN."""

from __future__ import annotations

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from torch.nn import functional as F

from pisr_plugin.archs.blocks import conv
from pisr_plugin.archs.carn_arch import Cascade, CascadingNet


class EfficientResidualUnit(nn.Module):
    """Two grouped 3x3 convolutions, a 1x1 convolution and a skip, ReLU after the addition."""

    def __init__(self, num_feat: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(num_feat, num_feat, 3, groups=groups),
            nn.ReLU(),
            conv(num_feat, num_feat, 3, groups=groups),
            nn.ReLU(),
            conv(num_feat, num_feat, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + x)


@ARCH_REGISTRY.register()
class CARNM(CascadingNet):
    """CARN-M (ECCV 2018), for one scale: CARN with grouped convolutions and one residual unit per block, used thrice.

    Parameters: 257,051 / 303,451 / 294,171 for x2 / x3 / x4, of which 24 are frozen. The authors' multi-scale model,
    carn_m.pth, has 414,811 (their paper says 412K); ``convert_released`` takes one scale out of it.

    Keys are those of CARN but for the shared unit: ``b<i>.b1.body.{0,2,4}``.

    Args:
        num_in_ch: Channels of the input: 3 for RGB, 1 for Y (our addition; its mean is the luminance of RGB's).
        num_out_ch: Channels of the output, 1 or 3.
        num_feat: Width, a multiple of ``groups``.
        groups: Groups of the 3x3 convolutions in units and upsampler (the released weights have 4).
        upscale: 2, 3 or 4.

    Shape:
        (N, num_in_ch, H, W) in [0, 1] to (N, num_out_ch, upscale * H, upscale * W).

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self, *, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 64, groups: int = 4, upscale: int
    ) -> None:
        def block() -> Cascade:
            return Cascade(num_feat, [EfficientResidualUnit(num_feat, groups)])

        super().__init__(num_in_ch, num_out_ch, num_feat, upscale, block, groups)
