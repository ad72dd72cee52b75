"""The teacher stage's step, FSRCNN x2 on Y, batch 16, HR patches of 192."""

from __future__ import annotations

from benchmarks.contest import LEVERS, contest
from benchmarks.harness import Settings
from benchmarks.report import Table


def run(settings: Settings) -> list[Table]:
    return [contest('Teacher stage, FSRCNN x2 on Y', 'pisr_fsrcnn_x2', 'teacher', LEVERS, settings)]
