"""Writes smaller copies of photos: the augmentation by size of older training sets."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from pisr_plugin.data.storage.image_files import read_rgb, write_png
from pisr_plugin.utils.errors import DataError, OptionsError
from pisr_plugin.utils.parallel import run_jobs
from pisr_plugin.utils.resize import imresize_uint8


def rescale(sources: Sequence[Path], target: Path, factors: Sequence[float], workers: int) -> int:
    """Writes each photo once for each factor, as ``<name>_090.png`` for 0.9; existing files are kept.

    Args:
        sources: The photos.
        target: Folder for the copies.
        factors: Scale factors in hundredths, from 0.01 to 1; 1 copies the photo as it is.
        workers: Largest number of processes, at least 1.

    Returns:
        The number of files.

    Raises:
        OptionsError: a factor is out of its range.
        DataError: a photo cannot be read, or two photos have the same name.
    """
    for factor in factors:
        if not 0 < factor <= 1 or round(100 * factor) / 100 != factor:
            raise OptionsError(f'--factors: impossible (found {factor}). Expected hundredths, from 0.01 to 1.')
    stems = [source.stem for source in sources]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise DataError(f'{", ".join(twice[:3])}: several photos have this name. Write them into different folders.')
    target.mkdir(parents=True, exist_ok=True)
    work = functools.partial(_rescale_one, target=target, factors=tuple(factors))
    return sum(run_jobs(work, list(sources), workers, 'rescaling'))


def _rescale_one(source: Path, target: Path, factors: Sequence[float]) -> int:
    files = {factor: target / f'{source.stem}_{round(100 * factor):03d}.png' for factor in factors}
    missing = {factor: file for factor, file in files.items() if not file.exists()}
    if missing:
        photo = read_rgb(source)
        for factor, file in missing.items():
            write_png(file, photo if factor == 1 else imresize_uint8(photo, factor))
    return len(files)
