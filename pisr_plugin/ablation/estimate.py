"""Estimates how long stages will take: from the steps they did so far, else from a few steps on noise."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from pisr_plugin.config.runtime import runtime_options
from pisr_plugin.config.stages import Stage
from pisr_plugin.data.datasets.patches import noise_batch
from pisr_plugin.engine.train import build_trial
from pisr_plugin.engine.training_states import TrainingStates
from pisr_plugin.utils.text_files import read_records

_STEPS = {'cpu': 3, 'cuda': 20}  # at least; on a GPU the first ones also choose algorithms and record a graph
_SECONDS = 1  # at least: single steps of small networks differ much


def estimate(stages: Iterable[Stage]) -> dict[str, float]:
    """Returns the seconds of steps that each stage still needs on this machine, by name, without validation.

    Args:
        stages: The stages to train, in order.
    """
    stages = list(stages)
    to_come = {stage.checkpoint for stage in stages}
    measured: dict[str, float] = {}
    seconds = {}
    for stage in stages:
        done = next(iter(TrainingStates(stage.folder, '').iterations()), 0)
        per_step = _so_far(stage.folder / 'metrics.jsonl')
        if per_step is None:
            kind = _kind(stage)
            if kind not in measured:
                measured[kind] = _trial(stage, to_come)
            per_step = measured[kind]
        seconds[stage.name] = per_step * (stage.options['train']['total_iter'] - done)
    return seconds


def _so_far(metrics: Path) -> float | None:
    times = [record['time'] for record in read_records(metrics) if isinstance(record.get('time'), (int, float))]
    return statistics.median(times) if times else None


def _kind(stage: Stage) -> str:
    """Returns a text that is equal for stages whose steps cost the same."""
    options, train = stage.options, stage.options['train']
    parts = {key: options.get(key) for key in ('network_g', 'network_t')}
    parts['train'] = {key: value for key, value in train.items() if key not in ('total_iter', 'scheduler', 'optim_g')}
    data = options['datasets']['train']
    parts['data'] = {key: data.get(key) for key in ('gt_size', 'batch_size_per_gpu', 'color')}
    return json.dumps(parts, sort_keys=True, default=str)


def _trial(stage: Stage, to_come: set[Path]) -> float:
    """Returns the median seconds of a step, on the device that trains."""
    opt = runtime_options(stage, stage.folder, is_train=True)
    model = build_trial(opt, to_come, num_gpu=min(opt['num_gpu'], 1))
    batch = noise_batch(opt, opt['datasets']['train']['batch_size_per_gpu'])
    times: list[float] = []
    while len(times) <= _STEPS[model.device.type] or sum(times) < _SECONDS:
        started = time.perf_counter()
        model.feed_data(batch)
        model.optimize_parameters(len(times) + 1)
        if model.device.type == 'cuda':
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
