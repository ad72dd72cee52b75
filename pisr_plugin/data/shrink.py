"""Smaller copies of photos: the augmentation by size that older training sets were enlarged with."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from ..errors import DataError, OptionsError
from ..resize import imresize_uint8
from .images import read_rgb, write_png
from .parallel import run_jobs


def shrink(sources: Sequence[Path], target: Path, factors: Sequence[float], workers: int) -> int:
    """Writes each photo once for each factor, as ``<name>_090.png`` for 0.9; files that are there are kept.

    Args:
        sources: The photos.
        target: Folder for the copies.
        factors: Sizes between 0 and 1; 1 copies the photo as it is.
        workers: Most processes to use.

    Returns:
        How many files there are now.

    Raises:
        OptionsError: a factor is out of its range or no ratio of small integers.
        DataError: a photo cannot be read, or two have the same name.
    """
    for factor in factors:
        if not 0 < factor <= 1 or Fraction(factor).limit_denominator(100) != Fraction(str(factor)):
            raise OptionsError(f'--factors: {factor} found; possible are sizes from 0.01 to 1, in hundredths.')
    stems = [source.stem for source in sources]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise DataError(f'{", ".join(twice[:3])}: the name of several photos; shrink them into different folders.')
    target.mkdir(parents=True, exist_ok=True)
    work = functools.partial(_shrink_one, target=target, factors=tuple(factors))
    return sum(run_jobs(work, list(sources), workers, 'shrinking'))


def _shrink_one(source: Path, target: Path, factors: Sequence[float]) -> int:
    files = {factor: target / f'{source.stem}_{round(100 * factor):03d}.png' for factor in factors}
    missing = {factor: file for factor, file in files.items() if not file.exists()}
    if missing:
        photo = read_rgb(source)
        for factor, file in missing.items():
            write_png(file, photo if factor == 1 else imresize_uint8(photo, factor))
    return len(files)
