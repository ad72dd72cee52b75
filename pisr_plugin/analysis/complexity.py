"""Count a network's parameters and Multi-Adds.

``python tools/complexity.py -opt options/pisr_rfdn_x*.yml``
``python tools/complexity.py --type FSRCNN --arg upscale=2 d=56 s=56 --convention A B C``
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import product
from math import prod
from pathlib import Path

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

from pisr_plugin.archs.traits import argument, input_channels, input_names
from pisr_plugin.engine import cli
from pisr_plugin.engine.recipe import compose, override
from pisr_plugin.engine.runtime import make_folder, quiet
from pisr_plugin.engine.schema import check_network, check_options
from pisr_plugin.engine.stages import unroll
from pisr_plugin.errors import OptionsError
from pisr_plugin.files import write_whole
from pisr_plugin.inference import build

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
        name: Recipe or network.
        network: The network's type.
        scale: Scale factor.
        parameters: Number of parameters, frozen ones included.
        macs: Multi-Adds for one image, by convention.
    """

    name: str
    network: str
    scale: int
    parameters: int
    macs: dict[str, int]


def main(argv: list[str] | None = None) -> int:
    """Command line of ``tools/complexity.py`` and ``pisr-complexity``."""
    parser = argparse.ArgumentParser(description='Count parameters and Multi-Adds of recipes or of a network.')
    parser.add_argument('-opt', nargs='+', default=[], metavar='RECIPE', help='recipes (YAML)')
    parser.add_argument('--force_yml', nargs='+', default=[], metavar='A:B=C', help='change options of the recipes')
    parser.add_argument('--type', metavar='NETWORK', help='a registered network')
    parser.add_argument('--arg', nargs='+', default=[], metavar='NAME=VALUE', help='its arguments')
    parser.add_argument('--size', default='1280x720', metavar='WxH', help='size of the output (default: %(default)s)')
    parser.add_argument('--convention', nargs='+', choices=CONVENTIONS, default=['A'], help='how to count (default: A)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='save the figures there too')
    parser.add_argument('--plugin', action='append', default=[], metavar='MODULE', help='import this module first')
    args = parser.parse_args(argv)
    return cli.run(lambda: complexity(args))


def complexity(args: argparse.Namespace) -> int:
    """Counts what the flags ask for, prints a table and returns the exit code."""
    size = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', args.size)
    if not size:
        raise OptionsError(f'--size {args.size}: write width and height in pixels, e.g. 1280x720')
    width, height = int(size[1]), int(size[2])
    cli.import_plugins(args.plugin)
    networks = [_of_recipe(path, args.force_yml) for path in args.opt]
    if args.type:
        networks.append(_of_type(args.type, args.arg))
    if not networks:
        raise OptionsError('nothing to count: name recipes with -opt, or a network with --type')

    counted: dict[str, Complexity] = {}
    rows = []
    for name, options, scale in networks:
        key = json.dumps([options, scale], sort_keys=True)
        if key not in counted:  # a recipe and its baseline share their network
            counted[key] = count(options, scale, (width, height), args.convention)
        rows.append(replace(counted[key], name=name))
    print(markdown(rows, args.size))
    if args.json:
        make_folder(args.json.absolute().parent)
        write_whole(
            args.json, json.dumps({'size': [width, height], 'networks': [asdict(row) for row in rows]}, indent=1)
        )
    return 0


def _of_recipe(path: str, changes: list[str]) -> tuple[str, dict, int]:
    """Name, options and scale of the network that a recipe's last stage trains."""
    stage = unroll(override(compose(path), changes))[-1]
    check_options(stage.options, stage.place)
    return stage.recipe, stage.options[stage.network], stage.options['scale']


def _of_type(network: str, arguments: list[str]) -> tuple[str, dict, int]:
    options = override({'type': network}, arguments, '--arg')
    check_network(options, '--type')
    return network, options, argument(options, 'upscale', 'scale', default=1)


def count(
    options: Mapping, scale: int, size: tuple[int, int] = (1280, 720), conventions: Sequence[str] = ('A',)
) -> Complexity:
    """Counts one network.

    It is traced on images of a few pixels; from these the count for ``size`` follows exactly where it is linear in
    height and in width, as it is for convolutions. Where a check shows that it is not, ``size`` itself is traced.

    Args:
        options: Options of a registered network.
        scale: Scale factor.
        size: Width and height of the output.
        conventions: Keys of :data:`CONVENTIONS`.

    Raises:
        OptionsError: the network cannot be built, or cannot be counted at ``size``.
    """
    with quiet():
        net = build(options)
    channels = input_channels(options)
    counter, macs = _Counter(net, channels, scale), {}
    for convention in conventions:
        sides = [side // scale if convention == 'C' else Fraction(side, scale) for side in reversed(size)]
        operations = counter.count(*sides)
        macs[convention] = round(sum(operations.get(kind, 0) for kind in COUNTED[convention]))
    return Complexity(options['type'], options['type'], scale, parameter_count(net)[''], macs)


class _Counter:
    """Counts a network's operations for any LR size from traces of small ones."""

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
        """Operations by kind, for an LR image whose sides may be fractions where they stand for an area."""
        if self.linear:
            return self._interpolate(height, width)
        if Fraction(height).denominator != 1 or Fraction(width).denominator != 1:
            raise OptionsError(
                f'--size: the cost of {type(self.net).__name__} is not linear in the sides of the '
                f'image, so they must be multiples of its scale {self.scale}'
            )
        try:
            return self._trace(int(height), int(width))
        except RuntimeError as error:
            raise OptionsError(
                f'{type(self.net).__name__} cannot process an LR image of {width}x{height} pixels: {error}'
            ) from None

    def _interpolate(self, height: Fraction | int, width: Fraction | int) -> dict[str, Fraction]:
        """What is linear in height and in width follows from its values at four sizes."""
        low, high = self.SIDES
        v, u = Fraction(height - low) / (high - low), Fraction(width - low) / (high - low)
        share = {(low, low): (1 - v) * (1 - u), (low, high): (1 - v) * u, (high, low): v * (1 - u), (high, high): v * u}
        return {kind: sum(share[size] * self.corners[size][kind] for size in share) for kind in self.corners[low, low]}

    @torch.no_grad()
    def _trace(self, height: int, width: int) -> dict[str, int]:
        factors = [self.scale if name == 'gt' else 1 for name in input_names(self.net)]
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


# What each operator costs. All that is not here costs nothing.
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


def markdown(rows: list[Complexity], size: str) -> str:
    """A table of all rows, what is counted named above it."""
    conventions = list(rows[0].macs)
    lines = [f'Multi-Adds for an output of {size}, in G (10^9); one is a multiplication with its addition.', '']
    lines += [f'- {convention}: {CONVENTIONS[convention]}' for convention in conventions]
    heads = ''.join(f' Multi-Adds {convention} |' for convention in conventions)
    lines += ['', f'| name | network | scale | parameters |{heads}', '|---|---|---|---|' + '---|' * len(conventions)]
    for row in rows:
        figures = ' | '.join(f'{row.macs[c] / 1e9:.3f}' for c in conventions)
        lines.append(f'| {row.name} | {row.network} | x{row.scale} | {row.parameters:,} | {figures} |')
    return '\n'.join(lines)
