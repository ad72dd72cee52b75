"""Command line of the benchmarks: tables for people, and one JSON line last.

``python -m benchmarks step teacher --rounds 15 --json docs/performance.jsonl``
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from pathlib import Path

import torch
from basicsr.utils import get_root_logger

from benchmarks.harness import Settings
from benchmarks.machine import facts
from benchmarks.report import json_line, text
from pisr_plugin.utils.errors import PISRError
from pisr_plugin.utils.malloc import keep_freed_memory

# module of this package: what it measures; each has run(settings), which returns tables
BENCHMARKS = {
    'step': 'student stage: a training step against a straightforward loop and the convolution peak',
    'teacher': 'teacher stage: the same',
    'overhead': 'student stage against plain training of the same network',
    'host': 'a training iteration with next to no arithmetic: what Python and launching cost',
    'train': 'student stage: whole iterations with loading, from each store',
    'data': "the store against BasicSR's PairedImageDataset",
    'allocator': 'a step on a CPU with and without memory kept between steps',
    'scaling': 'iterations per second over ranks',
    'inference': 'whole images',
    'quality': 'PSNR over CPU time of whole runs; needs --photos and --test, and hours',
}


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    settings = Settings(
        rounds=args.rounds or (2 if args.quick else 11),
        threads=args.threads,
        quick=args.quick,
        device=args.device,
        peer=args.peer,
        photos=args.photos,
        test=args.test,
        runs=args.runs,
        picture=args.picture,
    )
    torch.set_num_threads(settings.threads)
    torch.backends.cudnn.benchmark = True  # as training
    get_root_logger(log_level=logging.WARNING)  # says what a model goes on without, but not what it is made of
    # for all variants alike, so that it favours none
    machine = {**facts(settings), 'keeps_freed_memory': settings.device == 'cpu' and keep_freed_memory()}
    results = {}
    for name in args.benchmarks or [name for name in BENCHMARKS if name != 'quality']:
        print(f'\n=== {name}: {BENCHMARKS[name]}', flush=True)
        try:
            results[name] = importlib.import_module(f'benchmarks.{name}').run(settings)
        except PISRError as error:
            print(f'error: {error}', file=sys.stderr)
            return 2
        for table in results[name]:
            print(text(table), flush=True)
    line = json_line(machine, results)
    if args.json:
        with open(args.json, 'a', encoding='utf-8') as file:
            file.write(line + '\n')
    print(line)
    return 0


def _parser() -> argparse.ArgumentParser:
    known = '\n'.join(f'  {name:10} {what}' for name, what in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks',
        description=f'What training and inference cost, as ratios from one run.\n\n{known}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('benchmarks', nargs='*', type=_known, metavar='BENCHMARK', help='default: all but quality')
    parser.add_argument('--rounds', type=int, help='turns of each variant (default: 11)')
    parser.add_argument('--threads', type=int, default=1, help='compute threads (default: 1)')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--quick', action='store_true', help='tiny sizes and two rounds, to see that everything runs')
    parser.add_argument('--json', type=Path, metavar='FILE', help='add the last line to a file')
    parser.add_argument('--peer', type=Path, metavar='PATH', help="checkout of the PISR authors' code, to time in step")
    parser.add_argument(
        '--photos', type=Path, metavar='DIR', help='photographs for data (default: made), prepared ones for quality'
    )
    parser.add_argument('--test', type=Path, metavar='DIR', help='Set5, prepared, for quality')
    parser.add_argument('--runs', type=Path, metavar='DIR', help='where quality trains and goes on (default: nowhere)')
    parser.add_argument('--picture', type=Path, metavar='FILE', help='where quality draws its curves')
    return parser


def _known(name: str) -> str:
    if name not in BENCHMARKS:
        raise argparse.ArgumentTypeError(f'{name!r}; there are {", ".join(BENCHMARKS)}')
    return name


if __name__ == '__main__':
    sys.exit(main())
