"""Command line that prepares image pairs: ``prepare_data build | shrink | verify | demo``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError, OptionsError, PISRError
from .build import LMDBS, PairOptions, build
from .demo import build_demo
from .images import list_images
from .layout import RECORD, complain, piece_keys, read_record, stores_of
from .shrink import shrink
from .sources import find_sources
from .verify import verify

STOPPED = 130  # exit code after Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments; those of the process by default.

    Returns:
        Exit code: 0, 2 after a mistake that was told on stderr, 130 after an interruption.
    """
    args = _parser().parse_args(argv)
    try:
        args.run(args)
        return 0
    except PISRError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f'error: {error.filename or args.out}: {error.strerror or error}. What is finished is kept: run the same '
            f'command again when that is mended.',
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print('stopped. What is finished is kept: run the same command again to go on.', file=sys.stderr)
        return STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='prepare_data', description='Prepare HR/LR image pairs, as folders and as LMDBs for BasicSR.'
    )
    commands = parser.add_subparsers(required=True, metavar='build | shrink | verify | demo')
    workers = argparse.ArgumentParser(add_help=False)
    workers.add_argument(
        '--workers', type=int, default=os.cpu_count(), metavar='N', help='processes (default: all cores)'
    )

    command = commands.add_parser(
        'build',
        parents=[workers],
        help='make pairs of folders of photos',
        description='Make HR/LR pairs of folders of photos. Stopped, it goes on when called again.',
    )
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
        'made of a crop to a multiple of its own scale (benchmarks)',
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
        help='leave out a last sub-image that shows at most N new pixels (default: 0)',
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
        choices=tuple(LMDBS),
        default=tuple(LMDBS),
        metavar='KIND',
        help='LMDBs to fill: png, the image files, for stock BasicSR; raw, decoded images, for PatchStoreDataset '
        '(default: png raw)',
    )
    command.add_argument('--no-lmdb', dest='lmdb', action='store_const', const=(), help='fill no LMDBs')
    command.set_defaults(run=_build)

    command = commands.add_parser(
        'shrink',
        parents=[workers],
        help='make smaller copies of photos, to train on more sizes',
        description='Write each photo in several sizes. Build the data set of the folder that comes of it.',
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
        description='Make the demo set of the photos that come inside scikit-image.',
    )
    command.add_argument('-o', '--out', type=Path, default=Path('datasets/demo'), help='default: datasets/demo')
    command.set_defaults(run=_demo)
    return parser


def _shrink(args: argparse.Namespace) -> None:
    sources = [path for folder in args.input for path in list_images(folder)]
    print(f'{args.out}: {shrink(sources, args.out, args.factors, args.workers)} images of {len(sources)} photos')


def _build(args: argparse.Namespace) -> None:
    started = time.monotonic()
    sources, found = find_sources(args.input)
    lr_dirs = {scale: folders for scale, folders in found.items() if scale in args.scales and not args.make_lr}
    lr_dirs.update(_lr_dirs(args.lr_dir))
    options = PairOptions(tuple(args.scales), args.crop, args.sub_images, args.step, args.thresh, lr_dirs)
    changed = build(sources, args.out, options, lmdb=args.lmdb, workers=args.workers)
    _report(args.out, changed, started)


def _demo(args: argparse.Namespace) -> None:
    started = time.monotonic()
    changed = build_demo(args.out, args.workers)
    for part in ('train', 'heldout'):
        _report(args.out / part, changed, started)


def _verify(args: argparse.Namespace) -> None:
    roots = [path.parent for path in sorted([*args.out.glob(RECORD), *args.out.glob(f'*/{RECORD}')])] or [args.out]
    problems = [problem for root in roots for problem in verify(root, args.workers)]
    if problems:
        raise complain(f'{args.out}: {len(problems)} found wrong.', problems, 'Build it again in another folder.')
    for root in roots:
        print(f'{root}: all {len(piece_keys(read_record(root)))} pairs are there and whole.')


def _report(root: Path, changed: bool, started: float) -> None:
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
    found = {}
    for text in texts:
        name, _, folder = text.partition('=')
        if not folder or not name[1:].isdecimal() or name[0] not in 'Xx':
            raise OptionsError(
                f'--lr-dir: {text!r} found; possible is a scale and a folder, such as X2=DIV2K/LR_bicubic/X2'
            )
        if not Path(folder).is_dir():
            raise DataError(f'--lr-dir {text}: {folder} is not a folder.')
        found.setdefault(int(name[1:]), []).append(Path(folder))
    return found
