"""List what a recipe can name: networks, losses, models, datasets, metrics, taps; or all of it as a JSON schema.

``python tools/list.py networks``, ``python tools/list.py taps --type EDSR --arg num_feat=32``
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import warnings
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
    Registry,
)
from torch import Tensor, nn

from pisr_plugin.analysis.dry_run import Row, table, trace
from pisr_plugin.archs.traits import argument, input_channels, input_names, window_size
from pisr_plugin.engine import cli
from pisr_plugin.engine.docstrings import argument_docs, first_sentence
from pisr_plugin.engine.json_schema import recipe_schema
from pisr_plugin.engine.recipe import override
from pisr_plugin.engine.runtime import make_folder, quiet
from pisr_plugin.engine.schema import argument_type, arguments, check_network, registered, registered_names
from pisr_plugin.errors import OptionsError, choice
from pisr_plugin.files import write_whole

REGISTRIES = {
    'networks': ARCH_REGISTRY,
    'losses': LOSS_REGISTRY,
    'models': MODEL_REGISTRY,
    'datasets': DATASET_REGISTRY,
    'metrics': METRIC_REGISTRY,
}
# What a network needs is supplied here where its taps hardly depend on it.
_STAND_INS = {'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 4, 'scale': 4}


def main(argv: list[str] | None = None) -> int:
    """Command line of ``tools/list.py`` and ``pisr-list``."""
    parser = argparse.ArgumentParser(description='List what a recipe can name.')
    commands = parser.add_subparsers(dest='command', required=True, metavar='WHAT')
    for name in REGISTRIES:
        command = commands.add_parser(name, help=f'registered {name}, or the arguments of one')
        command.add_argument('name', nargs='?', metavar='NAME', help='show the arguments of this one')
        cli.add_plugin_flag(command)
    command = commands.add_parser('taps', help='places in a network whose features can be compared')
    command.add_argument('--type', help='a registered network')
    command.add_argument(
        '--arg', nargs='+', default=[], metavar='A=B', help='its arguments, e.g. num_feat=32 upscale=2'
    )
    command.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help='of the LR image (default: 24 24, or the next multiple of window_size)',
    )
    cli.add_recipe_flags(command, required=False)
    command = commands.add_parser('schema', help='JSON schema of recipes, for editors')
    command.add_argument('-o', '--output', type=Path, metavar='FILE', help='write it here instead of printing it')
    cli.add_plugin_flag(command)
    args = parser.parse_args(argv)
    return cli.run(lambda: list_(args))


def list_(args: argparse.Namespace) -> int:
    """Prints what the flags ask for; returns the exit code."""
    cli.import_plugins(args.plugin)
    if args.command == 'taps':
        lines = list_taps(args)
    elif args.command == 'schema':
        lines = [json.dumps(recipe_schema(), indent=1)]
        if args.output:
            make_folder(args.output.parent)
            write_whole(args.output, lines.pop() + '\n')
    elif args.name:
        lines = describe(REGISTRIES[args.command], args.name)
    else:
        lines = list_registered(REGISTRIES[args.command])
    for line in lines:
        print(line)
    return 0


# -------------------------------------------------------------------------------------------------- registries


def list_registered(registry: Registry) -> list[str]:
    """One line for each registered object: name, package, what its docstring says first."""
    rows = []
    for name in sorted(registered_names(registry), key=str.lower):
        target = registered(registry, name)
        rows.append((name, target.__module__.partition('.')[0], first_sentence(target)))
    return _columns(rows)


def describe(registry: Registry, name: str) -> list[str]:
    """What a registered object is, and a line for each argument: name, type, default, what its docstring says.

    Raises:
        OptionsError: nothing is registered under that name.
    """
    target = _registered(registry, name)
    docs = argument_docs(target)
    rows = []
    for key, parameter in arguments(target)[0].items():
        default = 'required' if parameter.default is parameter.empty else f'= {_text(parameter.default)}'
        text = docs[key].text if key in docs else ''
        rows.append((key, argument_type(target, key), default, text))
    if 'opt' in docs:  # of a dataset: what its options may hold
        rows += [(f'  {key}', entry.kind, '', entry.text) for key, entry in docs.items() if key != 'opt']
    return [f'{name} ({target.__module__}): {first_sentence(target)}', *(f'  {line}' for line in _columns(rows))]


def _registered(registry: Registry, name: str) -> Any:
    target = registered(registry, name)
    if target is None:
        raise OptionsError(f'{name!r} is not registered. {choice(name, registered_names(registry))}')
    return target


def _text(value: object) -> str:
    return value.__name__ if inspect.isclass(value) else repr(value)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


# -------------------------------------------------------------------------------------------------- taps


def list_taps(args: argparse.Namespace) -> list[str]:
    """The taps of a network given by type and arguments, or of a recipe's student and teacher.

    Raises:
        OptionsError: neither or both are given, or a network cannot be built or run.
    """
    if bool(args.type) == bool(args.opt):
        raise OptionsError('taps: give either a network, --type NAME --arg ..., or a recipe, -opt RECIPE.')
    if args.size and min(args.size) < 1:
        raise OptionsError(f'--size {args.size[0]} {args.size[1]}: two numbers above 0 are needed.')
    if args.type:
        option = override({'type': args.type}, args.arg, '--arg')
        target = _registered(ARCH_REGISTRY, option['type'])
        for key, value in _STAND_INS.items():
            if key not in option and _needs(target, key):
                option[key] = option.get('num_in_ch', value) if key == 'num_out_ch' else value
        if 'img_size' in arguments(target)[0]:  # SwinIR cannot be built with the default of its own
            option.setdefault('img_size', _lr_size(option, args.size)[0])
        return tap_lines(option, args.size, '--arg')
    if args.arg:
        raise OptionsError('--arg belongs to --type; with -opt use --force_yml network_g:A=B.')
    stage = cli.load_stage(args)
    lines: list[str] = []
    for key in ('network_g', 'network_t'):
        if stage.options.get(key):
            lines += [*([''] if lines else []), f'{key}:', *tap_lines(stage.options[key], args.size, key)]
    return lines


def tap_lines(option: dict, size: Sequence[int] | None = None, place: str = '') -> list[str]:
    """The table of a network's taps, as text.

    Args:
        option: Its options, with ``type``.
        size: Height and width of the LR image.
        place: Where the options were given, for messages.

    Raises:
        OptionsError: it cannot be built, or not run on noise of this size.
    """
    check_network(option, place)
    with quiet(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        net, inputs, size = _dry_network(option, size, place)
        calls = _run(net, inputs, place)
    rows = table(calls, list(inputs.values()), size, getattr(net, 'default_tap', None))
    given = ', '.join(f'{key}={value!r}' for key, value in option.items() if key != 'type')
    seen = ', '.join(f'{name} {_shape(value.shape)}' for name, value in inputs.items())
    parameters = sum(p.numel() for p in net.parameters())
    return [f'{option["type"]}({given}): {parameters:,} parameters, sees {seen}', *_tap_columns(rows)]


def _needs(target: Any, name: str) -> bool:
    parameter = arguments(target)[0].get(name)
    return parameter is not None and parameter.default is parameter.empty


def _dry_network(
    option: dict, size: Sequence[int] | None, place: str
) -> tuple[nn.Module, dict[str, Tensor], tuple[int, int]]:
    """Builds a network and noise images for it; returns both and the size of the LR image."""
    window = window_size(option)
    try:
        with redirect_stdout(None):  # BasicSR prints when a name has its suffix
            net = build_network(option)
    except Exception as error:  # the constructor of any network: whatever it raises is about its arguments
        hint = f' (img_size must be a multiple of window_size, {window}.)' if window > 1 else ''
        raise OptionsError(f'{place}: {option["type"]} cannot be built: {error}{hint}') from None
    scale = argument(option, 'upscale', 'scale', default=1)
    channels = input_channels(option)
    height, width = _lr_size(option, size)
    generator = torch.Generator().manual_seed(0)
    shapes = {'lq': (1, channels, height, width), 'gt': (1, channels, height * scale, width * scale)}
    seen = input_names(net)
    if not set(seen) <= set(shapes):
        raise OptionsError(f'{place}: {option["type"]} sees {", ".join(seen)}; noise stands in for lq and gt alone.')
    return net, {name: torch.rand(shapes[name], generator=generator) for name in seen}, (height, width)


def _lr_size(option: dict, size: Sequence[int] | None) -> tuple[int, int]:
    """The size asked for, else 24x24, or what comes next where a network works in windows."""
    if size:
        return size[0], size[1]
    window = window_size(option)
    side = window * math.ceil(24 / window)
    return side, side


def _run(net: nn.Module, inputs: dict[str, Tensor], place: str) -> list:
    try:
        return trace(net, list(inputs.values()))
    except Exception as error:  # the forward pass of any network
        seen = ', '.join(f'{name} {_shape(value.shape)}' for name, value in inputs.items())
        raise OptionsError(
            f'{place}: {type(net).__name__} cannot process {seen}: {error or type(error).__name__}\n'
            'Try another --size HEIGHT WIDTH. Only networks that take one image can be tried.'
        ) from None


def _tap_columns(rows: Iterable[Row]) -> list[str]:
    cells = [('', 'tap', 'calls', 'feature', 'parameters', '')]
    cells += [
        (
            '>' if row.notes else '',
            row.tap,
            str(row.calls),
            _shape(row.shape),
            f'{row.parameters:,}',
            '; '.join(row.notes),
        )
        for row in rows
    ]
    lines = _columns(cells)
    if not any('LR size' in note for row in rows for note in row.notes):
        lines.append('No candidates: no module sees or gives features of LR size that are enlarged next.')
    return lines


def _shape(shape: Sequence[int]) -> str:
    return 'x'.join(map(str, shape))
