"""Runs that are processes of their own, to be killed."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from tests.conftest import ROOT

TRAIN = ROOT / 'tools/train.py'
ENVIRONMENT = {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}


def start(*arguments: object, cwd: Path, **variables: object) -> subprocess.Popen:
    """Starts a Python process whose messages can be read from ``communicate()``."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **ENVIRONMENT, **{key: str(value) for key, value in variables.items()}},
        preexec_fn=_take_ctrl_c,
    )


def _take_ctrl_c() -> None:
    """What a shell starts in the background, the tests perhaps, ignores Ctrl-C and hands that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def start_ranks(count: int, *arguments: object, cwd: Path) -> list[subprocess.Popen]:
    """Starts training processes as torchrun would, without one that looks after them."""
    meeting = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': free_port(), 'WORLD_SIZE': count}
    return [
        start(TRAIN, *arguments, '--launcher', 'pytorch', cwd=cwd, RANK=rank, LOCAL_RANK=rank, **meeting)
        for rank in range(count)
    ]


def outputs(processes: Iterable[subprocess.Popen], timeout: float = 120) -> list[str]:
    """What each process wrote, once all have ended; kills them if they have not after ``timeout`` seconds."""
    processes = list(processes)
    try:
        return [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


def written(folder: Path) -> int:
    """How much the runs in a folder have reported so far."""
    return sum(file.stat().st_size for file in folder.rglob('metrics.jsonl'))


def wait_for_progress(processes: Iterable[subprocess.Popen], folder: Path, more: float = 0.0) -> None:
    """Waits until a run in ``folder`` reports something or has ended, and ``more`` seconds."""
    before, deadline = written(folder), time.monotonic() + 60
    # a resumed run may first cut its report back
    while written(folder) <= before and time.monotonic() < deadline:
        if all(process.poll() is not None for process in processes):
            return
        before = min(before, written(folder))
        time.sleep(0.002)
    time.sleep(more)


def random_seconds(seed: int, longest: float) -> Iterable[float]:
    """Endless waiting times that are the same in every run of a test."""
    generator = random.Random(seed)
    while True:
        yield generator.uniform(0, longest)
