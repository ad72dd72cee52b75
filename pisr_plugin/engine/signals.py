"""Ends a run on request: Ctrl-C, SIGTERM and the warnings of batch systems, agreed on by all ranks."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import distributed as dist

# Ranks agree about once in this many seconds: soon enough for a scheduler's grace time, seldom enough to cost nothing.
_AGREE_SECONDS = 0.5
_AGREE_ITERATIONS = 200
# Batch systems warn by SIGTERM, SIGUSR1 or SIGUSR2; a closed terminal sends SIGHUP. Windows lacks some of them.
_SIGNALS = [
    getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2') if hasattr(signal, name)
]


class GracefulStop:
    """Takes Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2; a context manager.

    Outside :meth:`deferred` each of them raises KeyboardInterrupt. Inside they are noted, so that the loop can finish
    its iteration and save; a second Ctrl-C raises KeyboardInterrupt even there.

    Attributes:
        asked: Whether this process was asked to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._deferred = False
        self._before: dict[int, Callable | int | None] = {}

    def __enter__(self) -> GracefulStop:
        for number in _SIGNALS:
            if number != getattr(signal, 'SIGHUP', None) or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, _: object) -> None:
        at_once = not self._deferred or (self.asked and number == signal.SIGINT)
        self.asked = True
        if at_once:
            raise KeyboardInterrupt

    @contextmanager
    def deferred(self) -> Iterator[StopConsensus]:
        """Notes requests inside the block and yields what decides on them."""
        self._deferred = True
        try:
            yield StopConsensus(self)
        finally:
            self._deferred = False


class StopConsensus:
    """Decides, together with the other ranks, whether to stop after an iteration.

    A rank that stops alone leaves the others waiting for its gradients. The ranks ask each other about twice a second
    through gloo, so that no rank waits for its device.

    Args:
        stop: The requests that this rank got.
    """

    def __init__(self, stop: GracefulStop) -> None:
        self._stop = stop
        self._alone = not dist.is_initialized() or dist.get_world_size() == 1
        self._last = self._next = 0
        self._last_time = time.monotonic()

    def __call__(self, iteration: int) -> bool:
        """Returns whether all ranks stop after ``iteration``. Each rank calls it after every iteration."""
        if self._alone:
            return self._stop.asked
        if iteration < self._next:
            return False
        now = time.monotonic()
        seconds = (now - self._last_time) / max(iteration - self._last, 1)
        wait = 1 if self._next == 0 else max(1, min(_AGREE_ITERATIONS, int(_AGREE_SECONDS / max(seconds, 1e-9))))
        # MAX of negative waits: the shortest wait that a rank proposes
        vote = torch.tensor([int(self._stop.asked), -wait])
        dist.all_reduce(vote, dist.ReduceOp.MAX)
        self._last, self._last_time, self._next = iteration, now, iteration - int(vote[1])
        return bool(vote[0])
