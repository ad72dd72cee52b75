"""Acceptance on a GPU: runs everything that has code of its own for CUDA, and writes one page of results.

``make gpu`` runs it, see docs/howto/gpus.md. ``python -m benchmarks.gpu --device cpu`` runs the same checks with tiny
sizes where there is no GPU, and skips those that only CUDA has.

This process imports no torch: each check runs commands, so that one that fails leaves the others a working GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.report import Table, json_line, markdown

ROOT = Path(__file__).parents[1]
MINUTES = 20  # for all checks together
_FALLBACK = re.compile(r'train\.(?:cuda_graph|compile): .*')  # the line with which training goes on without one
_NOISE = 0.2  # dB: between runs that differ by rounding alone
_DEMO = 'options/demo/pisr_fsrcnn_x2.yml'
_GRAPH, _DEVICE_STORE = 'train:cuda_graph=true', 'datasets:train:store=device'


class CheckFailed(Exception):
    """A check found something wrong."""


class CheckSkipped(Exception):
    """A check cannot run on this machine."""


@dataclass
class Place:
    """Where checks run, and what they have found.

    Attributes:
        folder: Folder of the results; commands run in it.
        device: ``cuda``, or ``cpu`` for tiny sizes.
        gpus: Number of GPUs.
        deadline: When the last command must end, by ``time.monotonic``.
        popen: Starts a process, as ``subprocess.Popen``.
        tables: Tables of the check that runs now.
    """

    folder: Path
    device: str
    deadline: float
    gpus: int = 0
    popen: Callable = subprocess.Popen
    tables: list[Table] = field(default_factory=list)
    commands: int = 0

    @property
    def on_gpu(self) -> bool:
        return self.device == 'cuda'

    def needs(self, gpus: int, why: str) -> None:
        """Raises CheckSkipped on a machine with fewer GPUs."""
        if self.gpus < gpus:
            raise CheckSkipped(why)

    @contextmanager
    def started(self, *arguments: object, **variables: object) -> Iterator[tuple[subprocess.Popen, Path]]:
        """Starts ``python <arguments>`` in the folder; yields the process and its log, and ends it with the block."""
        self.commands += 1
        log = self.folder / 'logs' / f'{self.commands:02}.log'
        log.parent.mkdir(exist_ok=True)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
        environment = {**os.environ, 'PYTHONPATH': path, **{key: str(value) for key, value in variables.items()}}
        command = [sys.executable, *map(str, arguments)]
        with open(log, 'w') as file:
            file.write(f'{" ".join(command)}\n')
            file.flush()
            process = self.popen(command, cwd=self.folder, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            yield process, log
        finally:
            if process.poll() is None:
                process.kill()

    def finish(self, process: subprocess.Popen, log: Path, expected: int = 0) -> str:
        """Waits for a command and returns its output.

        Raises:
            CheckFailed: it ended with another exit code than ``expected``, or took too long.
        """
        try:
            code = process.wait(timeout=max(1.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise CheckFailed(f'no end within the {MINUTES} minutes, see {log.name}') from None
        output = log.read_text(errors='replace')
        if code != expected:
            lines = output.strip().splitlines()
            last = next((line for line in reversed(lines) if 'rror' in line), lines[-1])
            raise CheckFailed(f'exit code {code} in place of {expected}, see {log.name}: {last[:300]}')
        return output

    def python(self, *arguments: object, expected: int = 0, **variables: object) -> str:
        """Runs ``python <arguments>`` in the folder and returns its output."""
        with self.started(*arguments, **variables) as (process, log):
            return self.finish(process, log, expected)

    def program(self, name: str) -> list[Table]:
        """Runs one of :mod:`benchmarks.gpu_programs` and returns its tables."""
        return self._tables(
            json.loads(self._last_line('-m', 'benchmarks.gpu_programs', name, '--device', self.device, '--folder', '.'))
        )

    def benchmark(self, *arguments: str) -> list[Table]:
        """Runs ``python -m benchmarks`` and returns its tables."""
        results = json.loads(self._last_line('-m', 'benchmarks', *arguments, '--device', self.device))['results']
        return self._tables([table for tables in results.values() for table in tables])

    def _last_line(self, *arguments: str) -> str:
        return self.python(*arguments).strip().splitlines()[-1]

    def _tables(self, found: list[dict]) -> list[Table]:
        tables = [Table(**table) for table in found]
        self.tables += tables
        failed = [note.removeprefix('failed: ') for table in tables for note in table.notes if note[:7] == 'failed:']
        if failed:
            raise CheckFailed('; '.join(failed))
        return tables

    def data(self) -> None:
        """Prepares the demo photos."""
        if not (self.folder / 'datasets').exists():
            self.python(ROOT / 'tools/prepare_data.py', 'demo', '-o', 'datasets/demo', '--workers', 1)

    def recipe(self, name: str, *changes: str) -> list[object]:
        """Arguments of a command for the demo recipe under another name, with Adam, which a CUDA graph can record."""
        stages = [('alone', 3000, 20), ('teacher', 1000, 4), ('student', 1500, 4)]
        lengths = [f'stages:{stage}:train:total_iter={long if self.on_gpu else short}' for stage, long, short in stages]
        rates = [f'stages:{stage}:train:optim_g:lr=1e-3' for stage, _, _ in stages]
        logger = '{print_freq: 100, save_checkpoint_freq: 500}' if self.on_gpu else None
        every = [
            f'logger={logger or "{print_freq: 2, save_checkpoint_freq: 4}"}',
            'val:val_freq=1000',
            'val:metrics:ssim=~',
        ]
        adam = ['train:optim_g={type: Adam, lr: 1e-3, betas: [0.9, 0.999]}', 'train:warmup_iter=-1']
        common = [f'name={name}', f'num_gpu={min(self.gpus, 1)}', *adam, *lengths, *rates, *every]
        return ['-opt', ROOT / _DEMO, '--force_yml', *common, *changes]

    def train(self, name: str, *changes: str, flags: tuple[str, ...] = ()) -> str:
        """Trains the demo recipe and returns what the command wrote; its log may hold a line of falling back."""
        return self.python(ROOT / 'tools/train.py', *flags, *self.recipe(name, *changes))

    def stage(self, name: str, stage: str) -> Path:
        """Returns the folder of a trained stage."""
        return self.folder / 'experiments' / name / stage

    def psnr(self, name: str, stage: str = 'student') -> float:
        """Returns the last PSNR of a trained stage."""
        return json.loads((self.stage(name, stage) / 'result.json').read_text())['metrics']['heldout']['psnr']

    def rate(self, name: str, stage: str = 'student') -> float:
        """Returns the iterations per second of a trained stage, a median of its reports."""
        lines = (self.stage(name, stage) / 'metrics.jsonl').read_text().splitlines()
        return 1 / statistics.median(record['time'] for record in map(json.loads, lines) if 'time' in record)

    def fallbacks(self, name: str) -> list[str]:
        """Returns the lines of a run's logs with which it went on without what was asked for."""
        logs = (self.folder / 'experiments' / name).rglob('*.log')
        return sorted({found for log in logs for found in _FALLBACK.findall(log.read_text(errors='replace'))})


