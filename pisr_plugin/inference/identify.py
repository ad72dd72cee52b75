"""Find the network that a state dict belongs to, for the message about one that does not fit."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
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


def identify(weights: Mapping[str, Tensor]) -> str | None:
    """Finds this package's network that a state dict resembles most.

    It compares names and shapes with those of all networks at x2, x3 and x4, on Y and RGB, which are built without
    memory. Released files are compared as their networks would read them.

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

    best = 0.5
    matches: list[tuple[str, dict]] = []
    for network, options, (own, theirs) in _candidates(weights):
        alike = len(own & theirs) / len(own | theirs)
        if alike > best:
            best, matches = alike, []
        if alike == best:
            matches.append((network, options))
    if not matches:
        return None
    network, options = matches[0]
    scales = [
        str(other['upscale'])
        for name, other in matches
        if name == network and {**other, 'upscale': 0} == {**options, 'upscale': 0}
    ]
    described = ', '.join(f'{key}: {value}' for key, value in options.items() if key != 'upscale')
    text = f'{{type: {network}, {described}, upscale: {" or ".join(scales)}}}'
    return f'looks like {text}' if best == 1 else f'is most like {text}, with {best:.0%} of all tensors in common'


def _candidates(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, dict, tuple[set, set]]]:
    """Yields each network with its options, and names and shapes of its tensors and of ``weights`` as it reads them."""
    for network, options, net in _networks():
        convert = getattr(net, 'convert_released', dict)
        yield network, options, (_shapes(net.state_dict()), _shapes(convert(weights)))


@functools.cache
def _networks() -> list[tuple[str, dict, nn.Module]]:
    """Builds all networks to compare with, without memory for their weights."""
    networks = []
    for network, variants in VARIANTS.items():
        for variant, channels, scale in itertools.product(variants, (3, 1), SCALES):
            options = {**variant, 'num_in_ch': channels, 'num_out_ch': channels, 'upscale': scale}
            with torch.device('meta'):
                networks.append((network, options, ARCH_REGISTRY.get(network)(**options)))
    return networks


def _shapes(weights: Mapping[str, Tensor]) -> set[tuple]:
    return {(key, tuple(value.shape)) for key, value in weights.items()}
