"""Checks a built data set: no image is missing or damaged, and HR and LR fit together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np

from pisr_plugin.data.prepare.layout import hr_folder, joined, piece_keys, read_record, stores_of
from pisr_plugin.data.storage.image_files import read_rgb
from pisr_plugin.data.storage.lmdb_env import close_lmdb, read_value
from pisr_plugin.data.storage.png_lmdb import LIST as META_INFO
from pisr_plugin.data.storage.png_lmdb import read_meta_info
from pisr_plugin.data.storage.raw_lmdb import LIST as RAW_LIST
from pisr_plugin.data.storage.raw_lmdb import RawLmdb, read_raw_info
from pisr_plugin.utils.errors import DataError
from pisr_plugin.utils.parallel import run_jobs
from pisr_plugin.utils.resize import imresize_uint8

_MOST_JOBS = 64  # each opens all stores, which reads a page of every image
_BORDER = 2  # LR pixels at the border that may differ if HR was cropped after downscaling

# MATLAB itself may round a value to the other side: the largest difference and the share of such values.
_LARGEST_DIFFERENCE = 1
_LARGEST_SHARE = 0.01


def verify(root: Path, workers: int) -> list[str]:
    """Finds problems of a data set that :func:`~pisr_plugin.data.prepare.build.build` made.

    Args:
        root: Folder of the data set.
        workers: Largest number of processes, at least 1.

    Returns:
        A sentence for each problem, which begins with the place; empty if the data set is in order.

    Raises:
        DataError: ``root`` is not a data set, or its build was stopped.
    """
    record = read_record(root)
    if 'images' not in record['done']:
        raise DataError(f'{root}: the build was stopped before it was finished. Run the same build command again.')
    parts = record['done']
    # the user may remove the files to save space, since the LMDBs hold the images
    if len(parts) > 1 and not hr_folder(root).exists():
        parts = [part for part in parts if part != 'images']
    problems = find_problems(root, record, parts[0], workers, record['bicubic'])
    return problems + [problem for part in parts[1:] for problem in find_problems(root, record, part, workers)]


def find_problems(root: Path, record: dict, part: str, workers: int, bicubic: Collection[int] = ()) -> list[str]:
    """Finds problems of one part of a data set.

    Args:
        root: Folder of the data set.
        record: Its ``prepare.json``.
        part: ``'images'`` for the PNG files, ``'lmdb'`` for the LMDBs of them, ``'raw'`` for those of decoded images.
        workers: Largest number of processes, at least 1.
        bicubic: Scales whose LR must be MATLAB's bicubic of HR.

    Returns:
        A sentence for each problem, which begins with the place; empty if the part is in order.
    """
    scales, crop = record['options']['scales'], record['options']['crop']
    keys = piece_keys(record)
    stores = stores_of(root, scales, part)
    problems = [problem for store in stores for problem in _find_unknown_keys(store, part, set(keys))]
    work = functools.partial(
        _check_pairs, stores=stores, part=part, scales=(1, *scales), crop=crop, bicubic=tuple(bicubic)
    )
    size = -(-len(keys) // _MOST_JOBS)
    jobs = [keys[first : first + size] for first in range(0, len(keys), size)]
    label = 'checking the images' if part == 'images' else f'checking the {"raw " if part == "raw" else ""}LMDBs'
    try:
        return problems + [problem for found in run_jobs(work, jobs, workers, label) for problem in found]
    except DataError as error:  # an LMDB that cannot be opened
        return [*problems, str(error)]
    finally:
        if part == 'lmdb':
            for store in stores:
                close_lmdb(store)


def _find_unknown_keys(store: Path, part: str, keys: set[str]) -> list[str]:
    """Finds images that BasicSR would take for pairs of this data set, and images that an LMDB's list lacks."""
    if part == 'images':
        found = {path.stem for path in store.glob('*') if path.name[0] != '.'}
        return [f'{store}: {key}: not part of this data set' for key in sorted(found - keys)]
    try:
        listed = set(read_meta_info(store) if part == 'lmdb' else read_raw_info(store))
    except DataError:
        return []  # reading the images reports this error
    place = store / (META_INFO if part == 'lmdb' else RAW_LIST)
    return [
        f'{place}: {key}: {"not part of this data set" if key in listed else "not listed"}'
        for key in sorted(listed ^ keys)
    ]


def _check_pairs(
    keys: list[str], stores: list[Path], part: str, scales: tuple[int, ...], crop: str, bicubic: tuple[int, ...]
) -> list[str]:
    """Decodes HR and LR images and compares them; returns a sentence for each problem."""
    readers = {scale: _reader(store, part) for store, scale in zip(stores, scales)}
    problems = []
    for key in keys:
        images = {}
        for store, scale in zip(stores, scales):
            try:
                images[scale] = readers[scale](key)
            except DataError as error:
                problems.append(f'{store}: {key}: {error}')
        for store, scale in zip(stores[1:], scales[1:]):
            if 1 in images and scale in images:
                problem = _compare(images[1], images[scale], scale, crop, scale in bicubic)
                problems += [f'{store}: {key}: {problem}'] if problem else []
    return problems


def _compare(hr: np.ndarray, lr: np.ndarray, scale: int, crop: str, is_bicubic: bool) -> str | None:
    """Returns why an HR and an LR image do not fit together, or None."""
    (height, width), (lr_height, lr_width) = hr.shape[:2], lr.shape[:2]
    rests = (height - lr_height * scale, width - lr_width * scale)
    # HR fits exactly, or has a rest smaller than the scale
    if not all(0 <= rest < (1 if crop == 'lcm' else scale) for rest in rests):
        return f'{lr_height} x {lr_width} does not fit HR of {height} x {width} at scale {scale}'
    if not is_bicubic:
        return None
    made = imresize_uint8(hr[: lr_height * scale, : lr_width * scale], 1 / scale)
    inside = (slice(_BORDER, -_BORDER),) * 2  # LR cropped later was made from pixels outside of it
    difference = np.abs(made[inside].astype(np.int16) - lr[inside])
    share = (difference > 0).mean() if difference.size else 0
    if not difference.size or (difference.max() <= _LARGEST_DIFFERENCE and share <= _LARGEST_SHARE):
        return None
    return f"not MATLAB's bicubic of HR: {share:.1%} of the values differ, by up to {difference.max()}"


def _reader(store: Path, part: str) -> Callable[[str], np.ndarray]:
    """Returns a function that reads the image of a key, or raises DataError if it is missing or damaged."""
    if part == 'raw':
        images = RawLmdb(store)
        return functools.partial(_read_raw, images, {key: index for index, key in enumerate(images.keys)})
    return functools.partial(_read_png, store, read_meta_info(store) if part == 'lmdb' else None)


def _read_raw(images: RawLmdb, indices: dict[str, int], key: str) -> np.ndarray:
    if key not in indices:
        raise DataError('missing')
    if images.is_changed(indices[key]):
        raise DataError('changed since it was written')
    return images.views([indices[key]])[0]


def _read_png(store: Path, listed: Mapping[str, tuple[int, int, int]] | None, key: str) -> np.ndarray:
    path = store / f'{key}.png'
    if listed is not None:
        content = read_value(store, key)
    else:
        content = path.read_bytes() if path.is_file() else None
    if content is None:
        raise DataError('missing')
    img = read_rgb(content)
    if listed and key in listed and img.shape != listed[key]:
        raise DataError(f'{joined(img.shape, " x ")} (height x width x channels), not as {META_INFO} lists it')
    return img
