"""The card of a weights file: which network it holds, where it comes from, what it reaches.

It is the JSON file beside the weights, under their name: ``fsrcnn_x2.json`` for ``fsrcnn_x2.safetensors``. Weights
alone do not say all of it: those of FSRCNN are the same tensors at every scale.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY

from pisr_plugin.archs.network_info import argument
from pisr_plugin.utils.checks import is_number, is_whole
from pisr_plugin.utils.errors import CheckpointError, DataError, did_you_mean, shown
from pisr_plugin.utils.files import write_whole
from pisr_plugin.utils.text_files import read_json

KIND = {'kind': 'model card', 'version': 1}
COLORS = ('y', 'rgb')
WEIGHTS = ('.safetensors', '.pth')


@dataclass(frozen=True)
class Card:
    """What is known of a weights file.

    Attributes:
        weights: The file.
        network: Options of the network, with ``type``.
        scale: Upscaling factor.
        color: ``y`` for a network of luminance, ``rgb``.
        param_key: The weights to take from the file: ``params`` or ``params_ema``.
        sha256: Checksum of the file; empty: not known.
        parameters: Number of the network's parameters; 0: not known.
        trained: How it was trained: recipe, data, iterations, seconds, version, ...
        measured: By protocol and test set the mean of each metric.
        licence: That of the weights and of the data they were trained on.
    """

    weights: Path
    network: dict[str, Any]
    scale: int
    color: str
    param_key: str = 'params'
    sha256: str = ''
    parameters: int = 0
    trained: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    licence: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the weights file without its suffix."""
        return self.weights.stem

    @property
    def channels(self) -> int:
        """Channels of the network's input."""
        return 1 if self.color == 'y' else 3

    def check_file(self) -> None:
        """Compares the weights file with the card.

        Raises:
            CheckpointError: the file is missing, or not the one that the card describes.
        """
        if not self.weights.is_file():
            raise CheckpointError(f'{self.weights} does not exist. Its card is {card_file(self.weights)}.')
        found = checksum(self.weights)
        if self.sha256 and found != self.sha256:
            raise CheckpointError(
                f'{self.weights} is not the file that {card_file(self.weights)} describes (found SHA-256 '
                f'{found[:12]}...). Expected {self.sha256[:12]}... Put the right file there, or remove the card.'
            )


def card_file(weights: str | os.PathLike) -> Path:
    """Returns where the card of a weights file lies."""
    return Path(weights).with_suffix('.json')


def checksum(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file, as hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def write_card(card: Card) -> Path:
    """Writes a card beside its weights file; returns the card's path."""
    path = card_file(card.weights)
    write_whole(path, json.dumps({**KIND, **as_mapping(card)}, indent=1, allow_nan=False) + '\n')
    return path


def as_mapping(card: Card) -> dict[str, Any]:
    """Returns what a card's file holds."""
    known = {key: value for key, value in asdict(card).items() if value}
    return {**known, 'weights': card.weights.name}


def read_card(path: str | os.PathLike) -> Card:
    """Reads a card and checks all of it.

    Args:
        path: The card, or the weights file that it lies beside.

    Raises:
        DataError: the file is missing, no card, or a value of it does not fit; the message names the key.
    """
    path = card_file(path)
    content = read_json(path, expected=KIND)
    for key, value in content.items():
        if key not in (*_FIELDS, *KIND):
            raise DataError(f'{path}: {key}: no such key. {did_you_mean(key, _FIELDS)}')
        if key in _FIELDS and not _FIELDS[key][0](value):
            raise DataError(f'{path}: {key}: wrong value (found {shown(value)}). Expected {_FIELDS[key][1]}.')
    missing = [key for key in ('weights', 'network', 'scale', 'color') if key not in content]
    if missing:
        raise DataError(f'{path}: {missing[0]}: missing.')
    kind = content['network']['type']
    if kind not in ARCH_REGISTRY:
        names = [name for name, _ in ARCH_REGISTRY]
        raise DataError(f'{path}: network.type: no such network (found {kind!r}). {did_you_mean(kind, names)}')
    found = {key: content[key] for key in _FIELDS if key in content}
    card = Card(**{**found, 'weights': path.parent / content['weights']})
    scale = argument(card.network, 'upscale', 'scale', default=card.scale)
    if scale != card.scale:
        raise DataError(f'{path}: scale: differs from that of the network (found {card.scale} and {shown(scale)}).')
    return card


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 4096 and value.isprintable()


def _is_file_name(value: object) -> bool:
    return _is_text(value) and Path(value).name == value and Path(value).suffix in WEIGHTS  # type: ignore[arg-type]


def _is_network(value: object) -> bool:
    return isinstance(value, dict) and _is_text(value.get('type'))


def _is_flat(value: object) -> bool:
    """Whether a value is a mapping of text, numbers and lists of them."""
    plain = (str, int, float, bool, type(None))
    return isinstance(value, dict) and all(
        isinstance(one, plain) or (isinstance(one, list) and all(isinstance(part, plain) for part in one))
        for one in value.values()
    )


def _is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_measured(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    sets = [sets for sets in value.values() if isinstance(sets, dict)]
    values = [metrics for one in sets for metrics in one.values() if isinstance(metrics, dict)]
    return (
        len(sets) == len(value)
        and len(values) == sum(map(len, sets))
        and all(is_number(one) for metrics in values for one in metrics.values())
    )


# of each key: whether a value fits, and what is expected
_FIELDS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    'weights': (_is_file_name, f'the name of a file beside the card that ends in {" or ".join(WEIGHTS)}'),
    'network': (_is_network, 'options of a network, with its type'),
    'scale': (lambda value: is_whole(value, 1, 8), 'a whole number from 1 to 8'),
    'color': (lambda value: value in COLORS, ' or '.join(COLORS)),
    'param_key': (lambda value: value in ('params', 'params_ema'), 'params or params_ema'),
    'sha256': (lambda value: _is_text(value) and len(str(value)) == 64, '64 hexadecimal digits'),
    'parameters': (lambda value: is_whole(value, 0, 2**60 - 1), 'a whole number from 0 on'),
    'trained': (_is_flat, 'a mapping of text and numbers'),
    'measured': (_is_measured, 'numbers by protocol, test set and metric'),
    'licence': (_is_texts, 'a mapping of text'),
}
