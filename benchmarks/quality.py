"""Time to quality: PSNR on Set5 over CPU time, of whole runs of recipes on the same photos.

Each run is a ``tools/train.py`` of its own, so that it can be interrupted: called again, the benchmark goes on from
what is there. CPU time is that of the iterations; validation and saving do not count.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import Settings
from benchmarks.photos import make_photo_sets
from benchmarks.report import Table
from pisr_plugin.utils.errors import DataError, PISRError
from pisr_plugin.utils.text_files import read_records

ROOT = Path(__file__).parents[1]
ADAM = (
    'train:optim_g={type: Adam, lr: 1e-3, betas: [0.9, 0.999]}',
    'train:warmup_iter=-1',
    'train:scheduler:eta_min=1e-5',
    'network_g:start=~',
)
POINTS = 20  # of a curve


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        label: What tables and the picture call it.
        recipe: A file of ``options/fast/`` without its suffix.
        total_iter: Its length; the schedule of the rate is as long.
        changes: What differs from the recipe.
    """

    label: str
    recipe: str
    total_iter: int
    changes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its folder."""
        return f'{self.recipe}_{"adam_" if self.changes else ""}{self.total_iter}'


@dataclass(frozen=True)
class Subject:
    """A network at a scale, the qualities that are asked for in dB, and the runs that are compared."""

    title: str
    wanted: Sequence[float]
    runs: Sequence[Run]


SUBJECTS = [
    Subject(
        'FSRCNN x2 on Y',
        (35.0, 36.0, 36.5, 36.8, 37.0, 37.15),
        [
            Run("Adam, PISR's rates", 'baseline_fsrcnn_x2', 20000, ADAM),
            Run('SOAP', 'baseline_fsrcnn_x2', 6000),
            Run('SOAP', 'baseline_fsrcnn_x2', 30000),
        ],
    ),
    Subject('FSRCNN x3 on Y', (32.5, 33.0, 33.16), [Run('SOAP', 'baseline_fsrcnn_x3', 12000)]),
    Subject('FSRCNN x4 on Y', (30.0, 30.5, 30.71), [Run('SOAP', 'baseline_fsrcnn_x4', 12000)]),
    Subject('RFDN x2 on RGB, 24 features, 3 blocks', (36.5, 37.0, 37.15), [Run('SOAP', 'baseline_rfdn_s_x2', 3000)]),
    Subject('RFDN x4 on RGB, 24 features, 3 blocks', (30.5, 30.71, 31.0), [Run('SOAP', 'baseline_rfdn_s_x4', 3000)]),
]


@dataclass(frozen=True)
class Point:
    """A validation.

    Attributes:
        iteration: When.
        cpu: CPU seconds of training until then.
        psnr: Mean over the images, dB.
    """

    iteration: int
    cpu: float
    psnr: float


def run(settings: Settings) -> list[Table]:
    """For each subject a table of its runs and, in its notes, how many times as long Adam takes.

    Raises:
        PISRError: there are no photos, or a run fails.
    """
    with tempfile.TemporaryDirectory() as made:
        data = _data(settings, Path(made))
        folder = settings.runs or Path(made) / 'runs'
        folder.mkdir(parents=True, exist_ok=True)
        curves = []
        for subject in SUBJECTS[: 1 if settings.quick else None]:
            runs = subject.runs[: 2 if settings.quick else None]
            curves.append({one: _train(one, data, folder, settings) for one in runs})
    if settings.picture:
        draw(list(zip(SUBJECTS, curves)), settings.picture)
    return [table(subject, found) for subject, found in zip(SUBJECTS, curves)]


def points(metrics: Path) -> list[Point]:
    """The validations of a run, from its ``metrics.jsonl``."""
    found, cpu, last = [], 0.0, 0
    for record in read_records(metrics):
        if 'cpu_time' in record:  # a mean over the iterations since the last report
            cpu, last = cpu + record['cpu_time'] * (record['iter'] - last), record['iter']
        elif 'psnr' in record:
            found.append(Point(record['iter'], cpu, record['psnr']))
    return found


def seconds_to(curve: Iterable[Point], psnr: float) -> float | None:
    """CPU seconds until a quality is reached; None where it never is."""
    return next((point.cpu for point in curve if point.psnr >= psnr), None)


def table(subject: Subject, curves: dict[Run, list[Point]]) -> Table:
    """One row for each run: where it ends, and when it passed each quality."""
    rows = [
        {
            'run': one.label,
            'iterations': one.total_iter,
            'Set5_dB': f'{curve[-1].psnr:.2f}',  # three digits would be too few
            'CPU_s': curve[-1].cpu,
            **{f's_to_{psnr:g}': seconds_to(curve, psnr) for psnr in subject.wanted},
        }
        for one, curve in curves.items()
    ]
    return Table(f'{subject.title}: CPU seconds to quality', rows, _ratios(curves))


def _ratios(curves: dict[Run, list[Point]]) -> list[str]:
    """How much sooner the others reach the quality with which Adam ends."""
    notes = []
    for adam in (one for one in curves if one.changes):
        end = curves[adam][-1]
        times = [t for one in curves if not one.changes and (t := seconds_to(curves[one], end.psnr))]
        if times:
            notes.append(f'Adam ends at {end.psnr:.2f} dB; SOAP is there {end.cpu / min(times):.0f} times as soon.')
    return notes


def draw(subjects: Sequence[tuple[Subject, dict[Run, list[Point]]]], file: Path) -> None:
    """Draws PSNR over CPU time, one panel for each subject."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(subjects), 3.6), layout='constrained')
    FigureCanvasAgg(figure)
    for axes, (subject, curves) in zip(figure.subplots(1, len(subjects), squeeze=False)[0], subjects):
        for one, curve in curves.items():
            label = f'{one.label}, {one.total_iter:,} iterations'
            axes.plot([p.cpu for p in curve], [p.psnr for p in curve], '--' if one.changes else '-', label=label)
        axes.set(title=subject.title, xscale='log', xlabel='CPU seconds', ylabel='PSNR on Set5 [dB]')
        axes.grid(alpha=0.3)
        axes.legend(fontsize='small')
    figure.savefig(file, dpi=110)


