"""Prepares image pairs: ``prepare_data build | shrink | verify | demo``."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pisr_plugin.cli import common
from pisr_plugin.utils.errors import DataError, OptionsError

_MOST_WORKERS = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments; by default those of the process.

    Returns:
        Exit code, as :func:`pisr_plugin.cli.common.run` returns it.
    """
    args = _parser().parse_args(argv)
    return common.run(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    if not 1 <= args.workers <= _MOST_WORKERS:
        raise OptionsError(f'--workers: impossible (found {args.workers}). Expected 1 to {_MOST_WORKERS}.')
    try:
        args.run(args)
    except OSError as error:
        raise DataError(
            f'{error.filename or args.out}: {error.strerror or error}. Finished files are kept: run the same command '
            f'again when the cause is removed.'
        ) from None
    except KeyboardInterrupt:
        print('Stopped. Finished files are kept: run the same command again to continue.', file=sys.stderr)
        raise


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = common.Parser(
        description='Prepare HR/LR image pairs, as folders and as LMDBs for BasicSR.'
    )
    commands = parser.add_subparsers(required=True, metavar='build | shrink | verify | demo')
    workers = argparse.ArgumentParser(add_help=False)
    workers.add_argument(
        '--workers', type=int, default=os.cpu_count() or 1, metavar='N', help='processes (default: all cores)'
    )
    command = commands.add_parser(
        'build',
        parents=[workers],
        help='make pairs from folders of photos',
        description='Make HR/LR pairs from folders of photos. A second call continues a stopped build.',
    )
    _add_build_flags(command)
    command.set_defaults(run=_build)

    command = commands.add_parser(
        'shrink',
        parents=[workers],
        help='make smaller copies of photos, to train on more sizes',
        description='Write each photo in several sizes. Then build the data set from the new folder.',
    )
    command.add_argument('input', type=Path, nargs='+', metavar='INPUT', help='folders of photos')
    command.add_argument('-o', '--out', type=Path, required=True, help='folder for the copies')
    command.add_argument(
        '--factors', type=float, nargs='+', default=[1, 0.9, 0.8, 0.7, 0.6], metavar='F', help='default: 1 .9 .8 .7 .6'
    )
    command.set_defaults(run=_shrink)

    command = commands.add_parser(
        'verify',
        parents=[workers],
        help='check a data set again',
        description='Check every image of a data set that build or demo made.',
    )
    command.add_argument('out', type=Path, metavar='ROOT', help='folder of the data set')
    command.set_defaults(run=_verify)

    command = commands.add_parser(
        'demo',
        parents=[workers],
        help='make the small demo set',
        description='Make the demo set from the photos in the scikit-image package.',
    )
    command.add_argument('-o', '--out', type=Path, default=Path('datasets/demo'), help='default: datasets/demo')
    command.set_defaults(run=_demo)
    return parser


def _add_build_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        'input',
        type=Path,
        nargs='+',
        metavar='INPUT',
        help='folders of HR photos, or DIV2K and Flickr2K as they are unpacked, whose own LR images are used',
    )
    command.add_argument('-o', '--out', type=Path, required=True, help='folder of the data set')
    command.add_argument('--scales', type=int, nargs='+', default=[2, 3, 4], metavar='S', help='default: 2 3 4')
    command.add_argument(
        '--crop',
        choices=('lcm', 'scale'),
        default='lcm',
        help='lcm: HR is cropped to a multiple of all scales (training). scale: HR stays whole, LR is '
        'made from a crop to a multiple of its own scale (benchmarks)',
    )
    command.add_argument('--sub-images', type=int, metavar='SIZE', help='cut HR into squares of this size, e.g. 480')
    command.add_argument(
        '--step', type=int, default=240, metavar='N', help='distance between sub-images (default: 240)'
    )
    command.add_argument(
        '--thresh',
        type=int,
        default=0,
        metavar='N',
        help='skip a last sub-image that shows at most N new pixels (default: 0)',
    )
    command.add_argument(
        '--lr-dir',
        nargs='+',
        default=[],
        metavar='X2=FOLDER',
        help='take the LR images of a scale from here (0001.png or 0001x2.png) instead of making them',
    )
    command.add_argument(
        '--make-lr', action='store_true', help='make LR images also of data sets that come with their own'
    )
    command.add_argument(
        '--lmdb',
        nargs='+',
        choices=('png', 'raw'),
        default=('png', 'raw'),
        metavar='KIND',
        help='LMDBs to write: png, the image files, for stock BasicSR; raw, decoded images, for PatchStoreDataset '
        '(default: png raw)',
    )
    command.add_argument('--no-lmdb', dest='lmdb', action='store_const', const=(), help='write no LMDBs')


