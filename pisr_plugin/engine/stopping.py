"""Ends a run on request: Ctrl-C and SIGTERM, agreed on by all ranks."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed as dist

# Ranks agree about once in this many seconds: soon enough for a scheduler's grace time, seldom enough to cost nothing.
_AGREE_SECONDS = 0.5
_AGREE_ITERATIONS = 200


class Stop:
    """Takes Ctrl-C and SIGTERM; a context manager.

    Outside :meth:`deferred` both end the process as Ctrl-C does in Python. Inside they are noted, so that the loop can
    finish its iteration and save; a second Ctrl-C ends the process at once all the same.

    Attributes:
        asked: Whether this process was asked to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._deferred = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
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
    def deferred(self) -> Iterator[Agreement]:
        """Inside the block requests are only noted."""
        self._deferred = True
        try:
            yield Agreement(self)
        finally:
            self._deferred = False


class Agreement:
    """Decides, together with the other ranks, whether to stop after an iteration.

    A rank that stopped alone would leave the others waiting for its gradients. They ask each other about twice a
    second, over the hosts: no device is waited for.

    Args:
        stop: What this rank was asked.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._alone = not dist.is_initialized() or dist.get_world_size() == 1
        self._last = self._next = 0
        self._last_time = time.monotonic()

    def __call__(self, iteration: int) -> bool:
        """Whether all ranks stop after ``iteration``; each of them calls this after every iteration."""
        if self._alone:
            return self._stop.asked
        if iteration < self._next:
            return False
        now = time.monotonic()
        seconds = (now - self._last_time) / max(iteration - self._last, 1)
        wait = 1 if self._next == 0 else max(1, min(_AGREE_ITERATIONS, int(_AGREE_SECONDS / max(seconds, 1e-9))))
        # the largest of negative numbers: the shortest wait that a rank proposes
        vote = torch.tensor([int(self._stop.asked), -wait])
        dist.all_reduce(vote, dist.ReduceOp.MAX)
        self._last, self._last_time, self._next = iteration, now, iteration - int(vote[1])
        return bool(vote[0])
