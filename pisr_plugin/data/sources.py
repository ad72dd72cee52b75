"""Finds the photos that a data set is made of, in plain folders and as the public data sets lay them out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .images import list_images

# Folders inside a data set: HR, and LR by scale where there is one.
_LAYOUTS = (
    ('DIV2K_train_HR', 'DIV2K_train_LR_bicubic'),
    ('Flickr2K_HR', 'Flickr2K_LR_bicubic'),
)


def find_sources(inputs: Sequence[Path]) -> tuple[list[Path], dict[int, list[Path]]]:
    """Finds photos and, where all inputs come with them, their LR images.

    Args:
        inputs: Folders of photos, or of a data set: ``DIV2K`` with ``DIV2K_train_HR`` and
            ``DIV2K_train_LR_bicubic/X2``, ``Flickr2K`` with ``Flickr2K_HR`` and ``Flickr2K_LR_bicubic/X2``.

    Returns:
        The photos, input by input, and by scale the folders of their LR images.

    Raises:
        DataError: a folder is missing or holds no images.
    """
    photos: list[Path] = []
    lr_dirs: list[dict[int, Path]] = []
    for folder in inputs:
        hr, lr = next(((folder / hr, folder / lr) for hr, lr in _LAYOUTS if (folder / hr).is_dir()), (folder, None))
        photos += list_images(hr)
        lr_dirs.append(_by_scale(lr) if lr else {})
    common = set(lr_dirs[0]).intersection(*lr_dirs[1:]) if lr_dirs else set()
    return photos, {scale: [dirs[scale] for dirs in lr_dirs] for scale in sorted(common)}


def _by_scale(folder: Path) -> dict[int, Path]:
    return {int(path.name[1:]): path for path in folder.glob('X*') if path.name[1:].isdecimal() and path.is_dir()}
