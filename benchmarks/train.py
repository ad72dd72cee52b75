"""Whole iterations of a student stage, FSRCNN x2 on Y, with loading from each kind of store."""

from __future__ import annotations

import tempfile
import time
from contextlib import closing
from pathlib import Path

from basicsr.data import build_dataset

from benchmarks.compare_variants import COMPILE, EAGER, allow_compiling
from benchmarks.harness import Settings, clock
from benchmarks.photos import Pair, make_photo_sets
from benchmarks.report import Table
from benchmarks.workload import build, iterate, stage_options
from pisr_plugin.data.datasets.patch_dataset import STORES
from pisr_plugin.data.loading.train_loader import build_train_loader
from pisr_plugin.models.pisr_model import PISRModel

_RECIPE = 'pisr_fsrcnn_x2'
_WARMUP = 8  # iterations: the choice of algorithms, compilation, the recording of a CUDA graph


def run(settings: Settings) -> list[Table]:
    """One row for each store and, on CUDA, for each manner of the step."""
    manners = {'default': []}
    if settings.device == 'cuda':
        manners |= {'eager': EAGER, 'compile': COMPILE}
    allow_compiling(len(manners) * len(STORES))
    with tempfile.TemporaryDirectory() as folder:
        images = make_photo_sets(Path(folder), settings).store
        rows = [
            {'store': store, 'step': manner, **_iterations(images, store, changes, settings)}
            for manner, changes in manners.items()
            for store in STORES
        ]
    return [Table('Student stage, FSRCNN x2, with loading (wall time)', rows)]


def _iterations(images: Pair, store: str, changes: list[str], settings: Settings) -> dict[str, float]:
    """Trains for some iterations; returns how many a second takes, and what they wait for."""
    data = [
        f'datasets:train:dataroot_gt={images.gt}',
        f'datasets:train:dataroot_lq={images.lq}',
        f'datasets:train:store={store}',
    ]
    opt = stage_options(_RECIPE, 'student', settings, [*data, *changes])
    model, options = build(opt), opt['datasets']['train']
    count = 3 if settings.quick else 300 if settings.device == 'cuda' else 20
    now = clock(settings) if settings.device == 'cuda' else time.perf_counter
    with closing(build_train_loader(build_dataset(options), options, seed=0, device=model.device)) as loader:
        _train(model, loader, range(1, 1 + (2 if settings.quick else _WARMUP)))
        start = now()
        waited = _train(model, loader, range(100, 100 + count))
        seconds = now() - start
    return {'iterations_per_s': count / seconds, 'percent_waiting_for_data': 100 * waited / seconds}


def _train(model: PISRModel, loader, iterations: range) -> float:
    """Runs iterations; returns the seconds that they waited for their batches."""
    waited = 0.0
    for current_iter in iterations:
        start = time.perf_counter()
        batch = next(loader)
        waited += time.perf_counter() - start
        iterate(model, batch, current_iter)
    return waited