# ---------------------------------------------------------------------------------------------------------- checks


def marked_tests(place: Place) -> None:
    """``pytest -m gpu``"""
    place.needs(1, 'needs a GPU')
    output = place.python('-m', 'pytest', '-q', '-m', 'gpu', '-p', 'no:cacheprovider', ROOT / 'tests')
    place.tables.append(Table('Tests', [{'pytest -m gpu': output.strip().splitlines()[-1].strip('= ')}]))


def waits(place: Place) -> None:
    """no step waits for the GPU, in any precision, eager or captured"""
    place.needs(1, 'needs a GPU')
    place.program('waits')


def demo(place: Place) -> None:
    """the demo recipe: default, captured, compiled in bf16"""
    place.data()
    variants = {'eager': ['train:cuda_graph=false'], 'captured, store device': [_GRAPH, _DEVICE_STORE]}
    if place.on_gpu:  # compiling takes longer than the rest together on a CPU
        variants |= {'default': []}
        variants['captured, store device, compile, bf16'] = [
            *(_GRAPH, _DEVICE_STORE, 'train:compile=true', 'train:amp=bf16', 'train:amp_teacher=bf16')
        ]
    rows, fallbacks = [], []
    for number, (variant, changes) in enumerate(variants.items()):
        name = f'demo_{number}'
        place.train(name, *changes)
        rows.append({'variant': variant, 'PSNR': place.psnr(name), 'student_it_per_s': place.rate(name)})
        fallbacks += place.fallbacks(name)
    difference = max(abs(row['PSNR'] - rows[0]['PSNR']) for row in rows)
    notes = [f'Largest difference {difference:.3f} dB; at most {_NOISE} dB are noise.', *fallbacks]
    place.tables.append(Table('Demo recipe with Adam, student on the held-out photos', rows, notes))
    if fallbacks and place.on_gpu:
        raise CheckFailed(f'the log has: {fallbacks[0]}')
    if difference > _NOISE:
        raise CheckFailed(f'PSNR differs by {difference:.2f} dB between the variants')


