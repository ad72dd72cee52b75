"""Decoded images in an LMDB: a patch is cut from the mapped file, and nothing is decoded or copied but the patch.

The folder ``NAME_raw.lmdb`` holds ``data.mdb`` and ``images.txt``. A value is the bytes of one image (H, W, 3), uint8,
RGB. ``images.txt`` has a headline and a line ``key height width checksum offset`` for each image: the CRC-32 of its
bytes in hexadecimal digits, and where in ``data.mdb`` they begin.

Any LMDB library can read the file. Here it is mapped without one: py-lmdb touches every page of a value that it hands
out, so that each patch would cost the reading of a whole image. LMDB also trusts its pages, and a damaged one can kill
the process. And so there is no handle that must not be shared between processes or threads.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import lmdb
import numpy as np

from ..errors import DataError
from .images import image_size, read_rgb
from .lmdb_writer import Entry, space_for, write_lmdb_folder
from .parallel import with_progress

LIST = 'images.txt'
_HEADLINE_TEXT = 'raw images, uint8 RGB; data.mdb has pages of {} bytes and, but for the pixels, the checksum {:08x}'
_HEADLINE = re.compile(_HEADLINE_TEXT.replace('{}', r'(\d{3,6})').replace('{:08x}', '([0-9a-f]{8})'))
_LINE = re.compile(r'([!-~]+) ([1-9]\d{0,8}) ([1-9]\d{0,8}) ([0-9a-f]{8}) (\d{1,18})')
_PAGE_HEADER = struct.Struct('=QHHI')  # number, unused, flags, pages that a long value takes
_LONG_VALUE = 0x04


class RawInfo(NamedTuple):
    """What the list says of an image."""

    height: int
    width: int
    checksum: int
    offset: int


class RawImages:
    """The images of a raw LMDB, as views of the mapped file.

    May be shared by threads, forked and pickled.

    Args:
        path: The LMDB's folder.

    Attributes:
        keys: Their names, sorted.
        sizes: Heights and widths, (N, 2), int64.

    Raises:
        DataError: it is missing, damaged or of another kind. Changed pixels are not noticed, see :meth:`is_changed`.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        info = read_raw_info(self.path)
        self.keys = list(info)
        self.sizes = np.array([(image.height, image.width) for image in info.values()], np.int64).reshape(-1, 2)
        self._checksums = [image.checksum for image in info.values()]
        self._places = [(image.offset, (image.height, image.width, 3)) for image in info.values()]
        self._map()

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != '_file'}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._map()

    def views(self, indices: Iterable[int]) -> list[np.ndarray]:
        """Images of shape (H, W, 3), uint8, that cannot be written."""
        places = (self._places[index] for index in indices)
        return [np.ndarray(shape, np.uint8, self._file, offset) for offset, shape in places]

    def keep(self, indices: Sequence[int]) -> None:
        """Forgets all images but these."""
        self.keys, self._checksums, self._places = (
            [part[index] for index in indices] for part in (self.keys, self._checksums, self._places)
        )
        self.sizes = self.sizes[indices]

    def is_changed(self, index: int) -> bool:
        """Whether the pixels of an image are not those that were written."""
        return zlib.crc32(self.views([index])[0]) != self._checksums[index]

    def _map(self) -> None:
        with open(self.path / 'data.mdb', 'rb') as file:
            self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def write_raw_lmdb(paths: Sequence[Path], target: Path, workers: int = 1) -> None:
    """Decodes images into a new LMDB, written whole or not at all.

    Args:
        paths: Image files; their stems are the keys.
        target: Folder to make, ending in ``.lmdb``; must not exist.
        workers: Threads that decode.

    Raises:
        DataError: an image cannot be decoded, or LMDB could not write.
        OSError: the file system could not.
    """
    paths = sorted(paths, key=lambda path: path.stem)
    images = with_progress(_decode(paths, workers), len(paths), target.name)
    entries = (_entry(path.stem, img) for path, img in zip(paths, images))
    space = space_for(height * width * 3 for height, width in map(image_size, paths))
    write_lmdb_folder(entries, target, space, LIST, _complete_list)


