"""Times variants of one task fairly: one process, shuffled turns, ratios paired round by round.

Absolute times on a shared machine drift by much more than what is to be shown; two variants that take turns within a
second drift together, so the median of their ratios, each taken within one round, repeats to a few percent.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

Action = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    """What the command line asks for.

    Attributes:
        rounds: Turns of every variant, after the warm-up.
        threads: Compute threads.
        quick: Tiny sizes, to see that everything runs; the figures mean nothing.
        device: ``cpu`` or ``cuda``.
        peer: A checkout of the PISR authors' code to time beside ours.
        photos: A folder of photographs for the data benchmark; without it they are made. For quality, a prepared one.
        test: Set5 as it was prepared, for quality.
        runs: Where quality trains, and goes on when it is called again.
        picture: Where quality draws its curves.
    """

    rounds: int = 11
    threads: int = 1
    quick: bool = False
    device: str = 'cpu'
    peer: Path | None = None
    photos: Path | None = None
    test: Path | None = None
    runs: Path | None = None
    picture: Path | None = None


@dataclass
class Timings:
    """Seconds of each variant, round by round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Median seconds of a variant."""
        return statistics.median(self.seconds[name])

    def best(self, name: str) -> float:
        """Shortest seconds of a variant."""
        return min(self.seconds[name])

    def ratio(self, name: str, base: str) -> float:
        """How many times as long as ``base`` a variant takes: the median of the ratios of each round."""
        return statistics.median(t / b for t, b in zip(self.seconds[name], self.seconds[base], strict=True))

    def speedup(self, name: str, base: str) -> float:
        """How many times as fast as ``base`` a variant is: the median of the ratios of each round."""
        return self.ratio(base, name)


def measure(
    variants: Mapping[str, Action],
    settings: Settings,
    *,
    warmup: int = 2,
    calls: int | Mapping[str, int] | None = None,
    now: Callable[[], float] | None = None,
    seed: int = 0,
) -> Timings:
    """Runs all variants in turn, in a new order every round.

    Args:
        variants: What to time, by name.
        settings: Rounds, threads and device.
        warmup: Untimed calls of each variant first: caches, compilation, autotuning.
        calls: Calls in one turn, for actions too short for one; of all or of each variant. By default 1 on a CPU, and
            on CUDA as many as take a tenth of a second.
        now: A clock in seconds; by default :func:`clock`, and on CUDA the events of the GPU.
        seed: Of the order.

    Returns:
        Seconds of one call.
    """
    on_gpu = settings.device == 'cuda' and now is None
    seconds_of = _seconds_on_gpu if on_gpu else partial(_seconds, now or clock(settings))
    for action in variants.values():
        for _ in range(warmup):
            action()
    if calls is None:
        calls = {name: _enough(action) for name, action in variants.items()} if on_gpu else 1
    timings = Timings({name: [] for name in variants})
    order, shuffle = list(variants), random.Random(seed).shuffle
    for _ in range(settings.rounds):
        shuffle(order)
        for name in order:
            action, count = variants[name], calls if isinstance(calls, int) else calls[name]
            timings.seconds[name].append(seconds_of(action, count) / count)
    return timings


def _seconds(now: Callable[[], float], action: Action, count: int) -> float:
    start = now()
    for _ in range(count):
        action()
    return now() - start


def _seconds_on_gpu(action: Action, count: int) -> float:
    """Seconds on the GPU from the first call's begin to the last one's end, idle time included."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(count):
        action()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def _enough(action: Action) -> int:
    return min(200, 1 + int(0.1 / max(_seconds_on_gpu(action, 3) / 3, 1e-5)))


def clock(settings: Settings) -> Callable[[], float]:
    """The clock that fits what is measured, in seconds.

    It is the CPU time of this process, which other processes on the machine disturb least; the wall clock where
    several threads work, and on CUDA, where the device is waited for before each reading.
    """
    if settings.device == 'cuda':
        return _synchronized
    return time.process_time if settings.threads == 1 else time.perf_counter


def _synchronized() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()
