"""Makes the batches of a dataset ahead of training in a thread."""

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

from pisr_plugin.utils.devices import to_device

Batch = dict[str, Any]
Make = Callable[[int], Batch]

_AHEAD = 2  # batches that wait; more would only take memory, since a batch takes less time than a step


class Prefetcher:
    """Makes batches ahead of training in a thread, which also copies them to the device.

    A thread is enough, because numpy and OpenCV let other threads run meanwhile. A worker process would spend several
    times as long on sending a batch.

    Args:
        make: Makes the batch of an iteration, counted from 0; tensors are in host memory.
        first: Iteration of the first batch.
        device: Device of the batches' tensors.
    """

    def __init__(self, make: Make, first: int, device: torch.device) -> None:
        self._queue: Queue = Queue(_AHEAD)
        stop = threading.Event()
        if device.type == 'cuda' and device.index is None:  # a new thread's current device is always GPU 0
            device = torch.device('cuda', torch.cuda.current_device())
        thread = threading.Thread(
            target=_work, args=(make, first, device, self._queue, stop), name='batches', daemon=True
        )
        self._error: BaseException | None = None
        self._close = weakref.finalize(self, _stop, thread, self._queue, stop)
        atexit.register(self._close)  # a thread must not run on while the interpreter shuts down
        thread.start()

    def __next__(self) -> Batch:
        """Returns the next batch, or raises what ``make`` raised."""
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
    """Runs in the thread: puts batches into the queue, each with an event that a GPU records after the copy."""
    try:
        stream = None
        if device.type == 'cuda':
            torch.cuda.set_device(device)  # else pinning would open a context on GPU 0
            stream = torch.cuda.Stream(device)
        for number in itertools.count(first):
            batch = make(number)
            queue.put((batch, None) if stream is None else _send(batch, device, stream))
            if stop.is_set():
                return
    except BaseException as error:
        queue.put((error, None))


def _stop(thread: threading.Thread, queue: Queue, stop: threading.Event) -> None:
    stop.set()
    while thread.is_alive():  # the thread may be waiting to put a batch
        try:
            queue.get(timeout=0.01)
        except Empty:
            continue
    thread.join()


def _send(batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> tuple[Batch, torch.cuda.Event]:
    """Starts to copy a batch on a separate stream, while the training step runs."""
    with torch.cuda.stream(stream):
        sent = {key: to_device(value, device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        return sent, stream.record_event()


def _take_over(batch: Batch, done: torch.cuda.Event) -> Batch:
    """Makes the current stream wait for the copy, and keeps the memory until that stream has used it."""
    for value in batch.values():
        if isinstance(value, Tensor):
            stream = torch.cuda.current_stream(value.device)
            stream.wait_event(done)
            value.record_stream(stream)
    return batch