def read_raw_info(path: Path) -> dict[str, RawInfo]:
    """Reads which images a raw LMDB holds, and makes sure that they can be looked up without harm.

    Raises:
        DataError: it is missing, damaged, or no raw LMDB.
    """
    file = path / LIST
    try:
        lines = file.read_text(encoding='ascii').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'not a text file'
        hint = ' It holds PNG files, for PairedImageDataset.' if (path / 'meta_info.txt').exists() else ''
        raise DataError(f'{file}: {reason}. It is part of every LMDB of raw images.{hint}') from None
    headline = _HEADLINE.fullmatch(lines[0]) if lines else None
    if headline is None:
        raise DataError(f'{file}, line 1: not the headline of a list of raw images. Build the LMDB again.')
    info = {}
    for number, line in enumerate(lines[1:], 2):
        match = _LINE.fullmatch(line)
        if match is None or match[1] in info:
            raise DataError(f"{file}, line {number}: expected 'key height width checksum offset', found {line!r}.")
        info[match[1]] = RawInfo(int(match[2]), int(match[3]), int(match[4], 16), int(match[5]))
    _check_file(path, info.values(), int(headline[1]), int(headline[2], 16))
    return info


def _entry(key: str, img: np.ndarray) -> Entry:
    height, width, _ = img.shape
    content = np.ascontiguousarray(img)
    return Entry(key, content, f'{key} {height} {width} {zlib.crc32(content):08x}')


def _decode(paths: Sequence[Path], workers: int) -> Iterator[np.ndarray]:
    """Decodes in threads, in order, and no more ahead than they need: images are large."""
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque = deque()
        for path in paths:
            ahead.append(pool.submit(read_rgb, path))
            if len(ahead) > workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _complete_list(folder: Path, lines: list[str]) -> list[str]:
    """The lines of the list with headline and offsets, once the LMDB is complete."""
    file = folder / 'data.mdb'
    with (
        lmdb.open(str(folder), readonly=True, lock=False) as env,
        env.begin(buffers=True) as txn,
        open(file, 'rb') as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        page_size = env.stat()['psize']
        values = [txn.get(line.partition(' ')[0].encode('ascii')) for line in lines]
        offsets = _offsets(values, mapped)
        del values
    headline = _HEADLINE_TEXT.format(page_size, _frame_checksum(file, page_size))
    return [headline, *(f'{line} {offset}' for line, offset in zip(lines, offsets))]


def _offsets(values: list[memoryview], file: mmap.mmap) -> list[int]:
    """Where in the file LMDB's values begin: they lie there as they do in its own mapping of the file."""
    addresses = [np.frombuffer(value, np.uint8).ctypes.data for value in values]
    lowest = min(range(len(values)), key=addresses.__getitem__)
    found = file.find(values[lowest])
    while found >= 0:
        offsets = [found + address - addresses[lowest] for address in addresses]
        # LMDB leaves old copies of short values in the file, and images may be alike: so all must be in their places
        if all(value == file[at : at + len(value)] for value, at in zip(values, offsets)):
            return offsets
        found = file.find(values[lowest], found + 1)
    raise DataError('the values of the LMDB are not in its file.')


def _check_file(path: Path, images: Iterable[RawInfo], page_size: int, expected: int) -> None:
    """Makes sure that the file is whole but for pixels, and that what the list says lies within it."""
    try:
        found = _frame_checksum(path / 'data.mdb', page_size)
        size = (path / 'data.mdb').stat().st_size
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise DataError(f'{path}: data.mdb: {getattr(error, "strerror", None) or error}. Build it again.') from None
    if found != expected or any(image.offset + image.height * image.width * 3 > size for image in images):
        raise DataError(f'{path}: data.mdb is damaged or cut off, or not the one of {LIST}. Copy or build it again.')


def _frame_checksum(file: Path, page_size: int) -> int:
    """Checksum of the file's length and of all pages, but only of the headers of those with images: the rest is large.

    It shows that a file is not cut off and is the one that the list was written for. Reads a page per image.
    """
    with open(file, 'rb') as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        checksum = zlib.crc32(str(len(data)).encode())
        start = 0
        while start + page_size <= len(data):
            number, _, flags, pages = _PAGE_HEADER.unpack_from(data, start)
            long_value = flags & _LONG_VALUE and number == start // page_size and pages
            checksum = zlib.crc32(data[start : start + (_PAGE_HEADER.size if long_value else page_size)], checksum)
            start += page_size * (pages if long_value else 1)
        return checksum
