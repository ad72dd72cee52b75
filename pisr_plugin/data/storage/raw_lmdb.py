"""Decoded images in an LMDB, of which a training patch is read without decoding or copying the whole image.

The folder ``NAME_raw.lmdb`` holds ``data.mdb`` and ``images.txt``. A value is the bytes of one image (H, W, 3), uint8,
RGB. ``images.txt`` has a headline with the length of ``data.mdb`` and a checksum of a sample of it, a line
``key height width checksum offset`` for each image, and at last a checksum of these lines. All checksums are CRC-32 in
hexadecimal digits; an image's is that of ``key height width`` and its bytes, which begin at ``offset`` in ``data.mdb``.

Any LMDB library can read the values. This module maps the file instead, because py-lmdb touches every page of a value
that it returns, so that each patch would cost the reading of a whole image. A mapping can also be shared between
threads and forked processes, and no damage to LMDB's own pages can kill the process.
"""

from __future__ import annotations

import mmap
import os
import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import lmdb
import numpy as np

from pisr_plugin.data.storage.image_files import image_size, read_rgb
from pisr_plugin.data.storage.lmdb_writer import Record, space_for, write_lmdb_folder
from pisr_plugin.utils.errors import DataError
from pisr_plugin.utils.parallel import with_progress
from pisr_plugin.utils.text_files import read_text, require_regular_file

LIST = 'images.txt'
_HEADLINE_TEXT = 'raw images, uint8 RGB; data.mdb has {} bytes and the sample checksum {:08x}'
_HEADLINE = re.compile(_HEADLINE_TEXT.replace('{}', r'(\d{1,15})', re.ASCII).replace('{:08x}', '([0-9a-f]{8})'))
_LAST_LINE = 'checksum {:08x}'
# Lists of earlier versions have no checksum of their own, and each image's is that of its bytes alone.
_EARLIER_HEADLINE = re.compile(r'raw images, uint8 RGB; data.mdb has pages of \d{3,6} bytes and, but for .{1,40}')
_LINE = re.compile(r'(([!-~]{1,511}) ([1-9]\d{0,8}) ([1-9]\d{0,8})) ([0-9a-f]{8}) (\d{1,15})', re.ASCII)
_SAMPLE = 64  # bytes of each image


class RawInfo(NamedTuple):
    """What the list says of an image.

    Attributes:
        height, width: Sides in pixels.
        checksum: CRC-32 of the image.
        checksum_start: What the CRC-32 of the image's bytes continues.
        offset: Where the image begins in ``data.mdb``, in bytes.
    """

    height: int
    width: int
    checksum: int
    checksum_start: int
    offset: int


