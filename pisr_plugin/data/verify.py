"""Checks a built data set: every image there, whole, and HR and LR of sizes that fit."""

from __future__ import annotations

import functools
from pathlib import Path

from ..errors import DataError
from .image_lmdb import read_meta_info
from .images import read_rgb
from .layout import hr_folder, image_folders, lmdb_of, piece_keys, read_record
from .lmdb import close_lmdb, open_lmdb
from .parallel import run_jobs

_KEYS_PER_JOB = 16


def verify(root: Path, workers: int) -> list[str]:
    """What is wrong with a data set that :func:`~pisr_plugin.data.build.build` made.

    Raises:
        DataError: ``root`` is no data set, or was never finished.
    """
    record = read_record(root)
    if 'images' not in record['done']:
        raise DataError(f'{root}: the build was stopped before it was finished. Run the same build command again.')
    parts = record['done']
    if 'lmdb' in parts and not hr_folder(root).exists():  # removed to save space, which the LMDBs allow
        parts = ['lmdb']
    return [problem for part in parts for problem in find_problems(root, record, part, workers)]


def find_problems(root: Path, record: dict, part: str, workers: int) -> list[str]:
    """What is wrong with one part of a data set.

    Args:
        root: The data set's folder.
        record: Its ``prepare.json``.
        part: ``'images'`` for the PNG files, ``'lmdb'`` for the LMDBs.
        workers: Most processes to use.

    Returns:
        A sentence for each problem, starting with the place; empty if all is well.
    """
    scales, crop = record['options']['scales'], record['options']['crop']
    keys = piece_keys(record)
    stores = image_folders(root, scales)
    if part == 'lmdb':
        stores = [lmdb_of(folder, root) for folder in stores]
    problems = [problem for store in stores for problem in _find_strangers(store, set(keys))]
    work = functools.partial(_check_pairs, stores=stores, scales=(1, *scales), crop=crop)
    jobs = [keys[first : first + _KEYS_PER_JOB] for first in range(0, len(keys), _KEYS_PER_JOB)]
    label = 'checking the LMDBs' if part == 'lmdb' else 'checking the images'
    try:
        return problems + [problem for found in run_jobs(work, jobs, workers, label) for problem in found]
    except DataError as error:  # an LMDB that cannot be opened at all
        return [*problems, str(error)]
    finally:
        if part == 'lmdb':
            for store in stores:
                close_lmdb(store)


def _find_strangers(store: Path, keys: set[str]) -> list[str]:
    """Images that do not belong here; BasicSR would take them for pairs. For an LMDB also what its list lacks."""
    if store.suffix != '.lmdb':
        found = {path.stem for path in store.glob('*') if path.name[0] != '.'}
        return [f'{store}: {key}: not part of this data set' for key in sorted(found - keys)]
    try:
        listed = set(read_meta_info(store))
    except DataError as error:
        return [str(error)]
    return [
        f'{store / "meta_info.txt"}: {key}: {"not part of this data set" if key in listed else "not listed"}'
        for key in sorted(listed ^ keys)
    ]


def _check_pairs(keys: list[str], stores: list[Path], scales: tuple[int, ...], crop: str) -> list[str]:
    """Decodes HR and LR images and compares their sizes."""
    problems = []
    for key in keys:
        sizes = {}
        for store, scale in zip(stores, scales):
            content = _read(store, key)
            if content is None:
                problems.append(f'{store}: {key}: missing')
                continue
            try:
                sizes[scale] = read_rgb(content).shape[:2]
            except DataError as error:
                problems.append(f'{store}: {key}: {error}')
        for store, scale in zip(stores[1:], scales[1:]):
            if 1 in sizes and scale in sizes and not _fit(sizes[1], sizes[scale], scale, crop):
                (height, width), (lr_height, lr_width) = sizes[1], sizes[scale]
                problems.append(
                    f'{store}: {key}: {lr_height} x {lr_width} does not fit HR of {height} x {width} at scale {scale}'
                )
    return problems


def _fit(hr: tuple[int, int], lr: tuple[int, int], scale: int, crop: str) -> bool:
    """Whether LR is what the crop makes of HR: an exact fit, or HR with a rest smaller than the scale."""
    rests = [side - small * scale for side, small in zip(hr, lr)]
    return all(0 <= rest < (1 if crop == 'lcm' else scale) for rest in rests)


def _read(store: Path, key: str) -> bytes | None:
    if store.suffix == '.lmdb':
        with open_lmdb(store).begin() as txn:
            return txn.get(key.encode('ascii'))
    try:
        return (store / f'{key}.png').read_bytes()
    except FileNotFoundError:
        return None
