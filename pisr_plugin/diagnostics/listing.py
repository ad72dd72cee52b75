"""Lists what is registered, its arguments, the recipes of the package, and the taps of a network."""

from __future__ import annotations

import inspect
import itertools
import math
import warnings
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
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

from pisr_plugin.archs.network_info import argument, input_channels, required_inputs, window_size
from pisr_plugin.config.compose import compose
from pisr_plugin.config.parse import dump
from pisr_plugin.config.recipes import OPTIONS, find_recipe, recipe_names
from pisr_plugin.config.rules import argument_type, arguments, registered, registered_names
from pisr_plugin.config.schema import check_network
from pisr_plugin.distill.find_taps import Row, table, trace
from pisr_plugin.inference import find_model
from pisr_plugin.inference.card import as_mapping, read_card
from pisr_plugin.models.optimizers import find_optimizer, is_usable, optimizers
from pisr_plugin.utils.docstrings import argument_docs, first_sentence, sentence_of
from pisr_plugin.utils.errors import OptionsError, did_you_mean
from pisr_plugin.utils.logging import quiet

REGISTRIES = {
    'networks': ARCH_REGISTRY,
    'losses': LOSS_REGISTRY,
    'model_types': MODEL_REGISTRY,
    'datasets': DATASET_REGISTRY,
    'metrics': METRIC_REGISTRY,
}
_STAND_INS = {'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 4, 'scale': 4}


def list_registered(kind: str) -> list[str]:
    """Returns one line for each registered object: name, package, first sentence of its docstring.

    Args:
        kind: A key of :data:`REGISTRIES`, or ``optimizers``.
    """
    if kind == 'optimizers':
        named = {name: cls for name, cls in optimizers().items() if is_usable(cls)}
    else:
        named = {name: registered(REGISTRIES[kind], name) for name in registered_names(REGISTRIES[kind])}
    rows = [
        (name, named[name].__module__.partition('.')[0], first_sentence(named[name]))
        for name in sorted(named, key=str.lower)
    ]
    return _columns(rows)


def list_recipes() -> list[str]:
    """Returns one line for each recipe and grid of the package: name, networks, title or first comment."""
    rows = []
    for name in recipe_names():
        path = find_recipe(name, OPTIONS)
        content = compose(path)
        if 'rows' in content or 'axes' in content:
            rows.append((name, 'grid', content.get('title', '')))
        else:
            networks = [content[key]['type'] for key in ('network_t', 'network_g') if content.get(key)]
            rows.append((name, f'x{content["scale"]} {" -> ".join(networks)}', _first_comment(path.read_text('utf-8'))))
    return _columns(rows)


def _first_comment(text: str) -> str:
    """Returns the first sentence of the comment that a YAML file begins with."""
    lines = itertools.takewhile(lambda line: line.startswith('#'), text.splitlines())
    return sentence_of('\n'.join(line.lstrip('# ') for line in lines if 'yaml-language-server' not in line))


def describe(kind: str, name: str) -> list[str]:
    """Returns what a registered object is, and one line for each argument: name, type, default, docstring.

    Args:
        kind: A key of :data:`REGISTRIES`.
        name: Name under which the object is registered.

    Raises:
        OptionsError: Nothing is registered under that name.
    """
    optimizer = kind == 'optimizers'
    target = find_optimizer(name, kind) if optimizer else _registered(REGISTRIES[kind], name)
    docs = argument_docs(target)
    rows = []
    for key, parameter in arguments(target)[0].items():
        if optimizer and key == 'params':
            continue
        default = 'required' if parameter.default is parameter.empty else f'= {_text(parameter.default)}'
        text = docs[key].text if key in docs else ''
        rows.append((key, argument_type(target, key), default, text))
    if 'opt' in docs:  # of a dataset: what its options may hold
        rows += [(f'  {key}', entry.kind, '', entry.text) for key, entry in docs.items() if key != 'opt']
    return [f'{name} ({target.__module__}): {first_sentence(target)}', *(f'  {line}' for line in _columns(rows))]


def _registered(registry: Registry, name: str) -> Any:
    target = registered(registry, name)
    if target is None:
        raise OptionsError(f'{name!r} is not registered. {did_you_mean(name, registered_names(registry))}')
    return target


def _text(value: object) -> str:
    return value.__name__ if inspect.isclass(value) else repr(value)


def list_models() -> list[str]:
    """Returns one line for each trained model that has a name: name, network, what it does, PSNR on the first set."""
    rows = []
    for path in find_model.list_models().values():
        card = read_card(path)
        (protocol, sets), *_ = card.measured.items() or [('', {})]
        (name, values), *_ = sets.items() or [('', {})]
        figure = f'{values["psnr"]:.2f} dB on {name} ({protocol})' if 'psnr' in values else ''
        rows.append((card.name, card.network['type'], f'x{card.scale}', card.color, f'{card.parameters:,}', figure))
    return _columns(rows) if rows else ['No models. Expected files with cards in a folder that PISR_MODELS names.']


def describe_model(name: str) -> list[str]:
    """Returns the card of a model as lines.

    Args:
        name: A model, see :func:`pisr_plugin.inference.find_model.find_model`.

    Raises:
        CheckpointError: there is no such model, or its file does not fit its card.
    """
    return dump(as_mapping(find_model.find_model(name))).splitlines()


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def tap_lines(option: dict, size: Sequence[int] | None = None, option_path: str = '') -> list[str]:
    """Returns the table of a network's taps as lines.

    Args:
        option: The network's options, with ``type``.
        size: Height and width of the LR image, in pixels.
        option_path: Where the options were given, for messages.

    Raises:
        OptionsError: The network cannot be built, or cannot process noise of this size.
    """
    check_network(option, option_path)
    with quiet(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        net, inputs, size = _dry_network(option, size, option_path)
        calls = _run(net, inputs, option_path)
    rows = table(calls, list(inputs.values()), size, getattr(net, 'default_tap', None))
    given = ', '.join(f'{key}={value!r}' for key, value in option.items() if key != 'type')
    seen = ', '.join(f'{name} {_shape(value.shape)}' for name, value in inputs.items())
    parameters = sum(p.numel() for p in net.parameters())
    return [f'{option["type"]}({given}): {parameters:,} parameters, sees {seen}', *_tap_columns(rows)]


def complete(option: dict, size: Sequence[int] | None) -> dict:
    """Adds the arguments that a network needs where its taps hardly depend on their values.

    Args:
        option: The network's options, with ``type``.
        size: Height and width of the LR image, in pixels.

    Raises:
        OptionsError: The network is not registered.
    """
    option, target = dict(option), _registered(ARCH_REGISTRY, option['type'])
    for key, value in _STAND_INS.items():
        if key not in option and _needs(target, key):
            option[key] = option.get('num_in_ch', value) if key == 'num_out_ch' else value
    if 'img_size' in arguments(target)[0]:  # SwinIR cannot be built with its own default
        option.setdefault('img_size', _lr_size(option, size)[0])
    return option


def _needs(target: Any, name: str) -> bool:
    parameter = arguments(target)[0].get(name)
    return parameter is not None and parameter.default is parameter.empty


def _dry_network(
    option: dict, size: Sequence[int] | None, option_path: str
) -> tuple[nn.Module, dict[str, Tensor], tuple[int, int]]:
    """Builds a network and noise images for it; returns both and the size of the LR image."""
    window = window_size(option)
    try:
        with redirect_stdout(None):  # BasicSR prints when a name has its suffix
            net = build_network(option)
    except Exception as error:  # a constructor may raise anything; its arguments are the reason
        hint = f' (img_size must be a multiple of window_size, {window}.)' if window > 1 else ''
        raise OptionsError(f'{option_path}: {option["type"]} cannot be built: {error}{hint}') from None
    scale = argument(option, 'upscale', 'scale', default=1)
    channels = input_channels(option)
    height, width = _lr_size(option, size)
    generator = torch.Generator().manual_seed(0)
    shapes = {'lq': (1, channels, height, width), 'gt': (1, channels, height * scale, width * scale)}
    seen = required_inputs(net)
    if not set(seen) <= set(shapes):
        raise OptionsError(
            f'{option_path}: {option["type"]} sees {", ".join(seen)}; noise stands in for lq and gt alone.'
        )
    return net, {name: torch.rand(shapes[name], generator=generator) for name in seen}, (height, width)


def _lr_size(option: dict, size: Sequence[int] | None) -> tuple[int, int]:
    """Returns the size asked for, else 24x24, or the next multiple of the network's window."""
    if size:
        return size[0], size[1]
    window = window_size(option)
    side = window * math.ceil(24 / window)
    return side, side


def _run(net: nn.Module, inputs: dict[str, Tensor], option_path: str) -> list:
    try:
        return trace(net, list(inputs.values()))
    except Exception as error:  # the forward pass of any network
        seen = ', '.join(f'{name} {_shape(value.shape)}' for name, value in inputs.items())
        raise OptionsError(
            f'{option_path}: {type(net).__name__} cannot process {seen}: {error or type(error).__name__}\n'
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
