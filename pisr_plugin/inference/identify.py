"""Finds the network that a state dict belongs to."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

SCALES = (2, 3, 4)
_KDSR: list[dict[str, Any]] = [
    {},
    {'num_feat': 128, 'num_block': 28, 'num_estimator_block': 5},
    {'num_feat': 128, 'num_block': 42, 'num_estimator_block': 6},
]
# Options in which releases and papers differ, beside colour and scale
VARIANTS: dict[str, list[dict[str, Any]]] = {
    'FSRCNN': [{}, {'d': 56, 's': 56, 'm': 4}, {'per_channel_prelu': True}],
    'VDSR': [{}, {'bias': True}],
    'IDN': [{}, {'upsampler': 'pixelshuffle'}],
    'CARN': [{}],
    'CARNM': [{}],
    'IMDN': [{}],
    'RFDN': [{}, {'num_feat': 52}],
    'ERFDN': [{}],
    'KDSRStudent': _KDSR,
    'KDSRTeacher': _KDSR,
}


@dataclass(frozen=True)
class Match:
    """The network of this package that a state dict resembles most.

    Attributes:
        options: Options of the network, with ``type`` and without ``upscale``.
        scales: The scales at which it has these tensors.
        share: Share of the tensors that both have, more than 0.5; 1: all of them.
    """

    options: dict[str, Any]
    scales: list[int]
    share: float


def match(weights: Mapping[str, Tensor]) -> Match | None:
    """Finds this package's network that a state dict resembles most.

    It compares names and shapes with those of all networks at x2, x3 and x4, on Y and RGB, which are built without
    memory. Released files are compared as their networks would read them.

    Args:
        weights: A state dict, its keys without ``module.``.

    Returns:
        The network; None where none has more than half of the tensors.
    """
    best = 0.5
    matches: list[dict] = []
    for options, (own, theirs) in _candidates(weights):
        alike = len(own & theirs) / len(own | theirs)
        if alike > best:
            best, matches = alike, []
        if alike == best:
            matches.append(options)
    if not matches:
        return None
    first = _without_scale(matches[0])
    return Match(first, [one['upscale'] for one in matches if _without_scale(one) == first], best)


def identify(weights: Mapping[str, Tensor]) -> str | None:
    """Describes the network that a state dict belongs to.

    Args:
        weights: A state dict, its keys without ``module.``.

    Returns:
        ``'looks like {type: IMDN, num_in_ch: 3, num_out_ch: 3, upscale: 3}'``; ``'is most like {..}, with 80% of all
        tensors in common'`` where more than half agree; None otherwise.
    """
    for prefix in ('backbone.network.encoder.', 'encoder.'):
        if any(key.startswith(prefix) for key in weights):
            root = prefix.removesuffix('encoder.')
            decoder = {
                key.removeprefix(root).removeprefix('decoder.'): value
                for key, value in weights.items()
                if key.startswith(root) and not key.startswith(prefix)
            }
            found = identify(decoder)
            return found and f'holds an encoder too, as a PITeacher; its decoder {found}'

    nearest = match(weights)
    if nearest is None:
        return None
    described = ', '.join(f'{key}: {value}' for key, value in nearest.options.items())
    text = f'{{{described}, upscale: {" or ".join(map(str, nearest.scales))}}}'
    same = nearest.share == 1
    return f'looks like {text}' if same else f'is most like {text}, with {nearest.share:.0%} of all tensors in common'


def _without_scale(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != 'upscale'}


def _candidates(weights: Mapping[str, Tensor]) -> Iterator[tuple[dict, tuple[set, set]]]:
    """Yields options of each network, and names and shapes of its tensors and of ``weights`` as it reads them."""
    for options, net in _networks():
        convert = getattr(net, 'convert_released', dict)
        yield options, (_shapes(net.state_dict()), _shapes(convert(weights)))


@functools.cache
def _networks() -> list[tuple[dict, nn.Module]]:
    """Builds all networks to compare with, without memory for their weights."""
    networks = []
    for network, variants in VARIANTS.items():
        for variant, channels, scale in itertools.product(variants, (3, 1), SCALES):
            options = {**variant, 'num_in_ch': channels, 'num_out_ch': channels, 'upscale': scale}
            with torch.device('meta'):
                networks.append(({'type': network, **options}, ARCH_REGISTRY.get(network)(**options)))
    return networks


def _shapes(weights: Mapping[str, Tensor]) -> set[tuple]:
    return {(key, tuple(value.shape)) for key, value in weights.items()}