class RawLmdb:
    """The images of a raw LMDB, as views of the mapped file.

    Threads and forked processes may share it, and it may be pickled.

    Args:
        path: The LMDB's folder.

    Attributes:
        keys: Names of the images, sorted.
        sizes: Heights and widths, (N, 2), int64.

    Raises:
        DataError: the LMDB is missing, damaged or of another kind. Of the pixels only a sample is checked here, all of
            them by :meth:`is_changed`.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        info = read_raw_info(self.path)
        self.keys = list(info)
        self.sizes = np.array([(image.height, image.width) for image in info.values()], np.int64).reshape(-1, 2)
        self._infos = list(info.values())
        self._file = _map(self.path)

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != '_file'}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._file = _map(self.path)

    def views(self, indices: Iterable[int]) -> list[np.ndarray]:
        """Returns read-only images of shape (H, W, 3), uint8."""
        return [_view(self._file, self._infos[index]) for index in indices]

    def keep(self, indices: np.ndarray) -> None:
        """Drops all images but those of the given indices."""
        self.keys = [self.keys[index] for index in indices]
        self._infos = [self._infos[index] for index in indices]
        self.sizes = self.sizes[indices]

    def is_changed(self, index: int) -> bool:
        """Returns whether an image, its key or its size is not what was written."""
        return _is_changed(self._file, self._infos[index])


def write_raw_lmdb(paths: Sequence[Path], target: Path, workers: int = 1) -> None:
    """Decodes images into a new LMDB; a stopped write leaves no LMDB.

    Args:
        paths: Image files; their stems are the keys.
        target: Folder to make, ending in ``.lmdb``; must not exist.
        workers: Number of threads that decode, at least 1.

    Raises:
        DataError: an image cannot be decoded, or LMDB cannot write.
        OSError: the file system cannot write.
    """
    paths = sorted(paths, key=lambda path: path.stem)
    images = with_progress(_decode(paths, workers), len(paths), target.name)
    records = (_record(path.stem, img) for path, img in zip(paths, images))
    space = space_for(height * width * 3 for height, width in map(image_size, paths))
    write_lmdb_folder(records, target, space, LIST, _complete_list)


def read_raw_info(path: Path) -> dict[str, RawInfo]:
    """Reads which images a raw LMDB holds, and checks that all of them lie within ``data.mdb``.

    A store that an earlier version wrote is read completely, because its list cannot show that it is damaged.

    Args:
        path: The LMDB's folder.

    Returns:
        What the list says of each image, by key.

    Raises:
        DataError: the LMDB is missing, damaged, or not a raw one.
    """
    file = path / LIST
    hint = ' It holds PNG files, for PairedImageDataset.' if (path / 'meta_info.txt').exists() else ''
    text = read_text(file, f'Every LMDB of raw images has this file.{hint}')
    headline, *lines = text.removesuffix('\n').split('\n')
    described = _HEADLINE.fullmatch(headline)
    if described and (not lines or lines.pop() != _checksum_line([headline, *lines])):
        raise DataError(f'{file}: damaged (its last line is not its checksum). Copy or build the LMDB again.')
    if not described and not _EARLIER_HEADLINE.fullmatch(headline):
        raise DataError(f'{file}, line 1: not the headline of a list of raw images. Build the LMDB again.')
    info = {}
    for number, line in enumerate(lines, 2):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in info:
            raise DataError(
                f"{file}, line {number}: expected 'key height width checksum offset' (found {line[:80]!r})."
            )
        start = zlib.crc32(match[1].encode()) if described else 0
        info[match[2]] = RawInfo(int(match[3]), int(match[4]), int(match[5], 16), start, int(match[6]))
    data = _map(path)
    if not _lie_apart(list(info.values()), len(data)) or (
        (len(data), _sample_checksum(data, info.values())) != (int(described[1]), int(described[2], 16))
        if described
        else any(_is_changed(data, image) for image in info.values())
    ):
        raise DataError(f'{path}: data.mdb is damaged or cut off, or not the one of {LIST}. Copy or build it again.')
    return info


def _map(path: Path) -> mmap.mmap:
    """Maps ``data.mdb`` of a folder."""
    file = path / 'data.mdb'
    try:
        require_regular_file(file)
        with open(file, 'rb') as opened:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise DataError(f'{file}: {getattr(error, "strerror", None) or error}. Copy or build it again.') from None


def _view(file: mmap.mmap, image: RawInfo) -> np.ndarray:
    return np.ndarray((image.height, image.width, 3), np.uint8, file, image.offset)


def _is_changed(file: mmap.mmap, image: RawInfo) -> bool:
    return zlib.crc32(_view(file, image).data, image.checksum_start) != image.checksum


def _lie_apart(images: Sequence[RawInfo], length: int) -> bool:
    """Returns whether no image overlaps another or reaches beyond the file, so that no list can ask for more memory."""
    ends = [0]
    for image in sorted(images, key=lambda image: image.offset):
        if image.offset < ends[-1]:
            return False
        ends.append(image.offset + image.height * image.width * 3)
    return ends[-1] <= length


def _sample_checksum(file: mmap.mmap, images: Iterable[RawInfo]) -> int:
    """Checksum of a few bytes from the middle of each image, which shows that ``data.mdb`` is the list's own."""
    checksum = 0
    for image in images:
        length = image.height * image.width * 3
        start = image.offset + max(0, length - _SAMPLE) // 2
        checksum = zlib.crc32(file[start : start + min(length, _SAMPLE)], checksum)
    return checksum


def _checksum_line(lines: Iterable[str]) -> str:
    return _LAST_LINE.format(zlib.crc32('\n'.join(lines).encode()))


def _record(key: str, img: np.ndarray) -> Record:
    content = np.ascontiguousarray(img).data
    label = f'{key} {img.shape[0]} {img.shape[1]}'
    return Record(key, content, f'{label} {zlib.crc32(content, zlib.crc32(label.encode())):08x}')


def _decode(paths: Sequence[Path], workers: int) -> Iterator[np.ndarray]:
    """Decodes in threads, in order; only as many images as there are threads wait, since images are large."""
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque = deque()
        for path in paths:
            ahead.append(pool.submit(read_rgb, path))
            if len(ahead) > workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _complete_list(folder: Path, lines: list[str]) -> list[str]:
    """Returns the lines of the list with headline, offsets and checksum, once the LMDB is complete."""
    data = _map(folder)
    with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin(buffers=True) as txn:
        offsets = _offsets(list(txn.cursor().iternext(keys=False)), data)  # in the order of the lines
    lines = [f'{line} {offset}' for line, offset in zip(lines, offsets)]
    sides = (map(int, line.split()[1:3]) for line in lines)
    infos = [RawInfo(height, width, 0, 0, offset) for (height, width), offset in zip(sides, offsets)]
    lines = [_HEADLINE_TEXT.format(len(data), _sample_checksum(data, infos)), *lines]
    return [*lines, _checksum_line(lines)]


def _offsets(values: list[memoryview], file: mmap.mmap) -> list[int]:
    """Finds where the values begin in the file, by their distances in the memory of LMDB's own mapping.

    Raises:
        DataError: the bytes found in the file are not those of every value.
    """
    if not values:
        return []
    addresses = [np.frombuffer(value, np.uint8).ctypes.data for value in values]
    lowest = min(range(len(values)), key=addresses.__getitem__)
    found = file.find(values[lowest])
    while found >= 0:
        offsets = [found + address - addresses[lowest] for address in addresses]
        # LMDB leaves old copies of short values in the file, and images may be alike: so every value is compared
        if all(value == file[at : at + len(value)] for value, at in zip(values, offsets)):
            return offsets
        found = file.find(values[lowest], found + 1)
    raise DataError('LMDB does not keep its values in the file as in memory. Use another version of the package lmdb.')
