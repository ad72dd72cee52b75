"""PNG files in an LMDB, laid out as stock BasicSR reads it.

The folder ``NAME.lmdb`` holds ``data.mdb``, ``lock.mdb`` and ``meta_info.txt``. Keys are file names without ending;
``meta_info.txt`` has a line ``name.png (height,width,channels) compression`` for each. BasicSR takes what is left of
the first dot for the key, so a key has none.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import lmdb

from ..errors import DataError
from .images import PNG_LEVEL, image_size
from .parallel import with_progress

_LINE = re.compile(r'([^.]+)\.png \((\d+),(\d+),(\d+)\) \d+')
_PAGE = 4096
_COMMIT_BYTES = 64 << 20  # uncommitted pages stay in memory


def write_lmdb(paths: Iterable[Path], target: Path) -> None:
    """Puts PNG files into a new LMDB, byte for byte, a part at a time.

    The LMDB is filled under another name and renamed when complete: a process killed midway leaves nothing that could
    be taken for it.

    Args:
        paths: PNG files of three channels; their stems are the keys.
        target: Folder to make, ending in ``.lmdb``; must not exist.

    Raises:
        DataError: LMDB could not write.
        OSError: the file system could not.
    """
    paths = sorted(paths, key=lambda path: path.stem)  # keys in order fill the pages of the tree
    temporary = target.with_name(f'.{target.name}.{os.getpid()}.tmp')
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _fill(paths, temporary, label=target.name)
        os.rename(temporary, target)
    except lmdb.Error as error:
        raise DataError(
            f'{target}: LMDB could not be written: {error}. The image files are kept: run the same '
            f'command again when that is mended.'
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_meta_info(path: Path) -> dict[str, tuple[int, int, int]]:
    """Reads which images an LMDB holds and how large they are.

    Args:
        path: The LMDB's folder.

    Returns:
        Height, width and channels by key.

    Raises:
        DataError: ``meta_info.txt`` is missing, or a line is not as BasicSR needs it.
    """
    file = path / 'meta_info.txt'
    try:
        lines = file.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'not a text file'
        raise DataError(f'{file}: {reason}. BasicSR reads the keys of an LMDB from it.') from None
    sizes = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if not match:
            raise DataError(
                f"{file}, line {number}: expected 'name.png (height,width,channels) level' with no other "
                f'dot in the name, found {line!r}.'
            )
        key, *size = match.groups()
        if key in sizes:
            raise DataError(f'{file}, line {number}: {key!r} is listed a second time.')
        sizes[key] = tuple(map(int, size))
    return sizes


def _fill(paths: list[Path], folder: Path, label: str) -> None:
    # What the file will need, as a value takes whole pages: the size is a limit and costs nothing until it is used.
    map_size = sum(path.stat().st_size + 2 * _PAGE for path in paths) + 256 * _PAGE
    env = lmdb.open(str(folder), map_size=map_size, sync=False)  # synced once below, before the rename
    try:
        with open(folder / 'meta_info.txt', 'w', encoding='utf-8') as meta:
            txn, pending = env.begin(write=True), 0
            try:
                for path in with_progress(paths, len(paths), label):
                    content = path.read_bytes()
                    height, width = image_size(content)
                    txn.put(path.stem.encode('ascii'), content, append=True)
                    meta.write(f'{path.stem}.png ({height},{width},3) {PNG_LEVEL}\n')
                    pending += len(content)
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
