"""Reads the text files that describe a data set."""

from __future__ import annotations

import stat
from pathlib import Path

from pisr_plugin.utils.errors import DataError

_MOST_BYTES = 1 << 28  # a list of five million images


def require_regular_file(path: Path) -> None:
    """Refuses a folder, a FIFO or a device, on which reading could wait for ever.

    Raises:
        DataError: ``path`` is not a regular file.
        OSError: the file system cannot find it.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f'{path}: not a regular file.')


def read_text(path: Path, needed_by: str = '') -> str:
    """Reads a whole text file.

    Args:
        path: A UTF-8 file of at most 256 MiB.
        needed_by: A sentence that the error message ends with.

    Raises:
        DataError: the file is missing, not a regular file, too large or not UTF-8.
    """
    try:
        require_regular_file(path)
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f'{path}: too large (found {path.stat().st_size} bytes). Expected at most {_MOST_BYTES}.')
        return path.read_bytes().decode('utf-8')
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'not a text file'
        raise DataError(f'{path}: {reason}. {needed_by}'.rstrip()) from None