def _shrink(args: argparse.Namespace) -> None:
    from pisr_plugin.data.prepare.rescale import rescale
    from pisr_plugin.data.storage.image_files import list_images

    sources = [path for folder in args.input for path in list_images(folder)]
    print(f'{args.out}: {rescale(sources, args.out, args.factors, args.workers)} images of {len(sources)} photos')


def _build(args: argparse.Namespace) -> None:
    from pisr_plugin.data.prepare.build import PairOptions, build
    from pisr_plugin.data.prepare.sources import find_sources

    started = time.monotonic()
    sources, found = find_sources(args.input)
    lr_dirs: dict[int, Sequence[Path]]
    lr_dirs = {scale: folders for scale, folders in found.items() if scale in args.scales and not args.make_lr}
    lr_dirs.update(_lr_dirs(args.lr_dir))
    options = PairOptions(tuple(args.scales), args.crop, args.sub_images, args.step, args.thresh, lr_dirs)
    changed = build(sources, args.out, options, lmdb=args.lmdb, workers=args.workers)
    _report(args.out, changed, started)


def _demo(args: argparse.Namespace) -> None:
    from pisr_plugin.data.prepare.demo import build_demo

    started = time.monotonic()
    changed = build_demo(args.out, args.workers)
    for part in ('train', 'heldout'):
        _report(args.out / part, changed, started)


def _verify(args: argparse.Namespace) -> None:
    from pisr_plugin.data.prepare.layout import RECORD, piece_keys, problem_list, read_record
    from pisr_plugin.data.prepare.verify import verify

    roots = [path.parent for path in sorted([*args.out.glob(RECORD), *args.out.glob(f'*/{RECORD}')])] or [args.out]
    problems = [problem for root in roots for problem in verify(root, args.workers)]
    if problems:
        raise problem_list(f'{args.out}: {len(problems)} problems.', problems, 'Build it again in another folder.')
    for root in roots:
        print(f'{root}: all {len(piece_keys(read_record(root)))} pairs are complete and undamaged.')


def _report(root: Path, changed: bool, started: float) -> None:
    from pisr_plugin.data.prepare.layout import piece_keys, read_record, stores_of

    record = read_record(root)
    stores = [store for part in record['done'] for store in stores_of(root, record['options']['scales'], part)]
    sizes = ', '.join(f'{store.relative_to(root)} {_megabytes(store):.1f} MB' for store in stores)
    pairs = f'{len(piece_keys(record))} pairs'
    print(
        f'{root}: {pairs}, checked: {sizes} ({time.monotonic() - started:.0f} s)'
        if changed
        else f'{root}: complete already, nothing done: {pairs}'
    )


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6 if folder.is_dir() else 0.0


def _lr_dirs(texts: Sequence[str]) -> dict[int, list[Path]]:
    found: dict[int, list[Path]] = {}
    for text in texts:
        match = re.fullmatch('[Xx]([0-9]{1,2})=(.+)', text)
        if not match:
            raise OptionsError(
                f'--lr-dir: not a scale and a folder (found {text!r}). Expected such as X2=DIV2K/LR_bicubic/X2.'
            )
        folder = Path(match[2])
        if not folder.is_dir():
            raise DataError(f'--lr-dir: {folder} is not a folder.')
        found.setdefault(int(match[1]), []).append(folder)
    return found
