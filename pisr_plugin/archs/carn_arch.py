"""CARN; its mobile form is :mod:`.carnm_arch`."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from torch.nn import functional as F

from pisr_plugin.archs.blocks import MEAN, MeanShift, conv
from pisr_plugin.utils.checks import check_choice, check_ints


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions and a skip, ReLU after the addition."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(num_feat, num_feat, 3), nn.ReLU(), conv(num_feat, num_feat, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + x)


class Fusion(nn.Module):
    """1x1 convolution and ReLU on all outputs of a cascade so far."""

    def __init__(self, in_ch: int, out_ch: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(in_ch, out_ch, 1), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Cascade(nn.Module):
    """Three units. The next unit sees the cascade's input and all outputs so far, fused by a 1x1 convolution.

    Networks of this family are cascades of blocks, and each block is a cascade of residual units.

    Args:
        num_feat: Channels of input and output.
        units: Three units, or one that is used three times.

    Shape:
        (N, num_feat, H, W) to the same.
    """

    def __init__(self, num_feat: int, units: Iterable[nn.Module]) -> None:
        super().__init__()
        units = list(units)
        for i, unit in enumerate(units, start=1):
            self.add_module(f'b{i}', unit)
        for i in (1, 2, 3):
            self.add_module(f'c{i}', Fusion((i + 1) * num_feat, num_feat))
        self.unit_names = [f'b{min(i, len(units))}' for i in (1, 2, 3)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gathered = x
        for i, name in enumerate(self.unit_names, start=1):
            gathered = torch.cat((gathered, getattr(self, name)(x)), dim=1)
            x = getattr(self, f'c{i}')(gathered)
        return x


class CascadingNet(Cascade):
    """The common structure of CARN and CARNM: entry, a cascade of blocks, upsampler, exit.

    Args:
        num_in_ch: Channels of the input, 1 or 3.
        num_out_ch: Channels of the output, 1 or 3.
        num_feat: Channels of the features.
        upscale: Scale factor: 2, 3 or 4.
        block: Returns a new module from (N, num_feat, H, W) to the same; three are used.
        groups: Groups of the upsampler's convolutions.
    """

    default_tap = 'c3'

    def __init__(
        self, num_in_ch: int, num_out_ch: int, num_feat: int, upscale: int, block: Callable[[], nn.Module], groups: int
    ) -> None:
        check_choice('num_in_ch', num_in_ch, MEAN)
        check_choice('num_out_ch', num_out_ch, MEAN)
        check_ints(num_feat=num_feat, groups=groups)
        check_choice('upscale', upscale, [2, 3, 4])
        if num_feat % groups:
            raise ValueError(f'num_feat: out of range (found {num_feat}). Expected a multiple of groups, {groups}.')
        super().__init__(num_feat, [block() for _ in range(3)])
        self.upscale = upscale
        # The authors' keys: sub_mean.shifter.weight, ...
        self.sub_mean = nn.Sequential(OrderedDict(shifter=MeanShift(num_in_ch, -1)))
        self.add_mean = nn.Sequential(OrderedDict(shifter=MeanShift(num_out_ch, 1)))
        self.entry = conv(num_in_ch, num_feat, 3)
        layers = []
        for factor in {2: (2,), 3: (3,), 4: (2, 2)}[upscale]:
            layers += [conv(num_feat, num_feat * factor**2, 3, groups=groups), nn.ReLU(), nn.PixelShuffle(factor)]
        body = nn.Sequential(OrderedDict(body=nn.Sequential(*layers)))
        self.upsample = nn.Sequential(OrderedDict(up=body))  # the authors' keys: upsample.up.body.<i>
        self.exit = conv(num_feat, num_out_ch, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(self.entry(self.sub_mean(x)))
        return self.add_mean(self.exit(self.upsample(x)))

    def convert_released(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Takes the upsampler of this scale from the authors' multi-scale files, which hold one for each scale.

        Args:
            state_dict: Weights as released, or in this network's own keys, which come back as they are.

        Returns:
            Weights in this network's own keys.
        """
        converted = {}
        for key, value in state_dict.items():
            tail = re.match(r'upsample\.up(\d)\.', key)
            if tail is None:
                converted[key] = value
            elif int(tail[1]) == self.upscale:
                converted[f'upsample.up.{key[tail.end() :]}'] = value
        return converted


@ARCH_REGISTRY.register()
class CARN(CascadingNet):
    """Fast, Accurate, and Lightweight Super-Resolution with Cascading Residual Network (ECCV 2018), for one scale.

    Parameters: 964,187 / 1,148,827 / 1,111,899 for x2 / x3 / x4, of which the 24 of the colour means are frozen. The
    authors' multi-scale model, with the upsamplers of all three scales, has the 1,592K that papers print.

    Keys are those of the authors' single-scale model: ``entry``, ``b<i>.b<j>.body.{0,2}``, ``b<i>.c<j>.body.0``,
    ``c<i>.body.0``, ``upsample.up.body.{0,3}``, ``exit``, ``sub_mean.shifter``, ``add_mean.shifter``.

    Args:
        num_in_ch: Channels of the input: 3 for RGB, 1 for Y (our addition; its mean is the luminance of RGB's).
        num_out_ch: Channels of the output, 1 or 3.
        num_feat: Width.
        upscale: 2, 3 or 4.

    Shape:
        (N, num_in_ch, H, W) in [0, 1] to (N, num_out_ch, upscale * H, upscale * W).

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(self, *, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 64, upscale: int) -> None:
        def block() -> Cascade:
            return Cascade(num_feat, [ResidualUnit(num_feat) for _ in range(3)])

        super().__init__(num_in_ch, num_out_ch, num_feat, upscale, block, groups=1)
