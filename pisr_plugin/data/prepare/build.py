"""Makes HR/LR pairs from photos, in a folder that BasicSR reads and that a stopped build can continue."""

from __future__ import annotations

import functools
import math
import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from pisr_plugin.data.prepare.layout import (
    MOST_SCALE,
    RECORD,
    hr_folder,
    image_folders,
    joined,
    keys_of,
    piece_keys,
    problem_list,
    read_record,
    save_record,
    stores_of,
)
from pisr_plugin.data.prepare.verify import find_problems
from pisr_plugin.data.storage.image_files import SUFFIXES, image_size, read_rgb, write_png
from pisr_plugin.data.storage.png_lmdb import write_lmdb
from pisr_plugin.data.storage.raw_lmdb import write_raw_lmdb
from pisr_plugin.utils.errors import DataError, OptionsError
from pisr_plugin.utils.parallel import run_jobs
from pisr_plugin.utils.resize import crop_to_multiple, imresize_uint8

LMDBS = {'png': 'lmdb', 'raw': 'raw'}  # part of a data set by kind of LMDB


@dataclass(frozen=True)
class PairOptions:
    """The options that decide the content of a data set.

    Attributes:
        scales: Upscaling factors, 2 to 64, each with its own LR images.
        crop: ``'lcm'`` crops HR to a multiple of all scales, so that HR is exactly scale * LR, as training needs.
            ``'scale'`` keeps HR whole and makes each LR from a crop to a multiple of its own scale: the protocol of
            the benchmarks; BasicSR crops HR to scale * LR when it validates.
        sub_images: Height and width in pixels of the sub-images that HR is cut into, or None to keep images whole.
        step: Distance between sub-images in pixels.
        thresh: A last sub-image that shows at most this many new pixels is left out.
        lr_dirs: Folders with given LR images by scale, which are used instead of MATLAB's bicubic. The first folder
            that has an image counts.

    Raises:
        OptionsError: an option is out of its range, or options do not fit together.
    """

    scales: tuple[int, ...] = (2, 3, 4)
    crop: str = 'lcm'
    sub_images: int | None = None
    step: int = 240
    thresh: int = 0
    lr_dirs: dict[int, Sequence[Path]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.scales or not all(2 <= scale <= MOST_SCALE for scale in self.scales):
            raise OptionsError(f'--scales: impossible (found {joined(self.scales)}). Expected 2 to {MOST_SCALE}.')
        if len(set(self.scales)) < len(self.scales):
            raise OptionsError(f'--scales: a scale twice (found {joined(self.scales)}). Expected different scales.')
        for scale in self.lr_dirs:
            if scale not in self.scales:
                raise OptionsError(f'--lr-dir: not a scale (found X{scale}). Expected one of {joined(self.scales)}.')
        if self.thresh < 0:
            raise OptionsError(f'--thresh: impossible (found {self.thresh}). Expected a number of pixels from 0 on.')
        if self.sub_images is None:
            return
        if self.crop != 'lcm':
            raise OptionsError('--crop: sub-images need HR that is exactly scale * LR (found scale). Expected lcm.')
        for name, value in (('sub-images', self.sub_images), ('step', self.step)):
            if value < 1 or value % self.multiple:
                raise OptionsError(
                    f'--{name}: sub-images of HR and LR would show different parts (found {value}). Expected a '
                    f'multiple of {self.multiple}, which fits the scales {joined(self.scales)}.'
                )

    @property
    def multiple(self) -> int:
        """The number that the sides of stored HR images are multiples of."""
        return math.lcm(*self.scales) if self.crop == 'lcm' else 1

    @property
    def bicubic(self) -> list[int]:
        """The scales whose LR images are MATLAB's bicubic: made here, or given in a folder whose name says bicubic."""
        return [
            scale
            for scale in self.scales
            if all('bicubic' in str(folder).lower() for folder in self.lr_dirs.get(scale, ()))
        ]

    def as_record(self) -> dict:
        """Returns the options for JSON, with the scales of given LR images instead of their folders."""
        return {**asdict(self), 'scales': list(self.scales), 'lr_dirs': sorted(self.lr_dirs)}


def build(
    sources: Sequence[Path], root: Path, options: PairOptions, *, lmdb: Collection[str] = tuple(LMDBS), workers: int
) -> bool:
    """Makes a data set, or the missing parts of one.

    Finished files are kept, so a second call continues a stopped build. Everything written is read back and checked.

    Args:
        sources: The photos.
        root: Folder of the data set.
        options: Options of the data set.
        lmdb: Kinds of LMDBs to write: ``'png'`` with the image files, for stock BasicSR; ``'raw'`` with the decoded
            images, for ``PatchStoreDataset``.
        workers: Largest number of processes, at least 1.

    Returns:
        False if everything was there already.

    Raises:
        DataError: some photos cannot be used (the message names them, the others are finished), the folder holds
            something else (it is not changed), or the written data is wrong.
        OSError: a file cannot be written.
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
    """Makes the photos' names keys of an LMDB: ASCII without a dot, at which BasicSR would cut the key off."""
    names = [re.sub(r'[^0-9A-Za-z_-]', '_', path.stem) for path in sources]
    first: dict[str, Path] = {}
    clashes = []
    for name, path in zip(names, sources):
        if name in first:
            clashes.append(f'{first[name].name} and {path.name}: both {name}.png')
        first.setdefault(name, path)
    if clashes:
        raise problem_list(
            f'{joined(dict.fromkeys(path.parent for path in sources))}: photos with the same name in the data set.',
            clashes,
            'Rename them. Nothing was written.',
        )
    return names


def _open_record(root: Path, options: PairOptions, sources: Sequence[Path], names: Sequence[str]) -> dict:
    """Starts ``prepare.json``, or reads it and checks that it describes the same data set."""
    now = {path.name: path.stat().st_size for path in sources}
    if (root / RECORD).exists():
        record = read_record(root)
        _compare(root, record, options, now)
    else:
        occupied = [path.name for path in (root / 'HR', root / 'LR_bicubic', *root.glob('*.lmdb')) if path.exists()]
        if occupied:
            raise DataError(
                f'{root}: holds {joined(occupied)}, not built by prepare_data. Nothing was changed; choose '
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
    """Raises DataError for a folder made with other options or from other photos."""
    asked, there = options.as_record(), record['options']
    differences = [
        f'{key}: {joined(there.get(key))} there, {joined(value)} asked for'
        for key, value in asked.items()
        if there.get(key) != value
    ]
    for name, size in record['sources'].items():
        # Photos without a result may change or go: they were the damaged ones of a stopped build.
        stem = _names([Path(name)])[0]
        if now.get(name) != size and ('images' in record['done'] or _made_of(root, stem)):
            differences.append(f'{name}: {"changed" if name in now else "missing now"}')
    if 'images' in record['done']:
        differences += [f'{name}: new' for name in now if name not in record['sources']]
    if differences:
        raise problem_list(
            f'{root}: holds another data set.',
            differences,
            'Nothing was changed; choose another folder with -o, or delete this one.',
        )


def _made_of(root: Path, name: str) -> bool:
    return any((hr_folder(root) / f'{key}.png').exists() for key in (name, f'{name}_s001'))


def _finish(root: Path, record: dict, part: str, problems: list[str]) -> None:
    if problems:
        raise problem_list(
            f'{root}: the written data is wrong.', problems, 'Delete the named files and run the same command again.'
        )
    for folder in (root, *image_folders(root, record['options']['scales'])):
        for leftover in folder.glob('.*.tmp'):  # a killed run left it
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    record['done'].append(part)
    save_record(root, record)


def _write_images(
    sources: Sequence[Path], names: Sequence[str], root: Path, options: PairOptions, workers: int
) -> dict[str, int]:
    """Makes all PNG files; returns the number of each photo's sub-images, 0 for a whole image."""
    label = 'HR, LR ' + joined(f'x{scale}' for scale in options.scales)
    work = functools.partial(_write_pair, root=root, options=options)
    pieces, bad = {}, []
    for result, name in zip(run_jobs(work, list(zip(sources, names)), workers, label), names):
        if isinstance(result, str):
            bad.append(result)
        else:
            pieces[name] = result
    if bad:
        raise problem_list(
            f'{len(bad)} of {len(sources)} photos cannot be used:',
            bad,
            f'The other {len(pieces)} are finished in {root}. Repair or remove the named photos and run the '
            f'same command again.',
        )
    return pieces


def _write_lmdbs(root: Path, record: dict, part: str, workers: int) -> None:
    """Writes the missing LMDBs of a part."""
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
    """Makes the missing files of one photo; returns the number of its sub-images, or why it cannot be used."""
    source, name = source_and_name
    try:
        height, width = (side // options.multiple * options.multiple for side in image_size(source))
        corners = _corners(source, height, width, options)
        keys = keys_of(name, len(corners) if options.sub_images else 0)
        count = len(keys) if options.sub_images else 0
        folders = image_folders(root, options.scales)
        if all((folder / f'{key}.png').exists() for folder in folders for key in keys):
            return count
        whole = read_rgb(source)
        images = [crop_to_multiple(whole, options.multiple)]
        images += [_lr(whole, source, scale, options) for scale in options.scales]
    except DataError as error:
        return str(error)
    # Writing is outside the try block: a full disk stops the build, a damaged photo does not.
    for folder, img, scale in zip(folders, images, (1, *options.scales)):
        for key, (top, left) in zip(keys, corners):
            side = options.sub_images
            piece = img[top // scale : (top + side) // scale, left // scale : (left + side) // scale] if side else img
            if not (folder / f'{key}.png').exists():
                write_png(folder / f'{key}.png', piece)
    return count


def _corners(source: Path, height: int, width: int, options: PairOptions) -> list[tuple[int, int]]:
    """Returns the top left corners of the sub-images of an HR image."""
    least = options.sub_images or max(options.scales)
    if min(height, width) < least:
        raise DataError(
            f'{source}: {height} x {width} (height x width, cropped) is less than '
            f'{"a sub-image" if options.sub_images else "the scale"}, {least}'
        )
    if not options.sub_images:
        return [(0, 0)]
    tops, lefts = (_starts(length, options.sub_images, options) for length in (height, width))
    return [(top, left) for top in tops for left in lefts]


def _starts(length: int, side: int, options: PairOptions) -> list[int]:
    """Returns where sub-images begin in a length: every step, and flush with the end for a rest above ``thresh``."""
    starts = list(range(0, length - side + 1, options.step))
    if length - (starts[-1] + side) > options.thresh:
        starts.append(length - side)
    return starts


def _lr(whole: np.ndarray, source: Path, scale: int, options: PairOptions) -> np.ndarray:
    """Returns the LR image of a photo as the data set stores it."""
    hr = crop_to_multiple(whole, options.multiple if options.crop == 'lcm' else scale)
    if scale not in options.lr_dirs:
        return imresize_uint8(hr, 1 / scale)
    path = find_lr(options.lr_dirs[scale], source, scale)
    lr = read_rgb(path)
    expected = tuple(side // scale for side in whole.shape[:2])
    if lr.shape[:2] != expected:
        raise DataError(
            f'{path}: {joined(lr.shape[:2], " x ")} (height x width); 1/{scale} of {source.name} is '
            f'{joined(expected, " x ")}'
        )
    return lr[: hr.shape[0] // scale, : hr.shape[1] // scale]


def find_lr(folders: Sequence[Path], source: Path, scale: int) -> Path:
    """Finds the given LR image of a photo: a file with its name, or its name and ``x2``, and any suffix.

    Raises:
        DataError: no folder has such a file.
    """
    stems = (source.stem, f'{source.stem}x{scale}')
    names = [f'{stem}{suffix}' for stem in stems for suffix in (source.suffix, *SUFFIXES)]
    for path in (folder / name for folder in folders for name in names):
        if path.is_file():
            return path
    raise DataError(
        f'{joined(folders)}: no LR image for {source.name}; looked for {joined(stems, " and ")} with '
        f'{joined(SUFFIXES, ", ")}'
    )
