"""Finds the network that a user names: one that ships with the package, a weights file, or a run folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pisr_plugin.archs.network_info import input_channels
from pisr_plugin.inference import checkpoint
from pisr_plugin.inference.card import Card, card_file, read_card
from pisr_plugin.inference.identify import match
from pisr_plugin.utils.errors import CheckpointError, OptionsError, did_you_mean

SHIPPED = Path(__file__).parents[1] / 'zoo'
DEFAULT = 'fsrcnn_x{}'  # of each scale: small, and it needs little memory however large the photo is
FOLDERS = 'PISR_MODELS'  # environment variable: more folders of weights with cards, as PATH has them


def list_models() -> dict[str, Path]:
    """Returns the cards of all models that have a name: shipped ones, and those in the folders of ``PISR_MODELS``."""
    own = [Path(folder) for folder in os.environ.get(FOLDERS, '').split(os.pathsep) if folder]
    return {path.stem: path for folder in (SHIPPED, *own) for path in sorted(folder.glob('*.json'))}


def default_model(scale: int | None = None) -> str:
    """Returns the name of the model that upscales where the user names none.

    Args:
        scale: Upscaling factor; None: 2.

    Raises:
        OptionsError: there is none for this scale.
    """
    name, models = DEFAULT.format(scale or 2), list_models()
    if name not in models:
        own = [other for other in models if other.startswith(DEFAULT.format(''))]
        raise OptionsError(
            f'--scale {scale or 2}: no model for this scale comes with the package (found {", ".join(own) or "none"}). '
            'Name a network of your own: --model FILE.'
        )
    return name


def find_model(model: str | os.PathLike, scale: int | None = None) -> Card:
    """Finds a model and checks that its file is the one that its card describes.

    Args:
        model: A weights file, a run folder, or the name of a model, see :func:`list_models`. A file without a card is
            recognised by its tensors, if it is one of this package's networks.
        scale: Upscaling factor. It is needed for a file without a card that fits several, and otherwise checked.

    Raises:
        CheckpointError: there is no such model, its file does not fit its card, or has another scale.
        DataError: its card is damaged.
    """
    card = _card(model, scale)
    if scale not in (None, card.scale):
        raise CheckpointError(f'{model}: a model for x{card.scale} (found --scale {scale}). Expected {card.scale}.')
    return card


def _card(model: str | os.PathLike, scale: int | None) -> Card:
    path = Path(model)
    if path.is_dir():
        path = _product(path)
    elif not path.exists():
        cards = list_models()
        if str(model) not in cards:
            raise CheckpointError(
                f'{model}: no such model, file or folder. {did_you_mean(model, cards)}. `pisr-list models` shows them.'
            )
        path = cards[str(model)]
    if path.suffix == '.json' or card_file(path).is_file():
        card = read_card(path)
        if path.suffix != '.json' and card.weights.name != path.name:
            raise CheckpointError(f'{card_file(path)} is the card of {card.weights.name}, not of {path.name}.')
        card.check_file()
        return card
    return _recognised(path, scale)


def _product(folder: Path) -> Path:
    """Returns the card of what a run left: of the newest student, else of the newest network, below ``folder``."""
    for label in ('g', 't'):
        found = [path for path in _cards(folder) if path.stem == f'net_{label}_latest']
        if found:
            return max(found, key=lambda path: path.stat().st_mtime)
    raise CheckpointError(
        f'{folder}: no finished stage (found no models/net_g_latest.json). Expected a run folder, such as '
        'experiments/pisr_fsrcnn_x2; a file of weights can be named too.'
    )


def _cards(folder: Path) -> Iterator[Path]:
    for pattern in ('*.json', 'models/*.json', '*/models/*.json'):
        yield from folder.glob(pattern)


def _recognised(path: Path, scale: int | None) -> Card:
    """Makes a card for a file that has none, from its tensors."""
    found = match(checkpoint.load_weights(path))
    if found is None or found.share < 1:
        raise CheckpointError(
            f'{path}: no card beside it ({card_file(path).name}), and its tensors are not those of a network that can '
            f'be recognised. Expected a card, or the network: --type NAME --arg NAME=VALUE --weights {path}'
        )
    if scale is None and len(found.scales) > 1:
        text = ', '.join(f'x{one}' for one in found.scales)
        raise CheckpointError(
            f'{path}: no card beside it ({card_file(path).name}), and {found.options["type"]} has the same tensors at '
            f'several scales. Say which one: --scale {found.scales[0]} (possible: {text})'
        )
    scale = found.scales[0] if scale is None else scale
    if scale not in found.scales:
        raise CheckpointError(f'{path}: a {found.options["type"]} for x{found.scales[0]} (found --scale {scale}).')
    options = {**found.options, 'upscale': scale}
    return Card(path, options, scale, 'y' if input_channels(options) == 1 else 'rgb')