def resume(place: Place) -> None:
    """stop an eager run and resume it captured"""
    place.data()
    alone = ('--stage', 'alone')
    place.train('whole', flags=alone)
    states = place.stage('broken', 'alone') / 'training_states'
    eager = place.recipe('broken', 'train:cuda_graph=false')
    with place.started(ROOT / 'tools/train.py', *alone, *eager) as (process, log):
        while process.poll() is None and not list(states.glob('*.state')) and time.monotonic() < place.deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        place.finish(process, log, expected=130)
    place.train('broken', _GRAPH, flags=('--auto_resume', *alone))
    logs = ''.join(file.read_text() for file in place.stage('broken', 'alone').glob('*.log'))
    resumed = re.search(r'Resuming training from iter: (\d+)', logs)
    rows = [
        {'run': 'whole', 'PSNR': place.psnr('whole', 'alone')},
        {
            'run': 'stopped and resumed',
            'PSNR': place.psnr('broken', 'alone'),
            'from_iteration': int(resumed[1]) if resumed else None,
        },
    ]
    place.tables.append(Table('Stop and resume', rows))
    if not resumed:
        raise CheckFailed('the second start did not resume')
    if abs(rows[0]['PSNR'] - rows[1]['PSNR']) > _NOISE:
        raise CheckFailed('the resumed run ends with another PSNR')
    if place.on_gpu and place.fallbacks('broken'):
        raise CheckFailed(f'the log has: {place.fallbacks("broken")[0]}')


def kdsr(place: Place) -> None:
    """small KDSR and GAN stages"""
    place.data()
    photos, count = place.folder / 'datasets/demo/heldout/HR', 100 if place.on_gpu else 2
    width = 16 if place.on_gpu else 8
    common = [
        f'num_gpu={min(place.gpus, 1)}',
        *(f'network_g:{key}={value}' for key, value in (('num_feat', width), ('num_block', 2))),
        'network_g:num_estimator_block=1',
        f'logger={{print_freq: {count // 2}, save_checkpoint_freq: {count}, use_tb_logger: false}}',
        f'datasets:val:dataroot_gt={photos}',
        'datasets:val:kernels=[1.8]',
        'datasets:train:batch_size_per_gpu=2',
        'datasets:train:num_worker_per_gpu=0',
    ]
    (place.folder / 'photos.txt').write_text(''.join(f'{file.name}\n' for file in sorted(photos.iterdir())))
    classic = [
        'datasets:train:dataroot_gt=datasets/demo/train/HR_raw.lmdb',
        'datasets:train:dataroot_lq=~',
        'datasets:train:gt_size=64',
        'datasets:val_2=~',
        'train:degradation:noise=[0, 15]',
    ]
    real = [
        f'datasets:train:dataroot_gt={photos}',
        'datasets:train:meta_info=photos.txt',
        'datasets:train:io_backend={_delete_: true, type: disk}',
        f'datasets:train:gt_size={128 if place.on_gpu else 32}',
        'stages:gan:network_d:num_feat=8',
        'stages:gan:train:perceptual_opt=~',  # the weights of VGG would have to be downloaded
    ]
    rows = []
    for name, recipe, stages, changes in (
        ('KDSR', 'kdsr_m_x4', ('teacher', 'student'), classic),
        ('KDSR-GAN', 'kdsr_gan_x4', ('teacher', 'student', 'gan'), real),
    ):
        lengths = [f'stages:{stage}:train:total_iter={count}' for stage in stages]
        options = [f'name={name}', *common, *changes, *lengths]
        place.python(ROOT / 'tools/train.py', '-opt', ROOT / f'options/kdsr/{recipe}.yml', '--force_yml', *options)
        rows += [
            {'recipe': name, 'stage': stage, 'iterations': count, 'it_per_s': place.rate(name, stage)}
            for stage in stages
        ]
    place.tables.append(Table('KDSR in small', rows))


