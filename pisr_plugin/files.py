"""Files that are there complete or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


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


@contextmanager
def locked(path: str | os.PathLike, patience: float = 60) -> Iterator[bool]:
    """Holds a lock that ends with the process, whatever ends it; the file stays behind, empty.

    Args:
        path: The lock's file, in a folder that exists.
        patience: Seconds to wait for another process that holds it.

    Yields:
        False when another process still held it then. On a system without ``flock`` always True.
    """
    with open(path, 'ab') as file:
        yield _acquire(file, time.monotonic() + patience)


def _acquire(file: BinaryIO, deadline: float) -> bool:
    """Locks an open file for as long as it is open; False when another process held it until the deadline."""
    while fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)
        except OSError:  # a file system without locks
            break
    return True


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