def _data(settings: Settings, made: Path) -> list[str]:
    """Where photos and Set5 are, as options."""
    photos, test = settings.photos, settings.test
    if settings.quick and photos is None:
        sets = make_photo_sets(made, settings)
        photos = test = sets.store.gt.parent
    if photos is None or test is None:
        raise DataError(
            'quality: needs --photos and --test, folders that tools/prepare_data.py build made (--lmdb raw for the '
            'photos), the second of Set5.'
        )
    photos, test = photos.resolve(), test.resolve()
    return [
        f'datasets:train:dataroot_gt={photos}/HR_raw.lmdb',
        f'datasets:train:dataroot_lq={photos}/LR_bicubic_X${{scale}}_raw.lmdb',
        f'datasets:val:dataroot_gt={test}/HR',
        f'datasets:val:dataroot_lq={test}/LR_bicubic/X${{scale}}',
        'datasets:val_2=~',
    ]


def _train(one: Run, data: Sequence[str], folder: Path, settings: Settings) -> list[Point]:
    """Trains, or goes on, to the end; returns the curve."""
    total = 20 if settings.quick else one.total_iter
    every = max(total // POINTS, 10)
    changes = [
        f'name={one.name}',
        f'num_gpu={1 if settings.device == "cuda" else 0}',
        f'train:total_iter={total}',
        f'val:val_freq={every}',
        'val:metrics:ssim=~',
        f'logger={{print_freq: 10, save_checkpoint_freq: {every}, keep_checkpoints: 1, use_tb_logger: false}}',
    ]
    command = [sys.executable, str(ROOT / 'tools/train.py'), '-opt', str(ROOT / f'options/fast/{one.recipe}.yml')]
    command += ['--auto_resume', '--force_yml', *data, *one.changes, *changes]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
    environment = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': str(settings.threads)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise PISRError(f'quality: {one.name} ended with code {done.returncode}:\n{done.stderr.strip()}')
    return points(folder / 'experiments' / one.name / 'student' / 'metrics.jsonl')
