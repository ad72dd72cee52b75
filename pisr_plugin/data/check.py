"""Checks a dataset block of BasicSR options before training, where BasicSR would stop in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError, OptionsError, choice
from .image_lmdb import read_meta_info
from .images import image_size
from .lmdb import open_lmdb
from .patch_store_dataset import STORES
from .raw_lmdb import LIST as RAW_LIST
from .raw_lmdb import read_raw_info

Sizes = dict[str, tuple[int, int]]


def check_dataset(opt: dict, place: str, scale: int) -> None:
    """Makes sure that the images of a dataset are there and that every LR image fits its HR image.

    Quick: LMDBs list sizes, of files only the header is read. Of a ``RealESRGANDataset`` the list of its images is
    checked, of datasets other than it, ``PairedImageDataset`` and ``PatchStoreDataset`` only the folders they name.

    Args:
        opt: A block of the options' ``datasets``. Without ``phase`` it is one for training if its place says so.
        place: The block's path in the options, such as ``datasets.train``; messages begin with it.
        scale: The upscaling factor of the run.

    Raises:
        DataError: images are missing, damaged or of sizes that do not fit.
        OptionsError: the block's values cannot go together.
    """
    for key in sorted(key for key in opt if key.startswith('dataroot') and opt[key] is not None):
        if not Path(opt[key]).exists():
            raise DataError(f'{place}.{key}: {opt[key]} does not exist. {_how_to_build(Path(opt[key]), scale)}')
    kind = opt.get('type')
    if kind == 'RealESRGANDataset':
        _check_listed(opt, place)
    if kind not in ('PairedImageDataset', 'PatchStoreDataset'):
        return
    for key in ('dataroot_gt', 'dataroot_lq'):
        if opt.get(key) is None and (key, kind) != ('dataroot_lq', 'PatchStoreDataset'):
            raise OptionsError(
                f'{place}.{key}: missing; {kind} needs the folder or LMDB of the '
                f'{"HR" if key == "dataroot_gt" else "LR"} images.'
            )
    gt, lq = _paired_sizes(opt, place) if kind == 'PairedImageDataset' else _raw_sizes(opt, place, scale)
    if not gt:
        raise DataError(f'{place}.dataroot_gt: {opt["dataroot_gt"]} holds no images.')
    training = opt.get('phase', place.split('.')[-1].split('_')[0]) == 'train'
    _check_scale(gt, lq, opt, place, scale, training)
    if training:
        _check_patches(gt, opt, place, scale)


def _check_listed(opt: dict, place: str) -> None:
    """Makes sure that a dataset of HR images alone finds those that it lists; it would put others in their place."""
    root, backend = Path(opt['dataroot_gt']), (opt.get('io_backend') or {}).get('type')
    if backend == 'lmdb':
        names: Iterable[str] = _lmdb_sizes(root, f'{place}.dataroot_gt')
    elif opt.get('meta_info') is None:
        raise OptionsError(
            f'{place}.meta_info: missing; of image files RealESRGANDataset needs a text file with a path in '
            f'{root} on each line.'
        )
    else:
        names = _listed_names(opt, place, 'meta_info') or []
        lost = [name for name in names if not (root / name).is_file()]
        if lost:
            raise DataError(f'{place}.meta_info: it lists {_some(lost)}, not in {root}.')
    if not names:
        raise DataError(f'{place}: {opt.get("meta_info", root)} lists no images.')


def _paired_sizes(opt: dict, place: str) -> tuple[Sizes, Sizes]:
    """Sizes of the HR and LR images of a ``PairedImageDataset``."""
    backend = (opt.get('io_backend') or {}).get('type')
    if backend == 'disk':
        return _file_sizes(opt, place)
    if backend != 'lmdb':
        raise OptionsError(f'{place}.io_backend.type: {backend} found. {choice(str(backend), ("disk", "lmdb"))}')
    gt, lq = (_lmdb_sizes(Path(opt[key]), f'{place}.{key}') for key in ('dataroot_gt', 'dataroot_lq'))
    _same_keys(gt, lq, opt, place)
    return gt, lq


def _raw_sizes(opt: dict, place: str, scale: int) -> tuple[Sizes, Sizes]:
    """Sizes of the HR and LR images of a ``PatchStoreDataset``; LR that is not stored fits by itself."""
    store = opt.get('store') or STORES[0]
    if store not in STORES:
        raise OptionsError(f'{place}.store: {store} found. {choice(str(store), STORES)}')
    sizes = {}
    for key in ('dataroot_gt', 'dataroot_lq'):
        if opt.get(key) is None:
            continue
        try:
            sizes[key] = {name: (info.height, info.width) for name, info in read_raw_info(Path(opt[key])).items()}
        except DataError as error:
            raise DataError(f'{place}.{key}: {error}') from None
    gt = sizes['dataroot_gt']
    if 'dataroot_lq' not in sizes:
        lq = {name: (height // scale, width // scale) for name, (height, width) in gt.items()}
        return {name: (height * scale, width * scale) for name, (height, width) in lq.items()}, lq
    _same_keys(gt, sizes['dataroot_lq'], opt, place)
    return gt, sizes['dataroot_lq']


def _lmdb_sizes(path: Path, place: str) -> Sizes:
    """Sizes by key, once the LMDB is known to hold all keys that it lists."""
    if path.suffix != '.lmdb':
        raise DataError(
            f"{place}: {path} found; BasicSR takes only folders that end in '.lmdb' for LMDBs. For image "
            f'files set io_backend: {{type: disk}}.'
        )
    if (path / RAW_LIST).exists():
        raise DataError(f'{place}: {path} holds decoded images, for type: PatchStoreDataset.')
    try:
        sizes = read_meta_info(path)
        with open_lmdb(path).begin() as txn:
            stored = {bytes(key).decode('ascii', 'replace') for key in txn.cursor().iternext(keys=True, values=False)}
    except DataError as error:
        raise DataError(f'{place}: {error}') from None
    lost = sizes.keys() - stored
    if lost:
        raise DataError(
            f'{place}: {path} lists {len(sizes)} images in meta_info.txt, but {_some(lost)} '
            f'{"is" if len(lost) == 1 else "are"} not in it. Copy or build it again.'
        )
    return {key: size[:2] for key, size in sizes.items()}


def _same_keys(gt: Sizes, lq: Sizes, opt: dict, place: str) -> None:
    if gt.keys() != lq.keys():
        lonely = {'dataroot_gt': gt.keys() - lq.keys(), 'dataroot_lq': lq.keys() - gt.keys()}
        told = [f'only in {opt[key]}: {_some(names)}' for key, names in lonely.items() if names]
        raise DataError(f'{place}: the LMDBs of HR and LR hold different images; {"; ".join(told)}.')


def _file_sizes(opt: dict, place: str) -> tuple[Sizes, Sizes]:
    """Sizes of HR and LR files by the name of the HR file, paired as BasicSR does it."""
    roots = {key: Path(opt[f'dataroot_{key}']) for key in ('gt', 'lq')}
    for key, root in roots.items():
        if not root.is_dir() or (root / 'data.mdb').exists():
            raise DataError(
                f'{place}.dataroot_{key}: {root} is {"an LMDB" if root.is_dir() else "not a folder"}, but '
                f'{place}.io_backend.type is disk.'
            )
    template = opt.get('filename_tmpl') or '{}'
    if template.format('a') == template:
        raise OptionsError(
            f"{place}.filename_tmpl: {template!r} found; it needs {{}} for the HR image's name, as in '{{}}x2'."
        )
    names = _listed_names(opt, place) or _file_names(roots['gt'])
    sizes: dict[str, Sizes] = {'gt': {}, 'lq': {}}
    for name in names:
        path = Path(name)
        for key, file in (('gt', name), ('lq', f'{template.format(path.stem)}{path.suffix}')):
            if not (roots[key] / file).is_file():
                raise DataError(_no_partner(place, key, roots[key], file, name, template))
            try:
                sizes[key][name] = image_size(roots[key] / file)
            except DataError as error:
                raise DataError(f'{place}.dataroot_{key}: {error}') from None
    count = len(_file_names(roots['lq']))
    if not opt.get('meta_info_file') and count != len(names):
        raise DataError(
            f'{place}: {roots["gt"]} holds {len(names)} files, {roots["lq"]} {count}; BasicSR wants as '
            f'many in both. Name those to use in {place}.meta_info_file, or take the others away.'
        )
    return sizes['gt'], sizes['lq']


def _listed_names(opt: dict, place: str, key: str = 'meta_info_file') -> list[str] | None:
    """The HR files that a list of them names, if there is one."""
    if not opt.get(key):
        return None
    path = Path(opt[key])
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'not a text file'
        raise DataError(f'{place}.{key}: {path}: {reason}.') from None
    return [line.strip().split(' ')[0] for line in lines]


def _file_names(folder: Path) -> list[str]:
    """All files that BasicSR would take for images: those not hidden."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name[0] != '.')


