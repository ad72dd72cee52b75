"""Mistakes of a user, each reported in one message.

Every command catches :class:`PISRError`, prints its text without a traceback and exits with code 2. A message names the
option or file, what was found and what was expected.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class PISRError(Exception):
    """Base of all mistakes that a user can correct."""


class OptionsError(PISRError):
    """A recipe, an override or a resolved options file is wrong."""


class TapError(PISRError):
    """A tap does not exist, is ambiguous, or returns what a link cannot use."""


class CheckpointError(PISRError):
    """A checkpoint is missing, damaged, unsafe or belongs to another network."""


class DataError(PISRError):
    """Images or LMDBs are missing, damaged, or do not fit together."""


class InstallError(PISRError, ImportError):
    """A package that the plugin needs is missing, or does not fit another one."""


@contextmanager
def located(place: str) -> Iterator[None]:
    """Begins the message of a mistake inside the block with its place, such as an option path."""
    try:
        yield
    except PISRError as error:
        raise type(error)(f'{place}: {error}') from None


def did_you_mean(found: object, possible: Iterable[str]) -> str:
    """Suggests what a wrong name was meant to be.

    Args:
        found: The name that matched nothing.
        possible: All names that would have matched.

    Returns:
        ``"Did you mean 'x'? Possible: x, y, z"``, without the question when nothing is near.
    """
    names = sorted(set(map(str, possible)))
    question = ''.join(f'Did you mean {name!r}? ' for name in close_matches(found, names))
    return f'{question}Possible: {", ".join(names) or "nothing"}'


def close_matches(found: object, possible: Iterable[str]) -> list[str]:
    """Returns the name that a wrong one resembles most, upper and lower case being the same; none if none is near.

    Args:
        found: The name that matched nothing.
        possible: All names that would have matched.
    """
    by_lower_case = {name.lower(): name for name in possible}
    return [by_lower_case[near] for near in difflib.get_close_matches(str(found).lower(), by_lower_case, n=1)]


def first_line(error: BaseException) -> str:
    """The first line of an exception's text; its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shown(value: object) -> str:
    """A value as a message shows it, at most 80 characters long."""
    try:
        text = repr(value)
    except RecursionError:  # a file may hold lists in lists without end
        text = f'a deep {type(value).__name__}'
    return text if len(text) <= 80 else f'{text[:77]}...'