def testing(place: Place) -> None:
    """testing with TF32 and without"""
    if not place.stage('demo_0', 'student').exists():
        raise CheckSkipped('needs the network of the check demo')
    rows = []
    for tf32 in (False, True):
        place.python(ROOT / 'tools/test.py', *(['--tf32'] if tf32 else []), *place.recipe('demo_0'))
        [file] = (place.folder / 'results').rglob('evaluation.json')
        record = json.loads(file.read_text())
        mean = next(row for row in record['rows'] if row['name'] == 'student')['sets']['heldout']['mean']
        rows.append({'precision': record['environment']['precision'], 'PSNR': mean['psnr']})
        for found in (place.folder / 'results').iterdir():
            found.rename(place.folder / f'tested_{"tf32" if tf32 else "fp32"}')
    place.tables.append(Table('Testing the demo student', rows))
    if place.on_gpu and [row['precision'] for row in rows] != ['fp32', 'TF32']:
        raise CheckFailed('the record names another precision than was asked for')
    if abs(rows[0]['PSNR'] - rows[1]['PSNR']) > 0.01:
        raise CheckFailed('TF32 changes PSNR by more than 0.01 dB')


def tiles(place: Place) -> None:
    """upscaling by tiles with TF32 and without"""
    place.program('tiles')


def profile(place: Place) -> None:
    """a trace of 20 steps"""
    place.program('profile')


def benchmarks(place: Place) -> None:
    """benchmarks step, teacher and train"""
    if place.on_gpu:
        place.benchmark('train', 'step', 'teacher', '--rounds', '5')
    else:
        place.benchmark('train', '--quick')


def ranks(place: Place) -> None:
    """two ranks train as one process, and each uses its own GPU alone"""
    if place.on_gpu:
        place.needs(2, 'needs two GPUs')
    place.data()
    few = [f'stages:alone:train:total_iter={20 if place.on_gpu else 4}', 'val:val_freq=~']
    place.train('one_process', *few, 'datasets:train:batch_size_per_gpu=8', flags=('--stage', 'alone'))
    runs = {'two_ranks': [], **({'two_ranks_recorded': [_GRAPH]} if place.on_gpu else {})}
    for name, changes in runs.items():
        _train_two_ranks(place, name, [*few, *changes])
    runs = {'one_process': [], **runs}
    rows = [{'run': name, 'PSNR': place.psnr(name, 'alone')} for name in runs]
    notes = [line for name in runs for line in place.fallbacks(name)]
    place.tables.append(Table('One process against two ranks with half the batch each', rows, notes))
    if max(abs(row['PSNR'] - rows[0]['PSNR']) for row in rows) > 0.01:
        raise CheckFailed('two ranks end with another PSNR than one process')
    if notes:
        raise CheckFailed(f'the log has: {notes[0]}')


def _train_two_ranks(place: Place, name: str, changes: list[str]) -> None:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        meeting = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': probe.getsockname()[1], 'WORLD_SIZE': 2}
    recipe = place.recipe(
        name, *changes, 'datasets:train:batch_size_per_gpu=4', f'num_gpu={"auto" if place.on_gpu else 0}'
    )
    arguments = ['-m', 'benchmarks.gpu_programs', 'rank', '--stage', 'alone', *recipe]
    with (
        place.started(*arguments, RANK=0, LOCAL_RANK=0, **meeting) as first,
        place.started(*arguments, RANK=1, LOCAL_RANK=1, **meeting) as second,
    ):
        for running in (second, first):
            place.finish(*running)


def ablation(place: Place) -> None:
    """the jobs of an ablation spread over the GPUs"""
    place.needs(2, 'needs two GPUs')
    place.data()
    (place.folder / 'note_gpu.py').write_text(
        'import os, pathlib\n'
        "pathlib.Path(f'gpu_{os.getpid()}.txt').write_text(os.environ.get('CUDA_VISIBLE_DEVICES', 'all'))\n"
    )
    adam = {'_delete_': True, 'type': 'Adam', 'lr': 1e-3}
    nothing = dict.fromkeys(('imitation_opt', 'weight_transfer', 'distill_opt'))
    alone = {'network_t': None, 'train': {**nothing, 'total_iter': 200, 'warmup_iter': -1, 'optim_g': adam}}
    grid = {
        'name': 'spread',
        'recipe': str(ROOT / _DEMO),
        'common': {'stages': {'_delete_': True, 'alone': alone}},
        'rows': {'plain': {'seeds': list(range(place.gpus))}},
    }
    (place.folder / 'spread.yml').write_text(json.dumps(grid))
    place.python(ROOT / 'tools/ablate.py', '-opt', 'spread.yml', '--plugin', 'note_gpu', PYTHONPATH=f'{ROOT}:.')
    used = [file.read_text() for file in sorted(place.folder.glob('gpu_*.txt'))]
    given = [gpus for gpus in used if gpus != 'all']  # the command itself sees all
    place.tables.append(Table('GPUs of the jobs', [{'job': number, 'GPU': gpu} for number, gpu in enumerate(given)]))
    if sorted(given) != sorted(map(str, range(place.gpus))):
        raise CheckFailed(f'{place.gpus} jobs ran on the GPUs {", ".join(given)}')


