"""VDSR."""

from __future__ import annotations

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from pisr_plugin.archs.blocks import check_same_channels, conv
from pisr_plugin.utils.checks import check_int, check_ints
from pisr_plugin.utils.resize import bicubic_upsample


class ConvReLU(nn.Module):
    """One hidden layer: key ``conv.weight``."""

    def __init__(self, num_feat: int, bias: bool) -> None:
        super().__init__()
        self.conv = conv(num_feat, num_feat, 3, bias=bias)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv(x))


@ARCH_REGISTRY.register()
class VDSR(nn.Module):
    """Accurate Image Super-Resolution Using Very Deep Convolutional Networks (CVPR 2016).

    Twenty 3x3 convolutions at HR size predict the residual of bicubic upsampling. The network upsamples itself (as
    MATLAB), so that it takes the LR image like all others. The same weights serve every scale: ``upscale`` may differ
    between training and use.

    Without biases, as in the PyTorch weights in use (pytorch-vdsr), it has 664,704 parameters; the paper's own model
    has biases and 665,921. Keys are those of pytorch-vdsr: ``input``, ``residual_layer.<i>.conv``, ``output``. Its
    file pickles a whole module and must be converted to a state dict before it can be loaded safely.

    Args:
        num_in_ch: Channels of the input: 1 for Y (what the paper trains), 3 for RGB.
        num_out_ch: Channels of the output, the same number.
        num_feat: Width.
        num_block: Number of hidden layers.
        upscale: Scale factor, 2 or more.
        bias: Whether convolutions have biases.

    Shape:
        (N, num_in_ch, H, W) in [0, 1] to (N, num_in_ch, upscale * H, upscale * W).

    Raises:
        ValueError: An argument is out of its range.
    """

    default_tap = 'residual_layer'  # at HR size, unlike all others

    def __init__(
        self,
        *,
        num_in_ch: int = 1,
        num_out_ch: int = 1,
        num_feat: int = 64,
        num_block: int = 18,
        upscale: int,
        bias: bool = False,
    ) -> None:
        super().__init__()
        check_same_channels(num_in_ch, num_out_ch)
        check_ints(num_feat=num_feat, num_block=num_block)
        check_int('upscale', upscale, minimum=2)
        self.upscale = upscale
        self.input = conv(num_in_ch, num_feat, 3, bias=bias)
        self.relu = nn.ReLU()
        self.residual_layer = nn.Sequential(*(ConvReLU(num_feat, bias) for _ in range(num_block)))
        self.output = conv(num_feat, num_out_ch, 3, bias=bias)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=(2 / (9 * module.out_channels)) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = bicubic_upsample(x, self.upscale)
        return self.output(self.residual_layer(self.relu(self.input(x)))) + x
