"""The machine a benchmark runs on: what it is, its convolution peak."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Settings
from pisr_plugin.utils.devices import fp32_precision


def facts(settings: Settings) -> dict[str, object]:
    """What a reader needs to judge figures of this run."""
    return {
        'cpu': _cpu_model(),
        'cores': os.cpu_count(),
        'cpu_capability': torch.backends.cpu.get_cpu_capability(),
        'gpu': torch.cuda.get_device_name() if settings.device == 'cuda' else None,
        'precision': fp32_precision(settings.device == 'cuda'),
        'threads': settings.threads,
        'rounds': settings.rounds,
        'quick': settings.quick,
        'python': platform.python_version(),
        'torch': torch.__version__,
        'commit': _commit(),
    }


class Work(NamedTuple):
    """Something to run, and the floating-point operations it needs."""

    run: Callable[[], object]
    flops: int


@torch.no_grad()
def conv_peak(settings: Settings, dtype: torch.dtype = torch.float32) -> Work:
    """A convolution that runs as fast as any here: 3x3, 256 to 256 channels, 16 maps of 64x64, channels last.

    Matrix products are no yardstick on a CPU: on AMD's torch takes a slower library for them than for convolutions.
    """
    batch, size = (1, 16) if settings.quick else (16, 64)
    conv = torch.nn.Conv2d(256, 256, 3, padding=1, bias=False).to(settings.device, dtype)
    conv = conv.to(memory_format=torch.channels_last).requires_grad_(False)
    maps = torch.rand(batch, 256, size, size, device=settings.device, dtype=dtype)
    maps = maps.contiguous(memory_format=torch.channels_last)
    return Work(lambda: conv(maps), count_flops(lambda: conv(maps)))


def count_flops(run: Callable[[], object]) -> int:
    """Operations of one call by torch's counter: a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _cpu_model() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')), platform.machine())


def _commit() -> str | None:
    try:
        command = ['git', 'describe', '--always', '--dirty']
        return subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
