"""The registry of degradations, and what its classes share.

A degradation is a class in :data:`DEGRADATION_REGISTRY`, called as ``degradation(batch, iteration)``: it takes a batch
as its dataset makes it and the iteration's number, and returns ``{'lq': ..., 'gt': ...}``. Its random numbers follow
from ``seed``, iteration and the number of each sample alone, so that any number of ranks makes the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from basicsr.utils.dist_util import get_dist_info
from basicsr.utils.registry import Registry
from torch import Tensor

from pisr_plugin.utils.errors import OptionsError, did_you_mean

DEGRADATION_REGISTRY = Registry('degradation')


def build_degradation(options: Mapping, **more) -> Callable[[Mapping[str, Tensor], int], dict[str, Tensor]]:
    """Builds the degradation of training batches.

    Args:
        options: ``type`` and the arguments of a class in :data:`DEGRADATION_REGISTRY`.
        more: Arguments that the run decides and not the recipe: ``scale``, ``seed``.

    Raises:
        OptionsError: the type is unknown, or the class refuses its arguments.
    """
    options = dict(options)
    kind = options.pop('type', None)
    if kind not in DEGRADATION_REGISTRY:
        raise OptionsError(
            f'degradation.type: {kind!r} is not registered. {did_you_mean(kind, DEGRADATION_REGISTRY.keys())}'
        )
    try:
        return DEGRADATION_REGISTRY.get(kind)(**options, **more)
    except (TypeError, ValueError) as error:
        raise OptionsError(f'degradation: {kind} cannot be built: {error}') from None


def random_stream(*key: int) -> np.random.Generator:
    """Returns the generator of a key of one or two whole numbers, 0 to 2^64 - 1; the same on every machine."""
    return np.random.Generator(np.random.Philox(key=np.array([*key, 0][:2], dtype=np.uint64)))


def samples_of_rank(count: int) -> slice:
    """Returns where this rank's samples lie in the batch of all ranks together, which all ranks draw alike.

    Args:
        count: Number of samples on each rank.
    """
    rank, _ = get_dist_info()
    return slice(rank * count, (rank + 1) * count)
