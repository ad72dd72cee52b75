"""PNG files in an LMDB, laid out as stock BasicSR reads it.

The folder ``NAME.lmdb`` holds ``data.mdb``, ``lock.mdb`` and ``meta_info.txt``. Keys are file names without ending;
``meta_info.txt`` has a line ``name.png (height,width,channels) compression`` for each. A key has no dot, because
BasicSR takes the part of the line before the first dot for the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from pisr_plugin.data.storage.image_files import PNG_LEVEL, image_size
from pisr_plugin.data.storage.lmdb_writer import Record, space_for, write_lmdb_folder
from pisr_plugin.utils.errors import DataError
from pisr_plugin.utils.parallel import with_progress
from pisr_plugin.utils.text_files import read_text

_LINE = re.compile(r'([^./\0]{1,511})\.png \(([1-9]\d{0,8}),([1-9]\d{0,8}),([1-9]\d?)\) \d{1,2}', re.ASCII)
LIST = 'meta_info.txt'


def write_lmdb(paths: Iterable[Path], target: Path) -> None:
    """Puts PNG files into a new LMDB, byte for byte.

    Args:
        paths: PNG files of three channels; their stems are the keys.
        target: The new folder, ending in ``.lmdb``.

    Raises:
        DataError: LMDB cannot write.
        OSError: the file system cannot write.
    """
    paths = sorted(paths, key=lambda path: path.stem)
    records = map(_record, with_progress(paths, len(paths), target.name))
    write_lmdb_folder(records, target, space_for(path.stat().st_size for path in paths), LIST)


def read_meta_info(path: Path) -> dict[str, tuple[int, int, int]]:
    """Reads the keys and sizes of an LMDB's images.

    Args:
        path: The LMDB's folder.

    Returns:
        Height, width and channels by key.

    Raises:
        DataError: ``meta_info.txt`` is missing, or BasicSR cannot use a line of it.
    """
    file = path / LIST
    lines = read_text(file, 'BasicSR reads the keys of an LMDB from it.').splitlines()
    sizes: dict[str, tuple[int, int, int]] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if not match:
            raise DataError(
                f"{file}, line {number}: expected 'name.png (height,width,channels) level' with no other "
                f'dot in the name (found {line[:80]!r}).'
            )
        key, height, width, channels = match.groups()
        if key in sizes:
            raise DataError(f'{file}, line {number}: {key!r} is listed a second time.')
        sizes[key] = int(height), int(width), int(channels)
    return sizes


def _record(path: Path) -> Record:
    content = path.read_bytes()
    height, width = image_size(content)
    return Record(path.stem, content, f'{path.stem}.png ({height},{width},3) {PNG_LEVEL}')
