"""Finds the photos of a data set, in plain folders and in the layout of public data sets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pisr_plugin.data.storage.image_files import list_images

# Folders of the public data sets: of HR, and of LR by scale.
_LAYOUTS = (
    ('DIV2K_train_HR', 'DIV2K_train_LR_bicubic'),
    ('Flickr2K_HR', 'Flickr2K_LR_bicubic'),
)


def find_sources(inputs: Sequence[Path]) -> tuple[list[Path], dict[int, list[Path]]]:
    """Finds photos, and their LR images if all inputs have them.

    Args:
        inputs: Folders of photos, or of a public data set: ``DIV2K`` with ``DIV2K_train_HR`` and
            ``DIV2K_train_LR_bicubic/X2``, ``Flickr2K`` with ``Flickr2K_HR`` and ``Flickr2K_LR_bicubic/X2``.

    Returns:
        The photos in the order of the inputs, and the folders of their LR images by scale.

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
    return {
        int(path.name[1:]): path
        for path in folder.glob('X*')
        if re.fullmatch('X[0-9]{1,2}', path.name) and path.is_dir()
    }
