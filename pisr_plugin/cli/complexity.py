"""Count a network's parameters and Multi-Adds.

``pisr-complexity -opt pisr_rfdn_x2 pisr_rfdn_x4``
``pisr-complexity --type FSRCNN --arg upscale=2 d=56 s=56 --convention A B C``
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pisr_plugin.cli import common
from pisr_plugin.utils.errors import OptionsError
from pisr_plugin.utils.files import write_whole

if TYPE_CHECKING:
    from pisr_plugin.evaluation.complexity import Complexity


def main(argv: list[str] | None = None) -> int:
    """Command line of ``tools/complexity.py`` and ``pisr-complexity``."""
    parser = common.Parser(description='Count parameters and Multi-Adds of recipes or of a network.')
    parser.add_argument('-opt', nargs='+', default=[], metavar='RECIPE', help=common.RECIPE_HELP)
    common.add_override_flag(parser)
    parser.add_argument(
        '--model',
        nargs='+',
        default=[],
        metavar='MODEL',
        help='names (`pisr-list models`), files of weights, run folders, trained recipes',
    )
    common.add_network_flags(parser)
    parser.add_argument('--size', default='1280x720', metavar='WxH', help='size of the output (default: %(default)s)')
    parser.add_argument(
        '--convention', nargs='+', choices=('A', 'B', 'C'), default=['A'], help='how to count (default: A)'
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='save the counts there too')
    common.add_plugin_flag(parser)
    args = parser.parse_args(argv)
    return common.run(lambda: complexity(args))


def complexity(args: argparse.Namespace) -> int:
    """Counts what the flags ask for, prints a table and returns the exit code."""
    from pisr_plugin.config.runtime import make_folder
    from pisr_plugin.evaluation.complexity import count

    size = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', args.size)
    if not size:
        raise OptionsError(f'--size {args.size}: not a size. Expected width and height in pixels, such as 1280x720.')
    width, height = int(size[1]), int(size[2])
    common.import_plugins(args.plugin)
    networks = [_of_recipe(path, args.force_yml) for path in args.opt]
    networks += [_of_model(name) for name in args.model]
    if args.type:
        networks.append(_of_type(args))
    if not networks:
        raise OptionsError('nothing to count. Expected recipes (-opt), models (--model) or a network (--type).')

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
    """Returns name, options and scale of the network that a recipe's last stage trains."""
    from pisr_plugin.config.plugins import read_recipe
    from pisr_plugin.config.schema import check_options
    from pisr_plugin.config.stages import unroll

    stage = unroll(read_recipe(path, changes))[-1]
    check_options(stage.options, stage.option_path)
    return stage.recipe, stage.options[stage.network], stage.options['scale']


def _of_model(name: str) -> tuple[str, dict, int]:
    card = common.find_card(name)
    return card.name, card.network, card.scale


def _of_type(args: argparse.Namespace) -> tuple[str, dict, int]:
    from pisr_plugin.archs.network_info import argument
    from pisr_plugin.config.schema import check_network

    options = common.network_options(args)
    check_network(options, '--type')
    return args.type, options, argument(options, 'upscale', 'scale', default=1)


def markdown(rows: list[Complexity], size: str) -> str:
    """Returns a table of all rows; above it the conventions by which they were counted."""
    from pisr_plugin.evaluation.complexity import CONVENTIONS

    conventions = list(rows[0].macs)
    lines = [
        f'Multi-Adds for an output of {size}, in G (10^9). One Multi-Add is a multiplication with its addition.',
        '',
    ]
    lines += [f'- {convention}: {CONVENTIONS[convention]}' for convention in conventions]
    heads = ''.join(f' Multi-Adds {convention} |' for convention in conventions)
    lines += ['', f'| name | network | scale | parameters |{heads}', '|---|---|---|---|' + '---|' * len(conventions)]
    for row in rows:
        figures = ' | '.join(f'{row.macs[c] / 1e9:.3f}' for c in conventions)
        lines.append(f'| {row.name} | {row.network} | x{row.scale} | {row.parameters:,} | {figures} |')
    return '\n'.join(lines)
