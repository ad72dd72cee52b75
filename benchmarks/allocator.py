"""What a step on a CPU pays for memory that the C library hands back to the system after each use."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.harness import Settings
from benchmarks.ranks import Group, take_turns
from benchmarks.report import Table

_GIVEN_BACK, _KEPT = 'given back', 'kept'


def run(settings: Settings) -> list[Table]:
    """One table. Each way has a process of its own, as the allocator is set for a whole process."""
    with tempfile.TemporaryDirectory() as folder:
        groups = {
            name: Group(1, replace(settings, device='cpu'), Path(folder) / name, keep_freed=name == _KEPT)
            for name in (_GIVEN_BACK, _KEPT)
        }
        costs = take_turns(groups, settings, steps=2)
    rows = [
        {
            'freed_memory': name,
            'ms': 1000 * statistics.median(cost.cpu for cost in costs[name]),
            'speedup': statistics.median(a.cpu / b.cpu for a, b in zip(costs[_GIVEN_BACK], costs[name])),
            'page_faults': statistics.median(cost.page_faults for cost in costs[name]),
        }
        for name in groups
    ]
    return [Table('Student step, FSRCNN x2, by what the allocator does (CPU time)', rows)]
