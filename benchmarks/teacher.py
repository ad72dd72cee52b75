"""The teacher stage's step, FSRCNN x2 on Y, batch 16, HR patches of 192."""

from __future__ import annotations

from benchmarks.compare_variants import COMPILE, LEVERS, LOOPS, compare_variants
from benchmarks.harness import Settings
from benchmarks.report import Table

_BF16 = ['train:amp=bf16']
_TEACHER_LEVERS = {**LEVERS, 'bf16': _BF16, 'compile, bf16': [*COMPILE, *_BF16]}


def run(settings: Settings) -> list[Table]:
    return [
        compare_variants('Teacher stage, FSRCNN x2 on Y', 'pisr_fsrcnn_x2', 'teacher', LOOPS, _TEACHER_LEVERS, settings)
    ]
