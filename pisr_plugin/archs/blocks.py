"""What several networks are made of, and the checks of their arguments. Registers nothing, needs only torch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def check_int(name: str, value: object, minimum: int = 1) -> None:
    """Refuses a constructor argument that is not a whole number of at least ``minimum``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f'{name}: found {value!r}, possible: a whole number from {minimum} on')


def check_choice(name: str, value: object, possible: Iterable[object]) -> None:
    """Refuses a constructor argument that is none of the ``possible`` values."""
    possible = list(possible)
    if value not in possible:
        raise ValueError(f'{name}: found {value!r}, possible: {", ".join(map(repr, possible))}')


def conv(in_ch: int, out_ch: int, kernel: int, **options) -> nn.Conv2d:
    """A convolution whose zero padding keeps the size (at stride 1)."""
    return nn.Conv2d(in_ch, out_ch, kernel, padding=kernel // 2, **options)


def conv_prelu(in_ch: int, out_ch: int, kernel: int, *, slopes: int = 1) -> nn.Sequential:
    """Convolution, then PReLU: keys ``0.weight``, ``0.bias``, ``1.weight``."""
    return nn.Sequential(conv(in_ch, out_ch, kernel), nn.PReLU(slopes))


def pixel_shuffle_tail(in_ch: int, out_ch: int, upscale: int) -> nn.Sequential:
    """One 3x3 convolution and one pixel shuffle, whatever the scale: keys ``0.weight``, ``0.bias``."""
    return nn.Sequential(conv(in_ch, out_ch * upscale**2, 3), nn.PixelShuffle(upscale))


class CCA(nn.Module):
    """Contrast-aware channel attention (IMDN, ACM MM 2019): weighs channels by their standard deviation plus mean.

    The standard deviation is the population's and has no epsilon. ``torch.std_mean`` defines its gradient as 0
    for a constant channel, where the square root by itself would give infinity.

    Args:
        num_feat: Channels in and out.
        reduction: The bottleneck has ``num_feat // reduction`` channels.

    Shape:
        (N, num_feat, H, W) to the same.
    """

    def __init__(self, num_feat: int, reduction: int) -> None:
        super().__init__()
        hidden = num_feat // reduction
        self.conv_du = nn.Sequential(conv(num_feat, hidden, 1), nn.ReLU(), conv(hidden, num_feat, 1), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        std, mean = torch.std_mean(x, dim=(2, 3), correction=0, keepdim=True)
        return x * self.conv_du(std + mean)


class RFDB(nn.Module):
    """Residual feature distillation block (RFDN, AIM workshop at ECCV 2020), up to and without its attention.

    Three times a 1x1 convolution keeps half of the channels aside while a 3x3 convolution with a skip refines all of
    them; the addition comes before the activation. A last 3x3 convolution halves what remains, and a 1x1 convolution
    fuses the four parts.

    Args:
        num_feat: Channels in and out; ``num_feat // 2`` are kept aside at each step.

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
