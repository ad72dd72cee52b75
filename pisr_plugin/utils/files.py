"""Writes files and folders whole or not at all, locks files, checks names of folders."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from pisr_plugin.utils.errors import OptionsError, shown

MAX_NAME = 100  # bytes of a name that becomes a folder; file systems take 255, and file names add to it


@contextmanager
def replacing(path: str | os.PathLike, durable: bool = True) -> Iterator[BinaryIO]:
    """Yields a temporary file; renames it to ``path`` when the block ends without an exception.

    Args:
        path: File to write. An exception leaves it as it was.
        durable: Whether to wait until the disk holds the file and its name, so that a power cut leaves either the old
            file or the new one.

    Raises:
        OSError: The folder is missing, not writable or full. The error names ``path``.
    """
    path = Path(path)
    # hidden, so that nobody takes a left-over for a result; with the process id, so that two runs do not share it
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        error.filename = str(path)  # the system names the temporary file, or no file if the disk is full
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, content: bytes | str, durable: bool = True) -> None:
    """Writes bytes, or text as UTF-8, through :func:`replacing`."""
    with replacing(path, durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """Waits until the disk holds a folder's entries."""
    if os.name == 'nt':  # Windows cannot open folders
        return
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


@contextmanager
def locked(path: str | os.PathLike, patience: float = 60) -> Iterator[bool]:
    """Holds a lock for the block. The system releases it when the process ends, also after a kill.

    Args:
        path: The lock's file. Its folder exists; the file stays behind, empty.
        patience: Seconds to wait for another process that holds the lock.

    Yields:
        False when another process still held the lock after ``patience`` seconds.
    """
    lock = FileLock(path, timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        pass
    try:
        yield lock.is_locked
    finally:
        lock.release()


def name_as_folder(name: object, option_path: str, parent: Path | None = None) -> str:
    """Checks a name that becomes a folder or part of a file name; the only place where names become paths.

    Args:
        name: What an option or a flag gives.
        option_path: Where it stands, for messages.
        parent: Folder that will hold ``parent / name``, with links followed; None: not known yet.

    Returns:
        ``name``.

    Raises:
        OptionsError: it is no text, is empty, long or not printable, begins with a dot or a blank, holds a separator,
            or leads out of ``parent``.
    """
    if (
        not isinstance(name, str)
        or not name.isprintable()
        or not 1 <= len(name.encode()) <= MAX_NAME
        or name[0] == '.'
        or name != name.strip()
        or set(name) & set('/\\')
    ):
        raise OptionsError(
            f'{option_path}: not a name for a folder (found {shown(name)}). Expected 1 to {MAX_NAME} letters without '
            'slashes, that do not begin with a dot or a blank.'
        )
    if parent is None:
        return name
    try:
        inside = (parent / name).resolve().is_relative_to(parent.resolve())
    except (OSError, RuntimeError):  # a circle of links
        inside = False
    if not inside:
        raise OptionsError(f'{option_path}: leads out of the run folder (found {parent / name}, a link).')
    return name


@contextmanager
def replacing_folder(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yields a folder to fill; when the block ends well it takes the place of ``folder``, else that stays as it was.

    It also yields where an earlier ``folder`` is moved to.

    Args:
        folder: The folder to be. Its parent exists.

    Raises:
        OSError: a folder cannot be created or moved.
    """
    archive = archive_name(folder)
    temporary = folder.with_name(f'.{folder.name}.{os.getpid()}.tmp')
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary, archive
        if folder.exists():
            folder.rename(archive)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def archive_name(folder: Path) -> Path:
    """Returns ``<folder>_archived_<time>``, as BasicSR names it, with a number where that exists."""
    archive = folder.with_name(f'{folder.name}_archived_{time.strftime("%Y%m%d_%H%M%S")}')
    paths = (archive.with_name(f'{archive.name}{suffix}') for suffix in ('', *(f'_{i}' for i in range(2, 1000))))
    return next(path for path in paths if not path.exists())
