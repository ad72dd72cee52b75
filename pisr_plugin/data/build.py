"""Makes HR/LR pairs of photographs, in a folder that can be checked, continued and read by stock BasicSR."""

from __future__ import annotations

import functools
import math
import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ..errors import DataError, OptionsError
from ..resize import imresize_uint8
from .image_lmdb import write_lmdb
from .images import SUFFIXES, image_size, read_rgb, write_png
from .layout import (
    RECORD,
    complain,
    hr_folder,
    image_folders,
    keys_of,
    piece_keys,
    read_record,
    save_record,
    stores_of,
    words,
)
from .parallel import run_jobs
from .raw_lmdb import write_raw_lmdb
from .verify import find_problems

LMDBS = {'png': 'lmdb', 'raw': 'raw'}  # kinds of LMDBs, and the parts of a data set that they are


@dataclass(frozen=True)
class PairOptions:
    """What decides the content of a data set.

    Attributes:
        scales: Upscaling factors, each with its own LR images.
        crop: ``'lcm'`` crops HR to a multiple of all scales, so that HR is exactly scale * LR, as training needs.
            ``'scale'`` keeps HR whole and makes each LR from a crop to a multiple of its own scale: the protocol of
            the benchmarks; BasicSR crops HR to scale * LR when it validates.
        sub_images: Side of the square pieces that HR is cut into, or None to keep images whole.
        step: Distance between pieces.
        thresh: A rest of at most so many pixels gets no piece of its own.
        lr_dirs: By scale, folders with LR images made elsewhere, to be used instead of computing them. The first that
            has the image counts.

    Raises:
        OptionsError: the values do not fit together.
    """

    scales: tuple[int, ...] = (2, 3, 4)
    crop: str = 'lcm'
    sub_images: int | None = None
    step: int = 240
    thresh: int = 0
    lr_dirs: dict[int, Sequence[Path]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) < 2 or len(set(self.scales)) < len(self.scales):
            raise OptionsError(f'scales: {words(self.scales)} found; possible are different whole numbers from 2 on.')
        for scale in self.lr_dirs:
            if scale not in self.scales:
                raise OptionsError(f'lr-dir: X{scale} found, but the scales are {words(self.scales)}.')
        if self.sub_images is None:
            return
        if self.crop != 'lcm':
            raise OptionsError('crop: pieces need HR that is exactly scale * LR, so sub-images go with crop lcm only.')
        for name, value in (('sub-images', self.sub_images), ('step', self.step)):
            if value < 1 or value % self.multiple:
                raise OptionsError(
                    f'{name}: {value} found; it must be a multiple of {self.multiple}, so that pieces '
                    f'of HR and LR show the same for the scales {words(self.scales)}.'
                )

    @property
    def multiple(self) -> int:
        """What the sides of stored HR images are multiples of."""
        return math.lcm(*self.scales) if self.crop == 'lcm' else 1

    @property
    def bicubic(self) -> list[int]:
        """The scales whose LR images are made as MATLAB makes them, or come from where that is said of them."""
        return [
            scale
            for scale in self.scales
            if all('bicubic' in str(folder).lower() for folder in self.lr_dirs.get(scale, ()))
        ]

    def as_record(self) -> dict:
        """The options as JSON holds them; where given LR images lay does not matter, that they were given does."""
        return {**asdict(self), 'scales': list(self.scales), 'lr_dirs': sorted(self.lr_dirs)}


def build(
    sources: Sequence[Path], root: Path, options: PairOptions, *, lmdb: Collection[str] = tuple(LMDBS), workers: int
) -> bool:
    """Makes a data set, or what is still missing of one.

    Finished files are kept, so a build that was stopped goes on where it was when called again. What was written is
    read back and compared.

    Args:
        sources: The photographs.
        root: Folder of the data set.
        options: What to make.
        lmdb: Which LMDBs to fill too: ``'png'`` with the image files, for stock BasicSR; ``'raw'`` with the decoded
            images, for ``PatchStoreDataset``.
        workers: Most processes to use.

    Returns:
        False if everything was there already.

    Raises:
        DataError: photographs that cannot be used (all are named, the others are finished), a folder that holds
            something else (it is left as it is), what was read back is wrong.
        OSError: a file could not be written.
    """
    names = _names(sources)
    record = _open_record(root, options, sources, names)
    if 'images' not in record['done']:
        record['pieces'] = _write_images(sources, names, root, options, workers)
        _finish(root, record, 'images', find_problems(root, record, 'images', workers))
        changed = True
    else:
        changed = False
    for kind, part in LMDBS.items():
        if kind in lmdb and part not in record['done']:
            _write_lmdbs(root, record, part, workers)
            _finish(root, record, part, find_problems(root, record, part, workers))
            changed = True
    return changed


