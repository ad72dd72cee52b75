"""A student stage over ranks on one machine, one thread or one GPU each, the same batch per rank."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.harness import Settings
from benchmarks.ranks import Group, take_turns
from benchmarks.report import Table


def run(settings: Settings) -> list[Table]:
    """One table; ``efficiency`` is the samples per second of n ranks over n times those of one."""
    on_gpu = settings.device == 'cuda'
    counts = [ranks for ranks in (1, 2, 4, 8) if ranks <= (torch.cuda.device_count() if on_gpu else 2)]
    with tempfile.TemporaryDirectory() as folder:
        groups = {ranks: Group(ranks, settings, Path(folder) / f'{ranks}') for ranks in counts}
        costs = take_turns(groups, settings, steps=3 if settings.quick else 100 if on_gpu else 5)
    rows = []
    for ranks in counts:
        over_one = statistics.median(ranks * one.wall / own.wall for one, own in zip(costs[1], costs[ranks]))
        rows.append(
            {
                'ranks': ranks,
                'iterations_per_s': 1 / statistics.median(cost.wall for cost in costs[ranks]),
                'samples_per_s_times_one_rank': over_one,
                'efficiency': over_one / ranks,
            }
        )
    return [Table(f'Student stage, FSRCNN x2, over {"NCCL" if on_gpu else "gloo"} ranks (wall time)', rows)]
