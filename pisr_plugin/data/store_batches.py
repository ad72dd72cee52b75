"""Batches of a dataset that makes a whole batch at once, in a thread that works ahead or just when asked."""

from __future__ import annotations

import atexit
import itertools
import threading
import weakref
from collections.abc import Callable
from queue import Empty, Queue
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Any]
Make = Callable[[int], Batch]

_AHEAD = 2  # batches that wait; more only take memory, as a batch takes less time than a step


class DirectBatches:
    """Makes each batch when it is asked for, on whatever device ``make`` works on.

    Args:
        make: Makes the batch of a number.
        first: Number of the first batch.
    """

    def __init__(self, make: Make, first: int) -> None:
        self._make = make
        self._numbers = itertools.count(first)

    def __iter__(self) -> DirectBatches:
        return self

    def __next__(self) -> Batch:
        return self._make(next(self._numbers))

    def close(self) -> None:
        """Has nothing to end."""


class ThreadBatches:
    """Makes batches ahead in a thread, and copies them to the device there.

    A thread is enough where the work is in numpy and OpenCV, which let others run meanwhile; a worker process would
    spend several times as long on handing a batch over.

    Args:
        make: Makes the batch of a number, tensors in host memory.
        first: Number of the first batch.
        device: Where tensors are put.
    """

    def __init__(self, make: Make, first: int, device: torch.device) -> None:
        self._queue: Queue = Queue(_AHEAD)
        stop = threading.Event()
        thread = threading.Thread(
            target=_work, args=(make, first, device, self._queue, stop), name='batches', daemon=True
        )
        self._error: BaseException | None = None
        self._close = weakref.finalize(self, _stop, thread, self._queue, stop)
        atexit.register(self._close)  # a thread must not run on while the interpreter goes
        thread.start()

    def __iter__(self) -> ThreadBatches:
        return self

    def __next__(self) -> Batch:
        """The next batch; what ``make`` raised is raised here."""
        if self._error is None:
            batch, done = self._queue.get()
            if not isinstance(batch, BaseException):
                return batch if done is None else _take_over(batch, done)
            self._error = batch
        raise self._error

    def close(self) -> None:
        """Ends the thread."""
        self._close()
        atexit.unregister(self._close)


def _work(make: Make, first: int, device: torch.device, queue: Queue, stop: threading.Event) -> None:
    """What the thread does: puts batches, each with an event that tells when it has arrived on a GPU."""
    try:
        stream = torch.cuda.Stream(device) if device.type == 'cuda' else None
        for number in itertools.count(first):
            batch = make(number)
            queue.put((batch, None) if stream is None else _send(batch, device, stream))
            if stop.is_set():
                return
    except BaseException as error:
        queue.put((error, None))


def _stop(thread: threading.Thread, queue: Queue, stop: threading.Event) -> None:
    stop.set()
    while thread.is_alive():  # it may be waiting to put a batch
        try:
            queue.get(timeout=0.01)
        except Empty:
            continue
    thread.join()


def _send(batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> tuple[Batch, torch.cuda.Event]:
    """Starts to copy a batch on a stream of its own, beside the training step."""
    with torch.cuda.stream(stream):
        sent = {
            key: value.pin_memory().to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        return sent, stream.record_event()


def _take_over(batch: Batch, done: torch.cuda.Event) -> Batch:
    """Makes the current stream wait for the copy, and its memory wait for that stream."""
    for value in batch.values():
        if isinstance(value, Tensor):
            stream = torch.cuda.current_stream(value.device)
            stream.wait_event(done)
            value.record_stream(stream)
    return batch