def _names(sources: Sequence[Path]) -> list[str]:
    """Stems as keys of an LMDB: ASCII, and no dot, at which BasicSR would cut the key off."""
    names = [re.sub(r'[^0-9A-Za-z_-]', '_', path.stem) for path in sources]
    first: dict[str, Path] = {}
    clashes = []
    for name, path in zip(names, sources):
        if name in first:
            clashes.append(f'{first[name].name} and {path.name}: both {name}.png')
        first.setdefault(name, path)
    if clashes:
        raise complain(
            f'{words(dict.fromkeys(path.parent for path in sources))}: photos whose results would have the same name.',
            clashes,
            'Rename them. Nothing was written.',
        )
    return names


def _open_record(root: Path, options: PairOptions, sources: Sequence[Path], names: Sequence[str]) -> dict:
    """Starts ``prepare.json``, or reads it and makes sure that it is about the same data set."""
    now = {path.name: path.stat().st_size for path in sources}
    if (root / RECORD).exists():
        record = read_record(root)
        _compare(root, record, options, now)
    else:
        occupied = [path.name for path in (root / 'HR', root / 'LR_bicubic', *root.glob('*.lmdb')) if path.exists()]
        if occupied:
            raise DataError(
                f'{root}: holds {words(occupied)}, not built by prepare_data. Nothing was changed; choose '
                f'another folder with -o.'
            )
        record = {'options': options.as_record(), 'bicubic': options.bicubic, 'pieces': {}, 'done': []}
    if 'images' not in record['done']:
        record['sources'] = now
        for folder in image_folders(root, options.scales):
            folder.mkdir(parents=True, exist_ok=True)
        save_record(root, record)
    return record


def _compare(root: Path, record: dict, options: PairOptions, now: dict[str, int]) -> None:
    """Refuses a folder made with other options or of other photos."""
    asked, there = options.as_record(), record['options']
    differences = [
        f'{key}: {words(there.get(key))} there, {words(value)} asked for'
        for key, value in asked.items()
        if there.get(key) != value
    ]
    for name, size in record['sources'].items():
        # Photos that left nothing may change or go: they were the damaged ones of an unfinished build.
        stem = _names([Path(name)])[0]
        if now.get(name) != size and ('images' in record['done'] or _made_of(root, stem)):
            differences.append(f'{name}: {"changed" if name in now else "missing now"}')
    if 'images' in record['done']:
        differences += [f'{name}: new' for name in now if name not in record['sources']]
    if differences:
        raise complain(
            f'{root}: holds another data set.',
            differences,
            'Nothing was changed; choose another folder with -o, or delete this one.',
        )


def _made_of(root: Path, name: str) -> bool:
    return any((hr_folder(root) / f'{key}.png').exists() for key in (name, f'{name}_s001'))


def _finish(root: Path, record: dict, part: str, problems: list[str]) -> None:
    if problems:
        raise complain(
            f'{root}: what was written is not right.', problems, 'Delete what is named and run the same command again.'
        )
    for folder in (root, *image_folders(root, record['options']['scales'])):
        for leftover in folder.glob('.*.tmp'):  # of runs that were killed
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    record['done'].append(part)
    save_record(root, record)


def _write_images(
    sources: Sequence[Path], names: Sequence[str], root: Path, options: PairOptions, workers: int
) -> dict[str, int]:
    """Makes all PNG files; returns how many pieces each photo gave, 0 for one kept whole."""
    label = 'HR, LR ' + words(f'x{scale}' for scale in options.scales)
    work = functools.partial(_write_pair, root=root, options=options)
    pieces, bad = {}, []
    for result, name in zip(run_jobs(work, list(zip(sources, names)), workers, label), names):
        if isinstance(result, str):
            bad.append(result)
        else:
            pieces[name] = result
    if bad:
        raise complain(
            f'{len(bad)} of {len(sources)} photos cannot be used:',
            bad,
            f'The other {len(pieces)} are finished in {root}. Mend or take away those named and run the '
            f'same command again.',
        )
    return pieces


