"""Checks of constructor arguments: each raises ValueError with the argument, the value and what is expected."""

from __future__ import annotations

from collections.abc import Iterable


def check_int(name: str, value: object, minimum: int = 1) -> None:
    """Raises ValueError unless an argument is a whole number of at least ``minimum``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f'{name}: out of range (found {value!r}). Expected a whole number from {minimum} on.')


def check_positive(name: str, value: float) -> None:
    """Raises ValueError unless an argument is above 0."""
    if not value > 0:
        raise ValueError(f'{name}: out of range (found {value!r}). Expected a number above 0.')


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raises ValueError unless an argument is one of ``choices``."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f'{name}: unknown value (found {value!r}). Expected one of {", ".join(map(repr, choices))}.')
