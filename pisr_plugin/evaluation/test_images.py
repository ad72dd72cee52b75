"""Read the images of a test set as they are on disk: not degraded, not cut."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from basicsr.data import build_dataset
from torch import Tensor

from pisr_plugin.data.storage.image_files import list_images, read_rgb, read_rgb_or_gray
from pisr_plugin.utils.errors import DataError


class Sample(NamedTuple):
    """One test image.

    Attributes:
        name: The file's name without ending.
        gt: (H, W, 3) RGB or (H, W) grey, uint8.
        lq: The LR image that comes with it, (h, w, 3) uint8 RGB, or None.
    """

    name: str
    gt: np.ndarray
    lq: np.ndarray | None


def read_images(options: Mapping[str, Any], start: int = 0, step: int = 1) -> Iterator[Sample]:
    """Yields the images of a test set.

    Args:
        options: A dataset block of BasicSR's options. Image files in folders need ``dataroot_gt`` only, and grey files
            stay grey. Other datasets are built, and their samples are taken.
        start: Number of the first image, from 0.
        step: Distance to the next image, 1 for all.

    Raises:
        DataError: an image is missing or damaged.
    """
    if not options.get('dataroot_gt'):
        raise DataError(
            f'{options.get("name", "a test set")}: dataroot_gt is missing. Expected a folder of HR images to compare '
            'with. pisr-upscale upscales images that have no ground truth.'
        )
    if not _on_disk(options):
        dataset = build_dataset({**options, 'color': 'rgb'})
        for item in (dataset[number] for number in range(start, len(dataset), step)):
            name = Path(item['lq_path']).name  # one HR image may come with several degradations
            yield Sample(name.removesuffix('.png'), _to_uint8(item['gt']), _to_uint8(item['lq']))
        return
    template = options.get('filename_tmpl') or '{}'
    for path in list_images(_root(options))[start::step]:
        lq = None
        if options.get('dataroot_lq'):
            lq_path = Path(os.path.expanduser(options['dataroot_lq'])) / f'{template.format(path.stem)}{path.suffix}'
            if not lq_path.is_file():
                raise DataError(f'{lq_path}: the LR image of {path.name} is missing.')
            lq = read_rgb(lq_path)
        yield Sample(path.stem, read_rgb_or_gray(path), lq)


def image_names(options: Mapping[str, Any]) -> list[str]:
    """Names of a test set's images, in the order of :func:`read_images`."""
    if _on_disk(options) and options.get('dataroot_gt'):
        return [path.stem for path in list_images(_root(options))]
    return [sample.name for sample in read_images(options)]


def _on_disk(options: Mapping[str, Any]) -> bool:
    paired = options.get('type', 'PairedImageDataset') == 'PairedImageDataset'
    return paired and (options.get('io_backend') or {}).get('type', 'disk') == 'disk'


def _root(options: Mapping[str, Any]) -> Path:
    return Path(os.path.expanduser(options['dataroot_gt']))


def _to_uint8(image: Tensor) -> np.ndarray:
    return np.rint(image.clamp(0, 1).permute(1, 2, 0).numpy() * 255).astype(np.uint8)
