"""The student stage's step, FSRCNN x2 on Y and RFDN x4 on RGB, batch 16, HR patches of 192."""

from __future__ import annotations

from benchmarks.compare_variants import COMPILE, LEVERS, LOOPS, compare_variants
from benchmarks.harness import Settings
from benchmarks.report import Table

_LOOPS = {
    **LOOPS,
    'plain loop, teacher to its tap': {'to_tap': True},
    'plain loop, both and fused Adam': {'channels_last': True, 'to_tap': True, 'fused': True},
}
_BF16_TEACHER, _BF16 = ['train:amp_teacher=bf16'], ['train:amp=bf16', 'train:amp_teacher=bf16']
_STUDENT_LEVERS = {
    **LEVERS,
    'bf16 teacher': _BF16_TEACHER,
    'bf16 everywhere': _BF16,
    'compile, bf16 teacher': [*COMPILE, *_BF16_TEACHER],
    'compile, bf16 everywhere': [*COMPILE, *_BF16],
}
_FSRCNN, _RFDN = 'pisr_fsrcnn_x2', 'pisr_rfdn_x4'


def run(settings: Settings) -> list[Table]:
    """Times both networks, and with ``settings.peer`` the PISR authors' loop beside ours."""
    extra = {}
    if settings.peer:
        from benchmarks.peer import PeerStudentStage

        extra["PISR authors' loop"] = PeerStudentStage(settings, _FSRCNN).step
    return [
        compare_variants('Student stage, FSRCNN x2 on Y', _FSRCNN, 'student', _LOOPS, _STUDENT_LEVERS, settings, extra),
        compare_variants('Student stage, RFDN x4 on RGB', _RFDN, 'student', _LOOPS, _STUDENT_LEVERS, settings),
    ]
