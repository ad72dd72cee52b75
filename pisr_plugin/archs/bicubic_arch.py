"""Bicubic upsampling as a network, so that the baseline of a table is tested like the others."""

from __future__ import annotations

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from pisr_plugin.utils.checks import check_choice
from pisr_plugin.utils.resize import bicubic_upsample


@ARCH_REGISTRY.register()
class Bicubic(nn.Module):
    """Upsamples with MATLAB's bicubic kernel; has no parameters.

    Args:
        upscale: Scale factor.
        num_in_ch: Channels of the input, any number; an argument so that recipes can swap networks.
        num_out_ch: Channels of the output; must equal ``num_in_ch``.

    Shape:
        (N, C, H, W) to (N, C, H * upscale, W * upscale), in the range of the input but for overshoot at edges.

    Raises:
        ValueError: ``num_out_ch`` differs from ``num_in_ch``.
    """

    def __init__(self, *, upscale: int, num_in_ch: int = 3, num_out_ch: int = 3) -> None:
        super().__init__()
        check_choice('num_out_ch', num_out_ch, [num_in_ch])
        self.upscale = upscale

    def forward(self, x: Tensor) -> Tensor:
        return bicubic_upsample(x, self.upscale)
