"""List recipes, trained models, and what a recipe can name: networks, losses, ..., taps; or a JSON schema of it.

``pisr-list recipes``, ``pisr-list networks``, ``pisr-list taps --type EDSR --arg num_feat=32``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pisr_plugin.cli import common
from pisr_plugin.utils.errors import OptionsError
from pisr_plugin.utils.files import write_whole

KINDS = ('networks', 'losses', 'model_types', 'datasets', 'metrics', 'optimizers')


def main(argv: list[str] | None = None) -> int:
    """Command line of ``pisr-list`` and ``tools/list.py``."""
    parser = common.Parser(description='List the recipes, and what a recipe can name.')
    commands = parser.add_subparsers(dest='command', required=True, metavar='WHAT')
    command = commands.add_parser('recipes', help='the recipes and grids that -opt takes by name')
    common.add_plugin_flag(command)
    for name in KINDS:
        command = commands.add_parser(name, help=f'the {name} that a recipe can name, or the arguments of one')
        command.add_argument('name', nargs='?', metavar='NAME', help='show the arguments of this one')
        common.add_plugin_flag(command)
    command = commands.add_parser('models', help='trained models that commands take by name, or the card of one')
    command.add_argument('name', nargs='?', metavar='MODEL', help='show the card of this name, file or run folder')
    common.add_plugin_flag(command)
    command = commands.add_parser('taps', help='places in a network whose features can be compared')
    common.add_network_flags(command)
    command.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help='of the LR image (default: 24 24, or the next multiple of window_size)',
    )
    common.add_recipe_flags(command, required=False)
    command = commands.add_parser('schema', help='JSON schema of recipes, for editors')
    command.add_argument('-o', '--output', type=Path, metavar='FILE', help='write it here instead of printing it')
    common.add_plugin_flag(command)
    args = parser.parse_args(argv)
    return common.run(lambda: list_(args))


def list_(args: argparse.Namespace) -> int:
    """Prints what the flags ask for; returns the exit code."""
    from pisr_plugin.config.json_schema import recipe_schema
    from pisr_plugin.config.runtime import make_folder
    from pisr_plugin.diagnostics.listing import (
        describe,
        describe_model,
        list_models,
        list_recipes,
        list_registered,
    )

    common.import_plugins(args.plugin)
    if args.command == 'recipes':
        lines = list_recipes()
    elif args.command == 'taps':
        lines = list_taps(args)
    elif args.command == 'models':
        lines = describe_model(args.name) if args.name else list_models()
    elif args.command == 'schema':
        lines = [json.dumps(recipe_schema(), indent=1)]
        if args.output:
            make_folder(args.output.parent)
            write_whole(args.output, lines.pop() + '\n')
    elif args.name:
        lines = describe(args.command, args.name)
    else:
        lines = list_registered(args.command)
    for line in lines:
        print(line)
    return 0


def list_taps(args: argparse.Namespace) -> list[str]:
    """Returns the taps of a network given by type and arguments, or of a recipe's student and teacher.

    Raises:
        OptionsError: Neither or both are given, or a network cannot be built or run.
    """
    from pisr_plugin.diagnostics.listing import complete, tap_lines

    if bool(args.type) == bool(args.opt):
        raise OptionsError('taps: give either a network, --type NAME --arg ..., or a recipe, -opt RECIPE.')
    if args.size and min(args.size) < 1:
        raise OptionsError(f'--size {args.size[0]} {args.size[1]}: expected two numbers above 0.')
    if args.type:
        return tap_lines(complete(common.network_options(args), args.size), args.size, '--arg')
    if args.arg:
        raise OptionsError('--arg belongs to --type; with -opt use --force_yml network_g:A=B.')
    stage = common.load_stage(args)
    lines: list[str] = []
    for key in ('network_g', 'network_t'):
        if stage.options.get(key):
            lines += [*([''] if lines else []), f'{key}:', *tap_lines(stage.options[key], args.size, key)]
    return lines
