"""Checks a built data set: every image there, whole, and HR and LR that fit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..resize import imresize_uint8
from .image_lmdb import LIST as META_INFO
from .image_lmdb import read_meta_info
from .images import read_rgb
from .layout import hr_folder, piece_keys, read_record, stores_of
from .lmdb import close_lmdb, open_lmdb
from .parallel import run_jobs
from .raw_lmdb import LIST as RAW_LIST
from .raw_lmdb import RawImages, read_raw_info

_MOST_JOBS = 64  # each opens all stores, which reads a page for every image
_BORDER = 2  # LR pixels to which a crop made after shrinking reaches

# LR that others made with MATLAB may differ where a value was about to be rounded the other way.
_NEAR = 1
_SHARE = 0.01


def verify(root: Path, workers: int) -> list[str]:
    """What is wrong with a data set that :func:`~pisr_plugin.data.build.build` made.

    Raises:
        DataError: ``root`` is no data set, or was never finished.
    """
    record = read_record(root)
    if 'images' not in record['done']:
        raise DataError(f'{root}: the build was stopped before it was finished. Run the same build command again.')
    parts = record['done']
    if len(parts) > 1 and not hr_folder(root).exists():  # removed to save space, which the LMDBs allow
        parts = [part for part in parts if part != 'images']
    options = record['options']
    # sets of earlier versions do not say it
    bicubic = record.get('bicubic', [scale for scale in options['scales'] if scale not in options['lr_dirs']])
    problems = find_problems(root, record, parts[0], workers, bicubic)
    return problems + [problem for part in parts[1:] for problem in find_problems(root, record, part, workers)]


def find_problems(root: Path, record: dict, part: str, workers: int, bicubic: Collection[int] = ()) -> list[str]:
    """What is wrong with one part of a data set.

    Args:
        root: The data set's folder.
        record: Its ``prepare.json``.
        part: ``'images'`` for the PNG files, ``'lmdb'`` for the LMDBs of them, ``'raw'`` for those of decoded images.
        workers: Most processes to use.
        bicubic: Scales whose LR must be MATLAB's bicubic of HR.

    Returns:
        A sentence for each problem, starting with the place; empty if all is well.
    """
    scales, crop = record['options']['scales'], record['options']['crop']
    keys = piece_keys(record)
    stores = stores_of(root, scales, part)
    problems = [problem for store in stores for problem in _find_strangers(store, part, set(keys))]
    work = functools.partial(
        _check_pairs, stores=stores, part=part, scales=(1, *scales), crop=crop, bicubic=tuple(bicubic)
    )
    size = -(-len(keys) // _MOST_JOBS)
    jobs = [keys[first : first + size] for first in range(0, len(keys), size)]
    label = 'checking the images' if part == 'images' else f'checking the {"raw " if part == "raw" else ""}LMDBs'
    try:
        return problems + [problem for found in run_jobs(work, jobs, workers, label) for problem in found]
    except DataError as error:  # an LMDB that cannot be opened at all
        return [*problems, str(error)]
    finally:
        if part == 'lmdb':
            for store in stores:
                close_lmdb(store)


def _find_strangers(store: Path, part: str, keys: set[str]) -> list[str]:
    """Images that do not belong here; BasicSR would take them for pairs. For an LMDB also what its list lacks."""
    if part == 'images':
        found = {path.stem for path in store.glob('*') if path.name[0] != '.'}
        return [f'{store}: {key}: not part of this data set' for key in sorted(found - keys)]
    try:
        listed = set(read_meta_info(store) if part == 'lmdb' else read_raw_info(store))
    except DataError as error:
        # told again when the images are read; a raw LMDB needs its list for that
        return [str(error)] if part == 'lmdb' else []
    place = store / (META_INFO if part == 'lmdb' else RAW_LIST)
    return [
        f'{place}: {key}: {"not part of this data set" if key in listed else "not listed"}'
        for key in sorted(listed ^ keys)
    ]


def _check_pairs(
    keys: list[str], stores: list[Path], part: str, scales: tuple[int, ...], crop: str, bicubic: tuple[int, ...]
) -> list[str]:
    """Decodes HR and LR images and compares them."""
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
    """What is wrong between an HR and its LR image, if anything."""
    (height, width), (lr_height, lr_width) = hr.shape[:2], lr.shape[:2]
    rests = (height - lr_height * scale, width - lr_width * scale)
    # an exact fit, or HR with a rest smaller than the scale
    if not all(0 <= rest < (1 if crop == 'lcm' else scale) for rest in rests):
        return f'{lr_height} x {lr_width} does not fit HR of {height} x {width} at scale {scale}'
    if not is_bicubic:
        return None
    made = imresize_uint8(hr[: lr_height * scale, : lr_width * scale], 1 / scale)
    inside = (slice(_BORDER, -_BORDER),) * 2  # what was cropped later was made with what lay beyond
    difference = np.abs(made[inside].astype(np.int16) - lr[inside])
    share = (difference > 0).mean() if difference.size else 0
    if not difference.size or (difference.max() <= _NEAR and share <= _SHARE):
        return None
    return f"not MATLAB's bicubic of HR: {share:.1%} of the values differ, by up to {difference.max()}"


def _reader(store: Path, part: str) -> Callable[[str], np.ndarray]:
    """A function that reads the image of a key, and raises DataError if it is missing or damaged."""
    if part == 'raw':
        images = RawImages(store)
        return functools.partial(_read_raw, images, {key: index for index, key in enumerate(images.keys)})
    return functools.partial(_read_png, store)


def _read_raw(images: RawImages, indices: dict[str, int], key: str) -> np.ndarray:
    if key not in indices:
        raise DataError('missing')
    if images.is_changed(indices[key]):
        raise DataError('changed: its checksum is not the listed one')
    return images.views([indices[key]])[0]


def _read_png(store: Path, key: str) -> np.ndarray:
    if store.suffix == '.lmdb':
        with open_lmdb(store).begin() as txn:
            content = txn.get(key.encode('ascii'))
    else:
        path = store / f'{key}.png'
        content = path.read_bytes() if path.is_file() else None
    if content is None:
        raise DataError('missing')
    return read_rgb(content)