def _write_lmdbs(root: Path, record: dict, part: str, workers: int) -> None:
    """Fills those LMDBs of a part that are not there yet."""
    scales, keys = record['options']['scales'], piece_keys(record)
    for folder, target in zip(image_folders(root, scales), stores_of(root, scales, part)):
        if target.exists():
            continue
        paths = [folder / f'{key}.png' for key in keys]
        if part == 'raw':
            write_raw_lmdb(paths, target, workers)
        else:
            write_lmdb(paths, target)


def _write_pair(source_and_name: tuple[Path, str], root: Path, options: PairOptions) -> int | str:
    """Makes the HR and LR files of one photo, if they are not there; returns the number of pieces or what is wrong."""
    source, name = source_and_name
    try:
        height, width = (side // options.multiple * options.multiple for side in image_size(source))
        corners = _corners(source, height, width, options)
        keys = keys_of(name, len(corners) if options.sub_images else 0)
        folders = image_folders(root, options.scales)
        if not all((folder / f'{key}.png').exists() for folder in folders for key in keys):
            whole = read_rgb(source)
            images = [whole[:height, :width], *(_lr(whole, source, scale, options) for scale in options.scales)]
        else:
            return len(keys) if options.sub_images else 0
    except DataError as error:
        return str(error)
    # Writing is outside: a full disk ends the build, a damaged photo does not.
    for folder, img, scale in zip(folders, images, (1, *options.scales)):
        for key, (top, left) in zip(keys, corners):
            side = options.sub_images
            piece = img[top // scale : (top + side) // scale, left // scale : (left + side) // scale] if side else img
            if not (folder / f'{key}.png').exists():
                write_png(folder / f'{key}.png', piece)
    return len(keys) if options.sub_images else 0


def _corners(source: Path, height: int, width: int, options: PairOptions) -> list[tuple[int, int]]:
    """Top left corners of the pieces of an HR image."""
    least = options.sub_images or max(options.scales)
    if min(height, width) < least:
        raise DataError(
            f'{source}: {height} x {width} (height x width, cropped) is less than '
            f'{"a sub-image" if options.sub_images else "the scale"}, {least}'
        )
    if not options.sub_images:
        return [(0, 0)]
    return [(top, left) for top in _starts(height, options) for left in _starts(width, options)]


def _starts(length: int, options: PairOptions) -> list[int]:
    """Where pieces begin along a side: every step, and flush with the end if the rest is worth it."""
    starts = list(range(0, length - options.sub_images + 1, options.step))
    if length - (starts[-1] + options.sub_images) > options.thresh:
        starts.append(length - options.sub_images)
    return starts


def _lr(whole: np.ndarray, source: Path, scale: int, options: PairOptions) -> np.ndarray:
    """The LR image for a photo as it will be stored."""
    multiple = options.multiple if options.crop == 'lcm' else scale
    height, width = (side // multiple * multiple for side in whole.shape[:2])
    if scale not in options.lr_dirs:
        return imresize_uint8(whole[:height, :width], 1 / scale)
    path = find_lr(options.lr_dirs[scale], source, scale)
    lr = read_rgb(path)
    expected = tuple(side // scale for side in whole.shape[:2])
    if lr.shape[:2] != expected:
        raise DataError(
            f'{path}: {words(lr.shape[:2], " x ")} (height x width); 1/{scale} of {source.name} is '
            f'{words(expected, " x ")}'
        )
    return lr[: height // scale, : width // scale]


def find_lr(folders: Sequence[Path], source: Path, scale: int) -> Path:
    """The given LR image of a photo: its name, or its name and ``x2``, with any ending.

    Raises:
        DataError: there is none.
    """
    stems = (source.stem, f'{source.stem}x{scale}')
    names = [f'{stem}{suffix}' for stem in stems for suffix in (source.suffix, *SUFFIXES)]
    for path in (folder / name for folder in folders for name in names):
        if path.is_file():
            return path
    raise DataError(
        f'{words(folders)}: no LR image for {source.name}; looked for {words(stems, " and ")} with '
        f'{words(SUFFIXES, ", ")}'
    )
