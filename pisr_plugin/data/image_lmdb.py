"""PNG files in an LMDB, laid out as stock BasicSR reads it.

The folder ``NAME.lmdb`` holds ``data.mdb``, ``lock.mdb`` and ``meta_info.txt``. Keys are file names without ending;
``meta_info.txt`` has a line ``name.png (height,width,channels) compression`` for each. BasicSR takes what is left of
the first dot for the key, so a key has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError
from .images import PNG_LEVEL, image_size
from .lmdb_writer import Entry, space_for, write_lmdb_folder
from .parallel import with_progress

_LINE = re.compile(r'([^.]+)\.png \((\d+),(\d+),(\d+)\) \d+')
LIST = 'meta_info.txt'


def write_lmdb(paths: Iterable[Path], target: Path) -> None:
    """Puts PNG files into a new LMDB, byte for byte.

    Args:
        paths: PNG files of three channels; their stems are the keys.
        target: Folder to make, ending in ``.lmdb``; must not exist.

    Raises:
        DataError: LMDB could not write.
        OSError: the file system could not.
    """
    paths = sorted(paths, key=lambda path: path.stem)
    entries = map(_entry, with_progress(paths, len(paths), target.name))
    write_lmdb_folder(entries, target, space_for(path.stat().st_size for path in paths), LIST)


def read_meta_info(path: Path) -> dict[str, tuple[int, int, int]]:
    """Reads which images an LMDB holds and how large they are.

    Args:
        path: The LMDB's folder.

    Returns:
        Height, width and channels by key.

    Raises:
        DataError: ``meta_info.txt`` is missing, or a line is not as BasicSR needs it.
    """
    file = path / LIST
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


def _entry(path: Path) -> Entry:
    content = path.read_bytes()
    height, width = image_size(content)
    return Entry(path.stem, content, f'{path.stem}.png ({height},{width},3) {PNG_LEVEL}')
