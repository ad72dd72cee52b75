"""A student stage over gloo ranks on one machine, one thread each, the same batch per rank."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from benchmarks.harness import Settings
from benchmarks.ranks import Group, take_turns
from benchmarks.report import Table

_RANKS = (1, 2)


def run(settings: Settings) -> list[Table]:
    """One table; ``efficiency`` is the samples per second of n ranks over n times those of one."""
    with tempfile.TemporaryDirectory() as folder:
        groups = {ranks: Group(ranks, settings, Path(folder) / f'{ranks}') for ranks in _RANKS}
        costs = take_turns(groups, settings, steps=3 if settings.quick else 5)
    rows = []
    for ranks in _RANKS:
        over_one = statistics.median(ranks * one.wall / own.wall for one, own in zip(costs[1], costs[ranks]))
        rows.append(
            {
                'ranks': ranks,
                'iterations_per_s': 1 / statistics.median(cost.wall for cost in costs[ranks]),
                'samples_per_s_times_one_rank': over_one,
                'efficiency': over_one / ranks,
            }
        )
    return [Table('Student stage, FSRCNN x2, over gloo ranks (wall time)', rows)]
