"""Writes an LMDB with a list of its records; a stopped write leaves no LMDB."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import lmdb

from pisr_plugin.utils.errors import DataError
from pisr_plugin.utils.files import replacing_folder

_PAGE = 4096
_COMMIT_BYTES = 64 << 20  # LMDB keeps uncommitted pages in memory


class Record(NamedTuple):
    """One record to write.

    Attributes:
        key: ASCII, at most 511 characters.
        content: Bytes, or the contiguous memory of an array.
        line: Line of the list that describes the record.
    """

    key: str
    content: bytes | memoryview
    line: str


def space_for(sizes: Iterable[int]) -> int:
    """Returns an upper bound of the bytes that an LMDB with values of the given sizes takes on the disk."""
    return sum(size + 2 * _PAGE for size in sizes) + 256 * _PAGE  # a value takes whole pages


def write_lmdb_folder(
    records: Iterable[Record],
    target: Path,
    space: int,
    list_name: str,
    finish: Callable[[Path, list[str]], list[str]] | None = None,
) -> None:
    """Writes records into a new LMDB, and a text file that lists them.

    The folder has a temporary name until it is complete, so a killed process leaves nothing that looks like an LMDB.

    Args:
        records: The records, sorted by key.
        target: The new folder, ending in ``.lmdb``.
        space: Most bytes that the LMDB may take, see :func:`space_for`.
        list_name: Name of the text file in the folder.
        finish: Called with the folder, whose LMDB is complete, and the lines of the list; returns the lines to write.

    Raises:
        DataError: LMDB cannot write.
        OSError: the file system cannot write.
    """
    try:
        with replacing_folder(target) as (temporary, _):
            lines = _fill(records, temporary, space)
            if finish is not None:
                lines = finish(temporary, lines)
            (temporary / list_name).write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')
    except lmdb.Error as error:
        raise DataError(
            f'{target}: LMDB could not be written: {error}. The image files are kept: run the same '
            f'command again when the cause is removed.'
        ) from None


def _fill(records: Iterable[Record], folder: Path, space: int) -> list[str]:
    """Writes the records; returns the lines of the list."""
    env = lmdb.open(str(folder), map_size=space, sync=False)  # synced once below, before the rename
    lines = []
    try:
        txn, pending = env.begin(write=True), 0
        try:
            for record in records:
                txn.put(record.key.encode('ascii'), record.content, append=True)  # keys in order fill the tree's pages
                lines.append(record.line)
                pending += memoryview(record.content).nbytes
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
