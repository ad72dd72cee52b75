"""The registry of degradations, and what its classes share.

A degradation is a class in :data:`DEGRADATION_REGISTRY`, called as ``degradation(batch, iteration)``: it takes a batch
as its dataset makes it and the iteration's number, and returns ``{'lq': ..., 'gt': ...}``. Its random numbers follow
from ``seed``, iteration and the number of each sample alone, so that any number of ranks makes the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

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


def is_number(value: object) -> TypeGuard[float]:
    """Returns whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def checked_number(name: str, value: object, low: float, high: float) -> float:
    """Returns a number, or raises ValueError if it is not one from ``low`` to ``high``."""
    if not is_number(value) or not low <= value <= high:
        raise ValueError(f'{name}: impossible value (found {value!r}). Expected a number from {low:g} to {high:g}')
    return value


def checked_whole(name: str, value: object, low: int, high: int, multiple: int = 1, rest: int = 0) -> int:
    """Returns a whole number, or raises ValueError if it is not one from ``low`` to ``high``.

    Args:
        name: Name of the option.
        value: Value of the option.
        low: Smallest possible value.
        high: Largest possible value.
        multiple: What the value must be a multiple of.
        rest: What the division of the value by ``multiple`` must leave.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high or value % multiple != rest:
        kind = {(1, 0): 'a whole number', (2, 1): 'an odd number'}.get((multiple, rest), f'a multiple of {multiple}')
        raise ValueError(f'{name}: impossible value (found {value!r}). Expected {kind} from {low} to {high}')
    return value


def checked_range(name: str, value: object, low: float, high: float) -> tuple[float, float]:
    """Returns lower and upper bound of a range; one number is a range of its own.

    Raises:
        ValueError: the value is no range within ``low`` to ``high``.
    """
    bounds: Any = (value, value) if is_number(value) else value
    is_pair = isinstance(bounds, Sequence) and len(bounds) == 2 and all(map(is_number, bounds))
    if not is_pair or not low <= bounds[0] <= bounds[1] <= high:
        raise ValueError(
            f'{name}: impossible value (found {value!r}). Expected a number or [lower bound, upper bound], '
            f'from {low:g} to {high:g}'
        )
    return tuple(bounds)