CHECKS = (marked_tests, waits, demo, testing, resume, kdsr, tiles, ranks, ablation, profile, benchmarks)


# ---------------------------------------------------------------------------------------------------------- the page


def run(place: Place, checks: tuple[Callable[[Place], None], ...] = CHECKS) -> int:
    """Runs the checks one after the other, also after a failure; returns the number of those that failed."""
    [machine] = place.program('machine')
    place.gpus = machine.rows[0]['gpus']
    if place.on_gpu and not place.gpus:
        print('There is no GPU here that PyTorch can use. (--device cpu runs the same checks in small.)')
        return -1
    summary, tables = [], {'machine': [machine]}
    for check in checks:
        print(f'{check.__name__}: {(check.__doc__ or "").strip()} ...', end=' ', flush=True)
        place.tables, began, result, why = [], time.monotonic(), 'passed', ''
        try:
            if began > place.deadline:
                raise CheckSkipped(f'the {MINUTES} minutes are over')
            check(place)
        except CheckSkipped as reason:
            result, why = 'skipped', str(reason)
        except Exception as error:  # whatever it is, the other checks can still tell something
            result, why = 'failed', str(error) if isinstance(error, CheckFailed) else f'{type(error).__name__}: {error}'
        seconds = time.monotonic() - began
        print(f'{result}, {seconds:.0f} s{f": {why}" if why else ""}', flush=True)
        summary.append({'check': check.__name__, 'result': result, 'seconds': round(seconds, 1), 'why': why})
        tables[check.__name__] = place.tables
        (place.folder / 'gpu.md').write_text(page(machine, summary, tables))
    print(f'Written: {place.folder / "gpu.md"}')
    print(json_line(machine.rows[0], {'summary': [Table('Checks', summary)], **tables}))
    return sum(row['result'] == 'failed' for row in summary)


def page(machine: Table, summary: list[dict], tables: dict[str, list[Table]]) -> str:
    """Returns the page: the checks, then the tables of each, then everything as JSON."""
    parts = ['# Acceptance on a GPU', ', '.join(f'{key} {value}' for key, value in machine.rows[0].items())]
    parts.append(markdown(Table('Checks', summary)))
    for name, found in tables.items():
        if name != 'machine' and found:
            parts += [f'## {name}', *map(markdown, found)]
    everything = json_line(machine.rows[0], {'summary': [Table('Checks', summary)], **tables})
    return '\n\n'.join([*parts, f'```json\n{everything}\n```']) + '\n'


def main(argv: list[str] | None = None, popen: Callable = subprocess.Popen) -> int:
    """Command line; returns 0, 1 where a check failed, or 2 where there is no GPU."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.gpu', description='Acceptance on a GPU.')
    names = [check.__name__ for check in CHECKS]
    parser.add_argument('checks', nargs='*', metavar='CHECK', help=f'default: all of {", ".join(names)}')
    parser.add_argument('--device', choices=['cuda', 'cpu'], default='cuda')
    parser.add_argument('-o', '--output', type=Path, metavar='DIR', help='a new folder (default: results/gpu_TIME)')
    args = parser.parse_args(argv)
    unknown = set(args.checks) - set(names)
    if unknown:
        parser.error(f'there is no check {", ".join(sorted(unknown))}')
    folder = (args.output or Path('results') / time.strftime('gpu_%Y%m%d_%H%M%S')).resolve()
    folder.mkdir(parents=True)
    chosen = tuple(check for check in CHECKS if not args.checks or check.__name__ in args.checks)
    place = Place(folder, args.device, time.monotonic() + 60 * MINUTES, popen=popen)
    failed = run(place, chosen)
    return 2 if failed < 0 else min(failed, 1)


if __name__ == '__main__':
    sys.exit(main())
