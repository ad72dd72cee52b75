"""Bicubic enlargement as a network, so that the baseline of a table runs through the same test as the others."""

from __future__ import annotations

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from pisr_plugin.resize import enlarge


@ARCH_REGISTRY.register()
class Bicubic(nn.Module):
    """Enlarges with MATLAB's bicubic kernel; has no parameters.

    Args:
        upscale: Factor on both sides.
        num_in_ch: Channels of the input; taken so that recipes can swap networks, any number works.
        num_out_ch: Channels of the output; must equal ``num_in_ch``.

    Shape:
        (N, C, H, W) to (N, C, H * upscale, W * upscale), the range kept but for overshoot at edges.

    Raises:
        ValueError: ``num_out_ch`` differs from ``num_in_ch``.
    """

    def __init__(self, *, upscale: int, num_in_ch: int = 3, num_out_ch: int = 3) -> None:
        super().__init__()
        if num_in_ch != num_out_ch:
            raise ValueError(f'Expected num_out_ch to equal num_in_ch, but got {num_out_ch} and {num_in_ch}')
        self.upscale = upscale

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges a batch."""
        return enlarge(x, self.upscale)
