"""Writes an LMDB with a list of its records, complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import lmdb

from ..errors import DataError

_PAGE = 4096
_COMMIT_BYTES = 64 << 20  # uncommitted pages stay in memory


class Entry(NamedTuple):
    """One record to write.

    Attributes:
        key: ASCII, at most 511 characters.
        content: Bytes, or an array whose bytes to write.
        line: What the list says of it.
    """

    key: str
    content: object
    line: str


def space_for(sizes: Iterable[int]) -> int:
    """Bytes that an LMDB needs for values of the given sizes; a limit, which costs nothing until it is used."""
    return sum(size + 2 * _PAGE for size in sizes) + 256 * _PAGE  # a value takes whole pages


def write_lmdb_folder(
    entries: Iterable[Entry],
    target: Path,
    space: int,
    list_name: str,
    finish: Callable[[Path, list[str]], list[str]] | None = None,
) -> None:
    """Puts records into a new LMDB, a part at a time.

    It is filled under another name and renamed when complete: a process killed midway leaves nothing that could be
    taken for it.

    Args:
        entries: The records, sorted by key.
        target: Folder to make, ending in ``.lmdb``; must not exist.
        space: Most bytes that it may take, see :func:`space_for`.
        list_name: Name of the text file in the folder that lists the records.
        finish: Changes the lines of the list, once the LMDB in the folder is complete.

    Raises:
        DataError: LMDB could not write.
        OSError: the file system could not.
    """
    temporary = target.with_name(f'.{target.name}.{os.getpid()}.tmp')
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        lines = _fill(entries, temporary, space)
        if finish is not None:
            lines = finish(temporary, lines)
        (temporary / list_name).write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')
        os.rename(temporary, target)
    except lmdb.Error as error:
        raise DataError(
            f'{target}: LMDB could not be written: {error}. The image files are kept: run the same '
            f'command again when that is mended.'
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(entries: Iterable[Entry], folder: Path, space: int) -> list[str]:
    """Writes the records; returns the lines of the list."""
    env = lmdb.open(str(folder), map_size=space, sync=False)  # synced once below, before the rename
    lines = []
    try:
        txn, pending = env.begin(write=True), 0
        try:
            for entry in entries:
                txn.put(entry.key.encode('ascii'), entry.content, append=True)  # keys in order fill the tree's pages
                lines.append(entry.line)
                pending += memoryview(entry.content).nbytes
                if pending >= _COMMIT_BYTES:
                    txn.commit()
                    txn, pending = env.begin(write=True), 0
            txn.commit()
        except BaseException:
            txn.abort()
            raise
        env.sync(True)
    finally:
        env.close()
    return lines
