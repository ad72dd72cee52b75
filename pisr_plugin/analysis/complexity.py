"""Count a network's parameters and Multi-Adds.

``python tools/complexity.py -opt options/pisr_rfdn_x*.yml``
``python tools/complexity.py --type FSRCNN --arg upscale=2 d=56 s=56 --convention A B C``
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import product
from math import prod
from pathlib import Path

import torch
from basicsr.archs import build_network
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

from pisr_plugin.archs.pi_teacher_arch import argument
from pisr_plugin.engine import cli
from pisr_plugin.engine.recipe import compose, override
from pisr_plugin.engine.runtime import make_folder, quiet, write_text_atomic
from pisr_plugin.engine.schema import NETWORK, check_options
from pisr_plugin.engine.stages import unroll
from pisr_plugin.errors import OptionsError

CONVENTIONS = {
    'A': 'multiplications of convolutions, linear layers and matrix products; a transposed convolution once per input '
         'position; no biases, activations, norms, pooling or resizing',
    'B': 'as A, but a transposed convolution is charged its whole kernel at every output position (CARN; FSRCNN in '
         "the PISR paper's Table 2)",
    'C': 'as A, plus one per added bias, per ReLU, LeakyReLU or PReLU element and per element that enters a global '
         "average, for an LR image of rounded-down size (ptflops; IDN and IMDN in the PISR paper's Table 2)",
}


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
        write_text_atomic(args.json, json.dumps({'size': [width, height], 'networks': [asdict(row) for row in rows]},
                                                indent=1))
    return 0


def _of_recipe(path: str, changes: list[str]) -> tuple[str, dict, int]:
    """Name, options and scale of the network that a recipe's last stage trains."""
    stage = unroll(override(compose(path), changes))[-1]
    check_options(stage.options, f'stages.{stage.name}' if stage.name else '')
    name = stage.folder.parent.name if stage.name else stage.folder.name
    return name, stage.options[stage.network], stage.options['scale']


def _of_type(network: str, arguments: list[str]) -> tuple[str, dict, int]:
    options = {'type': network}
    for entry in arguments:
        override(options, [entry])
    problems: list[str] = []
    NETWORK.check(options, '--type', problems)
    if problems:
        raise OptionsError('\n'.join(problems))
    return network, options, argument(options, 'upscale', 'scale', default=1)


def count(options: Mapping, scale: int, size: tuple[int, int] = (1280, 720),
          conventions: Sequence[str] = ('A',)) -> Complexity:
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
    try:
        with quiet():
            net = build_network(dict(options)).eval()
    except (TypeError, ValueError, AssertionError) as error:
        raise OptionsError(f'{options["type"]} cannot be built: {error}') from None
    channels = argument(options.get('decoder', options), 'num_in_ch', 'in_chans', default=3)
    counter = _Counter(net, channels, scale)
    macs = {}
    for convention in conventions:
        sides = [side // scale if convention == 'C' else Fraction(side, scale) for side in reversed(size)]
        macs[convention] = counter.count(convention, *sides)
    return Complexity(options['type'], options['type'], scale, parameter_count(net)[''], macs)


class _Counter:
    """Counts a network's Multi-Adds for any LR size from traces of small ones."""

    SIDES = 8, 16  # multiples of 8, which window attention needs
    CHECK = 24, 32

    def __init__(self, net: nn.Module, channels: int, scale: int) -> None:
        self.net, self.channels, self.scale = net, channels, scale

    def count(self, convention: str, height: Fraction | int, width: Fraction | int) -> int:
        try:
            corners = {size: self._trace(convention, *size) for size in product(self.SIDES, repeat=2)}
            linear = _bilinear(corners, *self.CHECK) == self._trace(convention, *self.CHECK)
        except RuntimeError:  # the network cannot take images this small
            linear = False
        if linear:
            return round(_bilinear(corners, height, width))
        if Fraction(height).denominator != 1 or Fraction(width).denominator != 1:
            raise OptionsError(f'--size: the cost of {type(self.net).__name__} is not linear in the sides of the '
                               f'image, so they must be multiples of its scale {self.scale}')
        try:
            return self._trace(convention, int(height), int(width))
        except RuntimeError as error:
            raise OptionsError(f'{type(self.net).__name__} cannot process an LR image of {width}x{height} pixels: '
                               f'{error}') from None

    @torch.no_grad()
    def _trace(self, convention: str, height: int, width: int) -> int:
        factors = [self.scale if name == 'gt' else 1 for name in getattr(self.net, 'inputs', ('lq',))]
        images = tuple(torch.zeros(1, self.channels, height * factor, width * factor) for factor in factors)
        analyzer = FlopAnalyzer(self.net, images).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return analyzer.tracer_warnings('none').clear_op_handles().set_op_handle(**_handles(convention)).total()


def _bilinear(corners: Mapping[tuple[int, int], int], height: Fraction | int, width: Fraction | int) -> Fraction:
    """The value at (height, width) of the function that is linear in each and takes four values as given."""
    low, high = _Counter.SIDES
    v, u = Fraction(height - low) / (high - low), Fraction(width - low) / (high - low)
    return ((1 - v) * (1 - u) * corners[low, low] + (1 - v) * u * corners[low, high]
            + v * (1 - u) * corners[high, low] + v * u * corners[high, high])


def _handles(convention: str) -> dict:
    """What each operator costs."""
    handles = {'aten::addmm': addmm_flop_jit, 'aten::bmm': bmm_flop_jit, 'aten::einsum': einsum_flop_jit,
               'aten::linear': linear_flop_jit, 'aten::matmul': matmul_flop_jit, 'aten::mm': matmul_flop_jit,
               'aten::_convolution': {'A': conv_flop_jit, 'B': _conv_at_outputs, 'C': _conv_and_bias}[convention]}
    if convention == 'C':
        activations = [f'aten::{name}{suffix}' for name in ('relu', 'leaky_relu', 'prelu') for suffix in ('', '_')]
        handles |= dict.fromkeys(activations, elementwise_flop_counter(0, 1))
        handles |= dict.fromkeys(['aten::mean', 'aten::adaptive_avg_pool2d'], elementwise_flop_counter(1, 0))
    return handles


def _conv_at_outputs(inputs: list, outputs: list) -> int:
    return prod(get_shape(inputs[1])) * prod(get_shape(outputs[0])[2:])


def _conv_and_bias(inputs: list, outputs: list) -> int:
    bias = prod(get_shape(outputs[0])) if get_shape(inputs[2]) else 0
    return sum(conv_flop_jit(inputs, outputs).values()) + bias


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
