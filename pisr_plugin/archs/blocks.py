"""Building blocks that several networks share. Nothing here is registered."""

from __future__ import annotations

import torch
from torch import nn

from pisr_plugin.utils.checks import check_choice, check_int, check_ints


def check_same_channels(num_in_ch: int, num_out_ch: int) -> None:
    """Raises ValueError unless input and output have the same channels, for networks that add the upscaled input."""
    check_int('num_in_ch', num_in_ch)
    check_choice('num_out_ch', num_out_ch, [num_in_ch])


def conv(in_ch: int, out_ch: int, kernel: int, **options) -> nn.Conv2d:
    """Returns a convolution with zero padding that keeps the size at stride 1."""
    return nn.Conv2d(in_ch, out_ch, kernel, padding=kernel // 2, **options)


def conv_prelu(in_ch: int, out_ch: int, kernel: int, *, slopes: int = 1) -> nn.Sequential:
    """Returns a convolution and a PReLU, with the keys ``0.weight``, ``0.bias``, ``1.weight``."""
    return nn.Sequential(conv(in_ch, out_ch, kernel), nn.PReLU(slopes))


def pixel_shuffle_tail(in_ch: int, out_ch: int, upscale: int) -> nn.Sequential:
    """Returns a 3x3 convolution and a pixel shuffle for any scale, with the keys ``0.weight``, ``0.bias``."""
    return nn.Sequential(conv(in_ch, out_ch * upscale**2, 3), nn.PixelShuffle(upscale))


# Mean colour of DIV2K by number of channels; with one channel its luminance.
MEAN = {3: (0.4488, 0.4371, 0.4040), 1: ((16 + 65.481 * 0.4488 + 128.553 * 0.4371 + 24.966 * 0.4040) / 255,)}


class MeanShift(nn.Conv2d):
    """Adds or subtracts DIV2K's mean colour by a frozen 1x1 convolution, as in the state dicts of CARN and KDSR.

    Args:
        channels: Channels of the image, 1 or 3.
        sign: 1 adds the mean, -1 subtracts it.

    Shape:
        (N, channels, H, W) to the same.
    """

    bias: torch.Tensor  # of a convolution in general it may be None

    def __init__(self, channels: int, sign: int) -> None:
        super().__init__(channels, channels, 1)
        with torch.no_grad():
            self.weight.copy_(torch.eye(channels)[:, :, None, None])
            self.bias.copy_(sign * torch.tensor(MEAN[channels]))
        self.requires_grad_(False)


class CCA(nn.Module):
    """Contrast-aware channel attention (IMDN, ACM MM 2019): weights channels by their standard deviation plus mean.

    The standard deviation is that of the population, without epsilon, as in the authors' code. It is computed as a
    norm: the gradient of a constant channel is then 0, not infinite, and on a CPU this is the fastest form.

    Args:
        num_feat: Channels of input and output.
        reduction: The bottleneck has ``num_feat // reduction`` channels.

    Shape:
        (N, num_feat, H, W) to the same.
    """

    def __init__(self, num_feat: int, reduction: int) -> None:
        super().__init__()
        hidden = num_feat // reduction
        self.conv_du = nn.Sequential(conv(num_feat, hidden, 1), nn.ReLU(), conv(hidden, num_feat, 1), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(2, 3), keepdim=True)
        std = torch.linalg.vector_norm(x - mean, dim=(2, 3), keepdim=True) / (x.shape[2] * x.shape[3]) ** 0.5
        return x * self.conv_du(std + mean)


class RFDB(nn.Module):
    """Residual feature distillation block (RFDN, AIM workshop at ECCV 2020), up to and without its attention.

    Three times, a 1x1 convolution distils half of the channels while a 3x3 convolution with a skip refines all of
    them; the skip is added before the activation. A last 3x3 convolution halves the channels, and a 1x1 convolution
    fuses the four parts.

    Args:
        num_feat: Channels of input and output; ``num_feat // 2`` are distilled in each step.

    Shape:
        (N, num_feat, H, W) to the same.
    """

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        kept = num_feat // 2
        self.c1_d = conv(num_feat, kept, 1)
        self.c1_r = conv(num_feat, num_feat, 3)
        self.c2_d = conv(num_feat, kept, 1)
        self.c2_r = conv(num_feat, num_feat, 3)
        self.c3_d = conv(num_feat, kept, 1)
        self.c3_r = conv(num_feat, num_feat, 3)
        self.c4 = conv(num_feat, kept, 3)
        self.c5 = conv(4 * kept, num_feat, 1)
        self.act = nn.LeakyReLU(0.05)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept1 = self.act(self.c1_d(x))
        x = self.act(self.c1_r(x) + x)
        kept2 = self.act(self.c2_d(x))
        x = self.act(self.c2_r(x) + x)
        kept3 = self.act(self.c3_d(x))
        x = self.act(self.c3_r(x) + x)
        kept4 = self.act(self.c4(x))
        return self.c5(torch.cat((kept1, kept2, kept3, kept4), dim=1))


class DistillationNet(nn.Module):
    """The common structure of IMDN, RFDN and ERFDN: blocks in series, whose outputs are fused before one upsampler.

    Args:
        num_in_ch: Channels of the input.
        num_out_ch: Channels of the output.
        num_feat: Channels of the features.
        num_block: Number of blocks.
        upscale: Scale factor, 2 or more.

    Attributes:
        block: Called with ``num_feat``; returns a module from (N, num_feat, H, W) to the same.
        prefix: First part of the blocks' names, before their number.
        min_feat: Smallest ``num_feat`` for which the block can be built.

    Shape:
        (N, num_in_ch, H, W) to (N, num_out_ch, upscale * H, upscale * W).
    """

    block: type[nn.Module]
    prefix: str
    min_feat: int

    # No submodule outputs the last feature at LR size: it is the sum LR_conv(..) + fea_conv(..).
    default_tap = 'upsampler@input'

    def __init__(self, num_in_ch: int, num_out_ch: int, num_feat: int, num_block: int, upscale: int) -> None:
        super().__init__()
        check_ints(num_in_ch=num_in_ch, num_out_ch=num_out_ch, num_block=num_block)
        check_int('num_feat', num_feat, minimum=self.min_feat)
        check_int('upscale', upscale, minimum=2)
        blocks = {f'{self.prefix}{i}': self.block(num_feat) for i in range(1, num_block + 1)}
        self.block_names = list(blocks)
        self.fea_conv = conv(num_in_ch, num_feat, 3)
        for name, module in blocks.items():
            self.add_module(name, module)
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
