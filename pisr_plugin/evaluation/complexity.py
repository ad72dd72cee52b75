"""Count a network's parameters and Multi-Adds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import prod

import torch
from mmengine.analysis import FlopAnalyzer, parameter_count
from mmengine.analysis.jit_handles import (
    addmm_flop_jit,
    bmm_flop_jit,
    conv_flop_jit,
    einsum_flop_jit,
    elementwise_flop_counter,
    get_shape,
    linear_flop_jit,
    matmul_flop_jit,
)
from torch import nn

from pisr_plugin.archs.network_info import input_channels, required_inputs
from pisr_plugin.inference.descriptor import build
from pisr_plugin.utils.errors import OptionsError
from pisr_plugin.utils.logging import quiet

CONVENTIONS = {
    'A': 'multiplications of convolutions, linear layers and matrix products; a transposed convolution once per input '
    'position; no biases, activations, norms, pooling or resizing',
    'B': 'as A, but a transposed convolution is charged its whole kernel at every output position (CARN; FSRCNN in '
    "the PISR paper's Table 2)",
    'C': 'as A, plus one per added bias, per ReLU, LeakyReLU or PReLU element and per element that enters a global '
    "average, for an LR image of rounded-down size (ptflops; IDN and IMDN in the PISR paper's Table 2)",
}
COUNTED = {'A': ['macs'], 'B': ['macs', 'deconv'], 'C': ['macs', 'bias', 'elements']}  # kinds of operations


@dataclass
class Complexity:
    """Size and cost of one network.

    Attributes:
        name: Name of the recipe, or the network's type.
        network: The network's type.
        scale: Scale factor.
        parameters: Number of parameters, frozen ones included.
        macs: Multi-Adds for one image, by convention; see :data:`CONVENTIONS`.
    """

    name: str
    network: str
    scale: int
    parameters: int
    macs: dict[str, int]


def count(
    options: Mapping, scale: int, size: tuple[int, int] = (1280, 720), conventions: Sequence[str] = ('A',)
) -> Complexity:
    """Counts the parameters and Multi-Adds of one network.

    The network is traced on images of a few pixels. The cost of convolutions is linear in height and in width, so the
    count for ``size`` follows exactly. A check finds networks whose cost is not linear; these are traced at ``size``.

    Args:
        options: Options of a registered network.
        scale: Scale factor.
        size: Width and height of the output in pixels.
        conventions: Keys of :data:`CONVENTIONS`.

    Raises:
        OptionsError: the network cannot be built, or cannot be traced at ``size``.
    """
    with quiet():
        net = build(options).eval()
    channels = input_channels(options)
    counter, macs = _Counter(net, channels, scale), {}
    for convention in conventions:
        sides = [side // scale if convention == 'C' else Fraction(side, scale) for side in reversed(size)]
        operations = counter.count(*sides)
        macs[convention] = round(sum(operations.get(kind, 0) for kind in COUNTED[convention]))
    return Complexity(options['type'], options['type'], scale, parameter_count(net)[''], macs)


class _Counter:
    """Counts a network's operations for any LR size from traces of small images.

    Args:
        net: The network in evaluation mode.
        channels: Channels of its input.
        scale: Scale factor.
    """

    SIDES = 8, 16  # multiples of 8, which window attention needs
    CHECK = 24, 32

    def __init__(self, net: nn.Module, channels: int, scale: int) -> None:
        self.net, self.channels, self.scale = net, channels, scale
        try:
            self.corners = {size: self._trace(*size) for size in product(self.SIDES, repeat=2)}
            self.linear = self._interpolate(*self.CHECK) == self._trace(*self.CHECK)
        except RuntimeError:  # the network cannot take images this small
            self.linear = False

    def count(self, height: Fraction | int, width: Fraction | int) -> Mapping[str, Fraction | int]:
        """Returns the operations by kind.

        Args:
            height: Of the LR image in pixels. It may be a fraction where the cost is linear.
            width: As ``height``.
        """
        if self.linear:
            return self._interpolate(height, width)
        if Fraction(height).denominator != 1 or Fraction(width).denominator != 1:
            raise OptionsError(
                f'--size: the cost of {type(self.net).__name__} is not linear in the sides of the image (found sides '
                f'that do not divide by the scale). Expected multiples of its scale {self.scale}.'
            )
        try:
            return self._trace(int(height), int(width))
        except RuntimeError as error:
            raise OptionsError(
                f'--size: {type(self.net).__name__} fails on an LR image of {width}x{height} pixels: {error}'
            ) from None

    def _interpolate(self, height: Fraction | int, width: Fraction | int) -> Mapping[str, Fraction | int]:
        """Computes the count, which is linear in height and in width, from the counts at four sizes."""
        low, high = self.SIDES
        v, u = Fraction(height - low) / (high - low), Fraction(width - low) / (high - low)
        share = {(low, low): (1 - v) * (1 - u), (low, high): (1 - v) * u, (high, low): v * (1 - u), (high, high): v * u}
        return {kind: sum(share[size] * self.corners[size][kind] for size in share) for kind in self.corners[low, low]}

    @torch.no_grad()
    def _trace(self, height: int, width: int) -> dict[str, int]:
        factors = [self.scale if name == 'gt' else 1 for name in required_inputs(self.net)]
        images = tuple(torch.zeros(1, self.channels, height * factor, width * factor) for factor in factors)
        analyzer = FlopAnalyzer(self.net, images).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return dict(analyzer.tracer_warnings('none').clear_op_handles().set_op_handle(**HANDLES).by_operator())


def _conv(inputs: list, outputs: list) -> Counter:
    macs, size = sum(conv_flop_jit(inputs, outputs).values()), get_shape(outputs[0])
    return Counter(
        macs=macs,
        deconv=prod(get_shape(inputs[1])) * prod(size[2:]) - macs,  # 0 for a convolution
        bias=prod(size) if get_shape(inputs[2]) else 0,
    )


def _named(kind: str, handle: Callable) -> Callable:
    return lambda inputs, outputs: Counter({kind: handle(inputs, outputs)})


# The cost of each operator. Operators that are not listed cost nothing.
HANDLES = {
    'aten::_convolution': _conv,
    'aten::addmm': _named('macs', addmm_flop_jit),
    'aten::bmm': _named('macs', bmm_flop_jit),
    'aten::einsum': _named('macs', einsum_flop_jit),
    'aten::linear': _named('macs', linear_flop_jit),
    'aten::matmul': _named('macs', matmul_flop_jit),
    'aten::mm': _named('macs', matmul_flop_jit),
    **{
        f'aten::{name}': _named('elements', elementwise_flop_counter(0, 1))
        for name in ('relu', 'relu_', 'leaky_relu', 'leaky_relu_', 'prelu')
    },
    **{f'aten::{name}': _named('elements', elementwise_flop_counter(1, 0)) for name in ('mean', 'adaptive_avg_pool2d')},
}