def _no_partner(place: str, key: str, root: Path, file: str, name: str, template: str) -> str:
    if key == 'gt':
        return f'{place}.meta_info_file: it lists {name}, which is not in {root}.'
    there = _file_names(root)
    hint = choice(file, there) if len(there) <= 10 else f'It holds {len(there)} files such as {_some(there)}'
    return (
        f'{place}.dataroot_lq: {root} has no {file}, the LR image of {name} '
        f'({place}.filename_tmpl is {template!r}). {hint}.'
    )


def _check_scale(gt: Sizes, lq: Sizes, opt: dict, place: str, scale: int, training: bool) -> None:
    """HR is scale * LR for training; for validation, where BasicSR crops HR, it may have a rest smaller than scale."""
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
        f'{place}: {len(wrong)} of {len(gt)} pairs do not fit scale {scale}; {key}: HR {height} x {width} '
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


def _check_patches(gt: Sizes, opt: dict, place: str, scale: int) -> None:
    gt_size = opt.get('gt_size')
    if gt_size is None:
        raise OptionsError(f'{place}.gt_size: missing; it is the side of the HR patches to train on.')
    if gt_size % scale:
        raise OptionsError(
            f'{place}.gt_size: {gt_size} is not a multiple of the scale, {scale}. '
            f'Possible: {gt_size // scale * scale}, {(gt_size // scale + 1) * scale}'
        )
    small = [key for key in sorted(gt) if min(gt[key]) < gt_size]
    can_skip = opt['type'] == 'PatchStoreDataset'
    if small and not (can_skip and opt.get('skip_small') and len(small) < len(gt)):
        height, width = min((gt[key] for key in small), key=min)
        hint = ' (skip_small: true)' if can_skip and len(small) < len(gt) else ''
        raise DataError(
            f'{place}.gt_size: {gt_size} is more than {len(small)} of the {len(gt)} HR images measure: '
            f'{_some(small)}. The smallest is {height} x {width}: lower gt_size to '
            f'{min(height, width) // scale * scale}, or leave those images out{hint}.'
        )


def _how_to_build(path: Path, scale: int) -> str:
    """The command whose output the path would be part of."""
    root = path.parent.parent if path.parent.name == 'LR_bicubic' else path.parent
    if 'demo' in root.parts:
        return f'Build it: python tools/prepare_data.py demo -o {root.parent}'
    return (
        f'Build it of a folder of photos: python tools/prepare_data.py build PHOTOS -o {root}'
        f'{"" if scale in (2, 3, 4) else f" --scales {scale}"}'
    )


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
