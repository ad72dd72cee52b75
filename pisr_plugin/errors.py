"""What a user did wrong, said in one message.

Every command line catches :class:`PISRError`, prints its text without a traceback and exits with code 2.
A message names the place, what was found and what is possible.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PISRError(Exception):
    """Base of all mistakes that a user can mend."""


class OptionsError(PISRError):
    """A recipe, an override or a resolved options file does not hold together."""


class TapError(PISRError):
    """A tap does not exist, is ambiguous, or yields what a link cannot use."""


class CheckpointError(PISRError):
    """A checkpoint is missing, damaged, unsafe or belongs to another network."""


class DataError(PISRError):
    """Images or LMDBs are missing, damaged or do not fit together."""


class InstallError(PISRError, ImportError):
    """A package that the plugin stands on is missing, or does not fit another one."""


def choice(found: str, possible: Iterable[str]) -> str:
    """Says what ``found`` could have been.

    Args:
        found: The name that matched nothing.
        possible: All names that would have matched.

    Returns:
        ``"Did you mean 'x'? Possible: x, y, z"``, without the question when nothing is near.
    """
    names = sorted(set(map(str, possible)))
    near = difflib.get_close_matches(str(found), names, n=1)
    question = f'Did you mean {near[0]!r}? ' if near else ''
    return f'{question}Possible: {", ".join(names) or "nothing"}'
