"""What an iteration costs beside arithmetic: FSRCNN x2 on one patch of 8x8, all Python and launching."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import torch
from basicsr.utils import AvgTimer

from benchmarks.harness import Action, Settings, measure
from benchmarks.operators import OperatorCount
from benchmarks.report import Table
from benchmarks.workload import build, iterate, make_batch, plain_loop, stage_options
from pisr_plugin.engine.train_logger import TrainLogger

_PATCH = ['datasets:train:gt_size=8', 'datasets:train:batch_size_per_gpu=1']
_EMA = ['train:ema_decay=0.999']
_PLAIN, _BARE = 'plain loop', 'bare loop, fused Adam'


def run(settings: Settings) -> list[Table]:
    """One table: microseconds and operators of plain loops, of our step, and of all that a training run does in one."""
    opt = stage_options('pisr_fsrcnn_x2', 'student', settings, _PATCH)
    batch = make_batch(opt)
    bare = plain_loop(build(opt), to_tap=True, fused=True)
    plain = plain_loop(build(opt))
    model = build(opt)
    averaged = build(stage_options('pisr_fsrcnn_x2', 'student', settings, [*_PATCH, *_EMA]))
    for ours in (model, averaged):
        iterate(ours, batch, current_iter=1)
    with tempfile.TemporaryDirectory() as folder:
        progress = TrainLogger('host', 0, 10**9, Path(folder), active=True)
        steps = {
            _PLAIN: lambda: plain.step(batch),
            _BARE: lambda: bare.step(batch),
            'ours: step and schedule': lambda: iterate(model, batch),
            'ours: step, schedule and EMA': lambda: iterate(averaged, batch),
            'ours: whole iteration': _training_iteration(averaged, batch, progress),
        }
        timings = measure(steps, settings, calls=5 if settings.quick else 100)
        counts = {name: _count(step) for name, step in steps.items()}
        progress.close()
    rows = [
        {
            'loop': name,
            'us': 1e6 * timings.median(name),
            'times_bare': timings.ratio(name, _BARE),
            'times_faster_than_plain': timings.speedup(name, _PLAIN),
            'operators': counts[name].total(),
            'scalars_read_back': counts[name]['aten._local_scalar_dense.default'],
        }
        for name in steps
    ]
    notes = [f'Non-view operators. A whole iteration logs every {opt["logger"]["print_freq"]} iterations.']
    return [Table('Host cost of a student step, FSRCNN x2, batch 1, patch 8x8', rows, notes)]


def _training_iteration(model, batch: dict[str, torch.Tensor], progress: TrainLogger) -> Action:
    """What :func:`pisr_plugin.engine.train.run_stage` does in an iteration, but for getting the batch."""
    data_timer, iter_timer = AvgTimer(), AvgTimer()
    print_freq = model.opt['logger']['print_freq']
    current_iter = 1

    def iteration() -> None:
        nonlocal current_iter
        current_iter += 1
        data_timer.record()
        iterate(model, batch, current_iter)
        iter_timer.record()
        progress.step()
        if current_iter % print_freq == 0:
            progress.losses(
                0,
                current_iter,
                model.get_current_learning_rate(),
                iter_timer.get_avg_time(),
                data_timer.get_avg_time(),
                model.get_current_log(),
            )
        data_timer.start()
        iter_timer.start()

    return iteration


def _count(step: Action) -> Counter[str]:
    with OperatorCount() as count:
        step()
    return count.names
