"""Checks a dataset's options and images before training; BasicSR would stop in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pisr_plugin.data.storage.image_files import image_size
from pisr_plugin.data.storage.lmdb_env import read_keys
from pisr_plugin.data.storage.png_lmdb import read_meta_info
from pisr_plugin.data.storage.raw_lmdb import LIST as RAW_LIST
from pisr_plugin.data.storage.raw_lmdb import read_raw_info
from pisr_plugin.utils.errors import DataError, OptionsError, did_you_mean, located
from pisr_plugin.utils.text_files import read_text

Sizes = dict[str, tuple[int, int]]


def check_dataset(opt: dict, option_path: str, scale: int) -> None:
    """Checks that a dataset's images exist and that every LR image fits its HR image.

    The check is quick: LMDBs list the sizes of their images, and of image files it reads only the headers. Of a
    ``RealESRGANDataset`` it checks the list of images. Of other datasets than this one, ``PairedImageDataset`` and
    ``PatchStoreDataset`` it checks only that their folders exist.

    Args:
        opt: Options of the dataset that :func:`~pisr_plugin.config.schema.check_options` has checked. Without ``phase``
            the last name of ``option_path`` says whether it is for training.
        option_path: Path of these options, such as ``datasets.train``; messages begin with it.
        scale: Upscaling factor of the run.

    Raises:
        DataError: images are missing or damaged, or HR and LR do not fit together.
        OptionsError: an option is impossible.
    """
    for key in sorted(key for key in opt if key.startswith('dataroot') and opt[key] is not None):
        if not Path(opt[key]).exists():
            raise DataError(f'{option_path}.{key}: {opt[key]} does not exist. {_how_to_build(Path(opt[key]), scale)}')
    kind = opt.get('type')
    if kind == 'RealESRGANDataset':
        _check_listed(opt, option_path)
    if kind not in ('PairedImageDataset', 'PatchStoreDataset'):
        return
    gt, lq = _paired_sizes(opt, option_path) if kind == 'PairedImageDataset' else _raw_sizes(opt, option_path, scale)
    if not gt:
        raise DataError(f'{option_path}.dataroot_gt: {opt["dataroot_gt"]} holds no images.')
    training = opt.get('phase', option_path.split('.')[-1].split('_')[0]) == 'train'
    _check_scale(gt, lq, opt, option_path, scale, training)
    if training:
        _check_patches(gt, opt, option_path, scale)


def _check_listed(opt: dict, option_path: str) -> None:
    """Checks that the listed HR images exist; the dataset would silently take others for missing ones."""
    root, backend = Path(opt['dataroot_gt']), (opt.get('io_backend') or {}).get('type')
    if backend == 'lmdb':
        names: Iterable[str] = _lmdb_sizes(root, f'{option_path}.dataroot_gt')
    elif opt.get('meta_info') is None:
        raise OptionsError(
            f'{option_path}.meta_info: missing. Expected a text file with a path in {root} on each line, for '
            f'RealESRGANDataset.'
        )
    else:
        names = _listed_names(opt, option_path, 'meta_info') or []
        lost = [name for name in names if not (root / name).is_file()]
        if lost:
            raise DataError(f'{option_path}.meta_info: it lists images that are not in {root} (found {_some(lost)}).')
    if not names:
        raise DataError(f'{option_path}: {opt.get("meta_info", root)} lists no images.')


def _paired_sizes(opt: dict, option_path: str) -> tuple[Sizes, Sizes]:
    """Returns the sizes of the HR and LR images of a ``PairedImageDataset``."""
    backend = (opt.get('io_backend') or {}).get('type')
    if backend == 'disk':
        return _file_sizes(opt, option_path)
    if backend != 'lmdb':
        raise OptionsError(
            f'{option_path}.io_backend.type: unknown (found {backend!r}). '
            f'{did_you_mean(str(backend), ("disk", "lmdb"))}'
        )
    gt, lq = (_lmdb_sizes(Path(opt[key]), f'{option_path}.{key}') for key in ('dataroot_gt', 'dataroot_lq'))
    _same_keys(gt, lq, opt, option_path)
    return gt, lq


def _raw_sizes(opt: dict, option_path: str, scale: int) -> tuple[Sizes, Sizes]:
    """Returns the sizes of the HR and LR images of a ``PatchStoreDataset``; LR made from HR always fits."""
    sizes = {}
    for key in ('dataroot_gt', 'dataroot_lq'):
        if opt.get(key) is None:
            continue
        with located(f'{option_path}.{key}'):
            sizes[key] = {name: (info.height, info.width) for name, info in read_raw_info(Path(opt[key])).items()}
    gt = sizes['dataroot_gt']
    if 'dataroot_lq' not in sizes:
        lq = {name: (height // scale, width // scale) for name, (height, width) in gt.items()}
        return {name: (height * scale, width * scale) for name, (height, width) in lq.items()}, lq
    _same_keys(gt, sizes['dataroot_lq'], opt, option_path)
    return gt, sizes['dataroot_lq']


def _lmdb_sizes(path: Path, option_path: str) -> Sizes:
    """Returns sizes by key, after checking that the LMDB holds all keys that its list names."""
    if path.suffix != '.lmdb':
        raise DataError(
            f"{option_path}: not an LMDB for BasicSR (found {path}). Expected a folder that ends in '.lmdb', or for "
            f'image files io_backend: {{type: disk}}.'
        )
    if (path / RAW_LIST).exists():
        raise DataError(f'{option_path}: {path} holds decoded images. Expected type: PatchStoreDataset for them.')
    with located(option_path):
        sizes, stored = read_meta_info(path), read_keys(path)
    lost = sizes.keys() - stored
    if lost:
        raise DataError(
            f'{option_path}: {path} lists {len(sizes)} images in meta_info.txt, but {_some(lost)} '
            f'{"is" if len(lost) == 1 else "are"} not in it. Copy or build it again.'
        )
    return {key: size[:2] for key, size in sizes.items()}


def _same_keys(gt: Sizes, lq: Sizes, opt: dict, option_path: str) -> None:
    if gt.keys() != lq.keys():
        lonely = {'dataroot_gt': gt.keys() - lq.keys(), 'dataroot_lq': lq.keys() - gt.keys()}
        parts = [f'only in {opt[key]}: {_some(names)}' for key, names in lonely.items() if names]
        raise DataError(f'{option_path}: the LMDBs of HR and LR hold different images; {"; ".join(parts)}.')


def _file_sizes(opt: dict, option_path: str) -> tuple[Sizes, Sizes]:
    """Returns the sizes of HR and LR files by the name of the HR file, paired as BasicSR does it."""
    roots = {key: Path(opt[f'dataroot_{key}']) for key in ('gt', 'lq')}
    for key, root in roots.items():
        if not root.is_dir() or (root / 'data.mdb').exists():
            raise DataError(
                f'{option_path}.dataroot_{key}: {root} is {"an LMDB" if root.is_dir() else "not a folder"}, but '
                f'{option_path}.io_backend.type is disk.'
            )
    template = opt.get('filename_tmpl') or '{}'
    if template.count('{}') != 1 or set(template.replace('{}', '')) & set('{}/\\'):
        raise OptionsError(
            f"{option_path}.filename_tmpl: no {{}} (found {template!r}). Expected {{}} for the HR image's name, as in "
            f"'{{}}x2'."
        )
    names = _listed_names(opt, option_path) or _file_names(roots['gt'])
    sizes: dict[str, Sizes] = {'gt': {}, 'lq': {}}
    for name in names:
        path = Path(name)
        for key, file in (('gt', name), ('lq', f'{template.format(path.stem)}{path.suffix}')):
            if not (roots[key] / file).is_file():
                raise DataError(_no_partner(option_path, key, roots[key], file, name, template))
            with located(f'{option_path}.dataroot_{key}'):
                sizes[key][name] = image_size(roots[key] / file)
    count = len(_file_names(roots['lq']))
    if not opt.get('meta_info_file') and count != len(names):
        raise DataError(
            f'{option_path}: HR and LR differ in their numbers of files (found {len(names)} in {roots["gt"]}, {count} '
            f'in {roots["lq"]}). Expected as many in both, or a list of those to use in {option_path}.meta_info_file.'
        )
    return sizes['gt'], sizes['lq']


def _listed_names(opt: dict, option_path: str, key: str = 'meta_info_file') -> list[str] | None:
    """Returns the HR files that an option's list names, or None without that option."""
    if not opt.get(key):
        return None
    with located(f'{option_path}.{key}'):
        lines = read_text(Path(opt[key])).splitlines()
    return [line.strip().split(' ')[0] for line in lines]


