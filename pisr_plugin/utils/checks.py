"""Checks of numbers and choices: a check raises ValueError with the argument, the value and what is expected."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard


def is_number(value: object) -> TypeGuard[float]:
    """Returns whether a value is a finite number that a float can hold."""
    largest = sys.float_info.max  # a whole number beyond it cannot become a float
    return is_whole(value, -largest, largest) or (isinstance(value, float) and math.isfinite(value))


def is_whole(value: object, low: float = -math.inf, high: float = math.inf) -> TypeGuard[int]:
    """Returns whether a value is a whole number from ``low`` to ``high``."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def check_int(name: str, value: object, minimum: int = 1) -> None:
    """Raises ValueError unless an argument is a whole number of at least ``minimum``."""
    if not is_whole(value, minimum):
        raise ValueError(f'{name}: out of range (found {value!r}). Expected a whole number from {minimum} on.')


def check_ints(minimum: int = 1, **values: object) -> None:
    """Raises ValueError unless all arguments, given by name, are whole numbers of at least ``minimum``."""
    for name, value in values.items():
        check_int(name, value, minimum)


def check_positive(name: str, value: float) -> None:
    """Raises ValueError unless an argument is above 0."""
    if not value > 0:
        raise ValueError(f'{name}: out of range (found {value!r}). Expected a number above 0.')


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raises ValueError unless an argument is one of ``choices``."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f'{name}: unknown value (found {value!r}). Expected one of {", ".join(map(repr, choices))}.')


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
    if not is_whole(value, low, high) or value % multiple != rest:
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
