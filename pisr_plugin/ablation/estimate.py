"""How long stages will take: by what they took so far, else by a few steps on noise."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

from pisr_plugin.data.noise import noise_batch
from pisr_plugin.engine.runtime import runtime_options
from pisr_plugin.engine.stages import Stage
from pisr_plugin.engine.states import States
from pisr_plugin.engine.train import build_trial

_STEPS = 3


def estimate(stages: Iterable[Stage]) -> dict[str, float]:
    """Seconds that each stage still needs on this machine, validation left out."""
    stages = list(stages)
    to_come = {stage.checkpoint for stage in stages}
    measured: dict[str, float] = {}
    seconds = {}
    for stage in stages:
        done = next(iter(States(stage.folder, '').iterations()), 0)
        per_step = _so_far(stage.folder / 'metrics.jsonl')
        if per_step is None:
            kind = _kind(stage)
            if kind not in measured:
                measured[kind] = _trial(stage, to_come)
            per_step = measured[kind]
        seconds[stage.name] = per_step * (stage.options['train']['total_iter'] - done)
    return seconds


def _so_far(metrics: Path) -> float | None:
    if not metrics.is_file():
        return None
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    times = [record['time'] for record in records if 'time' in record]
    return statistics.median(times) if times else None


def _kind(stage: Stage) -> str:
    """Equal for stages whose steps cost the same."""
    options, train = stage.options, stage.options['train']
    parts = {key: options.get(key) for key in ('network_g', 'network_t')}
    parts['train'] = {key: value for key, value in train.items() if key not in ('total_iter', 'scheduler', 'optim_g')}
    data = options['datasets']['train']
    parts['data'] = {key: data.get(key) for key in ('gt_size', 'batch_size_per_gpu', 'color')}
    return json.dumps(parts, sort_keys=True, default=str)


def _trial(stage: Stage, to_come: set[Path]) -> float:
    opt = runtime_options(stage, stage.folder, is_train=True)
    opt['train'] = {key: value for key, value in opt['train'].items() if key != 'compile'}
    model = build_trial(opt, to_come)
    batch = noise_batch(opt, opt['datasets']['train']['batch_size_per_gpu'])
    times = []
    for step in range(1, _STEPS + 2):
        started = time.perf_counter()
        model.feed_data(batch)
        model.optimize_parameters(step)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