def _file_names(folder: Path) -> list[str]:
    """Returns all files that BasicSR takes for images: those not hidden."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name[0] != '.')


def _no_partner(option_path: str, key: str, root: Path, file: str, name: str, template: str) -> str:
    if key == 'gt':
        return f'{option_path}.meta_info_file: it lists an image that is not in {root} (found {name}).'
    there = _file_names(root)
    hint = did_you_mean(file, there) if len(there) <= 10 else f'It holds {len(there)} files such as {_some(there)}'
    return (
        f'{option_path}.dataroot_lq: {root} has no {file}, the LR image of {name} '
        f'({option_path}.filename_tmpl is {template!r}). {hint}.'
    )


def _check_scale(gt: Sizes, lq: Sizes, opt: dict, option_path: str, scale: int, training: bool) -> None:
    """Checks that HR is scale * LR; BasicSR crops HR for validation, so there it may have a rest below scale."""
    wrong = [
        key
        for key in sorted(gt)
        if any(not 0 <= side - small * scale < (1 if training else scale) for side, small in zip(gt[key], lq[key]))
    ]
    if not wrong:
        return
    key = wrong[0]
    (height, width), (lr_height, lr_width) = gt[key], lq[key]
    expected = 'HR must be exactly scale x LR to train' if training else 'LR must be HR // scale'
    raise DataError(
        f'{option_path}: {len(wrong)} of {len(gt)} pairs do not fit scale {scale}; {key}: HR {height} x {width} '
        f'(height x width), LR {lr_height} x {lr_width}. {expected}. '
        f'{_likely_scale(gt[key], lq[key], training)} LR is read from {opt["dataroot_lq"]}.'
    )


def _likely_scale(hr: tuple[int, int], lr: tuple[int, int], training: bool) -> str:
    ratio = max(1, round(hr[0] / max(1, lr[0])))
    rests = [side - small * ratio for side, small in zip(hr, lr)]
    if rests == [0, 0]:
        return f'The pair looks like scale {ratio}.'
    if all(0 <= rest < ratio for rest in rests):
        crop = ' with HR that is not cropped; build it with --crop lcm' if training else ''
        return f'The pair looks like scale {ratio}{crop}.'
    return 'The pair does not look like any scale; perhaps the two show different images.'


def _check_patches(gt: Sizes, opt: dict, option_path: str, scale: int) -> None:
    gt_size = opt['gt_size']
    if gt_size % scale:
        raise OptionsError(
            f'{option_path}.gt_size: not a multiple of the scale, {scale} (found {gt_size}). '
            f'Expected {gt_size // scale * scale} or {(gt_size // scale + 1) * scale}.'
        )
    small = [key for key in sorted(gt) if min(gt[key]) < gt_size]
    can_skip = opt['type'] == 'PatchStoreDataset'
    if small and not (can_skip and opt.get('skip_small') and len(small) < len(gt)):
        height, width = min((gt[key] for key in small), key=min)
        hint = ' (skip_small: true)' if can_skip and len(small) < len(gt) else ''
        raise DataError(
            f'{option_path}.gt_size: larger than {len(small)} of the {len(gt)} HR images, {_some(small)} (found '
            f'{gt_size}; the smallest image is {height} x {width}). Expected at most '
            f'{min(height, width) // scale * scale}, or to leave those images out{hint}.'
        )


def _how_to_build(path: Path, scale: int) -> str:
    """Returns a sentence with the command that would make the missing path."""
    root = path.parent.parent if path.parent.name == 'LR_bicubic' else path.parent
    if 'demo' in root.parts:
        return f'Build it: pisr-prepare-data demo -o {root.parent}'
    return (
        f'Build it from a folder of photos: pisr-prepare-data build PHOTOS -o {root}'
        f'{"" if scale in (2, 3, 4) else f" --scales {scale}"}'
    )


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
