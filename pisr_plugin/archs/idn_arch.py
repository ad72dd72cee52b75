"""IDN."""

from __future__ import annotations

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from torch.nn import functional as F

from pisr_plugin.archs.blocks import check_same_channels, conv
from pisr_plugin.archs.fast_deconv import BlockConvTranspose2d
from pisr_plugin.utils.checks import check_choice, check_int
from pisr_plugin.utils.resize import bicubic_upsample


@ARCH_REGISTRY.register()
class IDN(nn.Module):
    """Fast and Accurate Single Image Super-Resolution via Information Distillation Network (CVPR 2018).

    Two convolutions, four distillation blocks and a 17x17 transposed convolution whose output is added to MATLAB's
    bicubic upsampling. On Y (the default, as released) it has 552,769 parameters at every scale; on RGB 590,915, the
    591K that the PISR paper prints; on RGB with ``upsampler: pixelshuffle`` 579,276 / 587,931 / 600,048 for x2 / x3 /
    x4 as in the authors' TensorFlow code.

    Keys are the layer names of the authors' Caffe files: ``conv1``, ``conv2``, ``conv<i + 2>_<1..6>`` and ``down<i>``
    for block i, ``upsample``. Blobs fit without transposition.

    Args:
        num_in_ch: Channels of the input: 1 for Y, 3 for RGB.
        num_out_ch: Channels of the output, the same number.
        num_feat: Width, a multiple of 16.
        num_block: Number of distillation blocks.
        upscale: Scale factor, 2 or more, at most 9 for ``deconv``.
        upsampler: ``'deconv'`` with the alignment of the released weights (the transposed convolution's centre lies
            ``upscale - 1`` pixels lower and further right than with symmetric padding), ``'deconv_centred'`` with
            symmetric padding (for training from scratch; released weights lose 6 dB and more in it), or
            ``'pixelshuffle'``, two convolutions and a pixel shuffle.

    Shape:
        (N, num_in_ch, H, W) in [0, 1] to (N, num_in_ch, upscale * H, upscale * W).

    Raises:
        ValueError: An argument is out of its range.
    """

    # The output of the last block: its activation is part of no submodule.
    default_tap = 'upsample@input'

    def __init__(
        self,
        *,
        num_in_ch: int = 1,
        num_out_ch: int = 1,
        num_feat: int = 64,
        num_block: int = 4,
        upscale: int,
        upsampler: str = 'deconv',
    ) -> None:
        super().__init__()
        check_same_channels(num_in_ch, num_out_ch)
        check_int('num_feat', num_feat, minimum=16)
        if num_feat % 16:
            raise ValueError(f'num_feat: out of range (found {num_feat}). Expected a multiple of 16.')
        check_int('num_block', num_block)
        check_int('upscale', upscale, minimum=2)
        check_choice('upsampler', upsampler, ['deconv', 'deconv_centred', 'pixelshuffle'])
        if upsampler == 'deconv' and upscale > 9:
            raise ValueError(f'upscale: out of range (found {upscale}). Expected 2 to 9 with upsampler deconv.')
        self.upscale = upscale
        self.num_block = num_block
        kept = num_feat // 4
        self.sizes = (kept, num_feat - kept)

        self.conv1 = conv(num_in_ch, num_feat, 3)
        self.conv2 = conv(num_feat, num_feat, 3)
        for block in range(1, num_block + 1):
            upper = [(num_feat, 3 * kept), (3 * kept, 2 * kept), (2 * kept, num_feat)]
            lower = [(3 * kept, num_feat), (num_feat, 3 * kept), (3 * kept, num_feat + kept)]
            for i, (in_ch, out_ch) in enumerate(upper + lower, start=1):
                self.add_module(f'conv{block + 2}_{i}', conv(in_ch, out_ch, 3, groups=4 if i in (2, 5) else 1))
            self.add_module(f'down{block}', conv(num_feat + kept, num_feat, 1))
        if upsampler == 'deconv':
            self.upsample: nn.Module = BlockConvTranspose2d(
                num_feat, num_out_ch, 17, stride=upscale, padding=9 - upscale
            )
        elif upsampler == 'deconv_centred':
            self.upsample = BlockConvTranspose2d(
                num_feat, num_out_ch, 17, stride=upscale, padding=8, output_padding=upscale - 1
            )
        else:
            self.upsample = nn.Sequential(
                conv(num_feat, num_feat, 3), conv(num_feat, num_out_ch * upscale**2, 3), nn.PixelShuffle(upscale)
            )
        self._initialise()

    def _initialise(self) -> None:
        """Caffe's msra filler with variance_norm AVERAGE, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                out_ch, in_ch = module.weight.shape[:2]
                mean_fan = module.weight.numel() * (1 / out_ch + 1 / in_ch) / 2
                nn.init.normal_(module.weight, std=(2 / mean_fan) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _layer(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(getattr(self, name)(x), 0.05)

    def _block(self, block: int, x: torch.Tensor) -> torch.Tensor:
        upper = x
        for i in (1, 2, 3):
            upper = self._layer(f'conv{block + 2}_{i}', upper)
        kept, lower = upper.split(self.sizes, dim=1)
        for i in (4, 5, 6):
            lower = self._layer(f'conv{block + 2}_{i}', lower)
        return self._layer(f'down{block}', lower + torch.cat((x, kept), dim=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = self.upscale * x.shape[2], self.upscale * x.shape[3]
        bicubic = bicubic_upsample(x, self.upscale)
        x = self._layer('conv2', self._layer('conv1', x))
        for block in range(1, self.num_block + 1):
            x = self._block(block, x)
        # Only the deconv aligned as released is larger: its last upscale - 1 rows and columns have no counterpart.
        return self.upsample(x)[..., :height, :width] + bicubic
