"""Files that are there complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: str | os.PathLike, durable: bool = False) -> Iterator[BinaryIO]:
    """Yields a file to write; when the block ends well it takes the place of ``path``, else that is left as it was.

    Args:
        path: The file to be.
        durable: Wait until the disk has it, so that even a power cut leaves the old file or the new one.

    Raises:
        OSError: naming ``path``: the folder is missing, not writable or full.
    """
    path = Path(path)
    # hidden, so that a left-over is not taken for a result; with the process id, so that two runs do not share it
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        error.filename = str(path)  # it was the temporary file's, or none if the disk is full
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Waits until the disk has a folder's entries, so that what is written next cannot get there before them."""
    if os.name == 'nt':  # folders cannot be opened
        return
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


def write_whole(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes bytes, or text as UTF-8, by way of :func:`replacing`."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
