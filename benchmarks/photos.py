"""Data sets for the data benchmark: photographs of DIV2K's size, laid out for BasicSR and as our store."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.harness import Settings
from pisr_plugin.data.prepare.build import PairOptions, build
from pisr_plugin.data.prepare.demo import TRAIN
from pisr_plugin.data.prepare.layout import image_folders, stores_of
from pisr_plugin.data.storage.image_files import list_images, read_rgb, write_png

SCALE = 2
_SIZE = (1356, 2040)  # DIV2K's most frequent


@dataclass(frozen=True)
class Pair:
    """Where one data set's HR and LR images are: folders or LMDBs."""

    gt: Path
    lq: Path


@dataclass(frozen=True)
class PhotoSets:
    """The same photographs in the forms that are compared.

    Attributes:
        folder: PNG sub-images of 480x480, as BasicSR advises for DIV2K.
        lmdb: The same PNGs in LMDBs.
        store: Whole images, decoded, in LMDBs.
        photos: Whole images as PNGs.
    """

    folder: Pair
    lmdb: Pair
    store: Pair
    photos: Pair


def make_photo_sets(root: Path, settings: Settings) -> PhotoSets:
    """Makes all forms below ``root``, of ``settings.photos`` or of tiled photographs that ship inside scikit-image."""
    source = settings.photos
    if source is None:
        source = root / 'made'
        source.mkdir()
        for number, photo in enumerate(_tiled_photos(1 if settings.quick else 16)):
            write_png(source / f'{number:02}.png', photo)
    paths = list_images(source)
    scales = (SCALE,)
    whole, pieces = root / 'whole', root / 'pieces'
    build(paths, whole, PairOptions(scales), lmdb=['raw'], workers=1)
    build(paths, pieces, PairOptions(scales, sub_images=480, step=240), lmdb=['png'], workers=1)
    return PhotoSets(
        folder=Pair(*image_folders(pieces, scales)),
        lmdb=Pair(*stores_of(pieces, scales, 'lmdb')),
        store=Pair(*stores_of(whole, scales, 'raw')),
        photos=Pair(*image_folders(whole, scales)),
    )


def _tiled_photos(count: int) -> Iterator[np.ndarray]:
    """Photographs repeated, mirrored at each seam, to a large size: enlarged ones would be too easy to decode."""
    folder = Path(importlib.util.find_spec('skimage').origin).parent / 'data'
    random = np.random.default_rng(0)
    for number in range(count):
        photo = read_rgb(folder / TRAIN[number % len(TRAIN)])
        tiled = np.pad(photo, ((0, _SIZE[0]), (0, _SIZE[1]), (0, 0)), mode='symmetric')
        top, left = (int(random.integers(side)) for side in photo.shape[:2])  # another view of it each time
        yield np.ascontiguousarray(tiled[top : top + _SIZE[0], left : left + _SIZE[1]])
