"""Batches of a dataset that makes one sample at a time, by way of torch's DataLoader."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import DataError
from .parallel import leave_with_parent
from .sampling import Sampling
from .seeded import Failure, SeededDataset


class LoaderBatches:
    """An endless iterator over batches, made by worker processes or here.

    Args:
        dataset: What makes the samples.
        sampling: Which samples a batch is made of.
        first: Number of the first batch.
        device: Where tensors are put.
        num_workers: Processes; 0 makes the batches here.
        pin_memory: Copy through pinned memory, so that a copy to a GPU does not hold up the host.
        start_method: How processes are started; None as Python does by default.
    """

    def __init__(
        self,
        dataset: SeededDataset,
        sampling: Sampling,
        first: int,
        device: torch.device,
        num_workers: int,
        pin_memory: bool,
        start_method: str | None,
    ) -> None:
        self._name = dataset.name
        self._device = device
        self._num_workers = num_workers
        loader = DataLoader(
            dataset,
            batch_sampler=_Numbers(sampling, first),
            num_workers=num_workers,
            collate_fn=dataset.collate,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
            multiprocessing_context=start_method if num_workers else None,
            generator=torch.Generator(),  # else it takes a number from torch's global generator
        )
        with _signals_held_back(start_method):
            self._batches = iter(loader)
        self._close = weakref.finalize(self, _stop_workers, self._batches)
        # Last registered is first called: multiprocessing's own end would wait for workers that only this stops.
        atexit.register(self._close)

    def __iter__(self) -> LoaderBatches:
        return self

    def __next__(self) -> dict[str, Any]:
        """The next batch.

        Raises:
            DataError: an image could not be used, or a worker died.
        """
        try:
            batch = next(self._batches)
        # The loader notices a dead worker itself, or breaks off reading what that was sending.
        except (RuntimeError, ConnectionError, EOFError) as error:
            if isinstance(error, RuntimeError) and 'DataLoader worker' not in str(error):
                raise
            raise DataError(
                f'{self._name}: a worker process died, perhaps for want of memory: {error} Fewer need less: '
                f'num_worker_per_gpu is {self._num_workers}.'
            ) from None
        if isinstance(batch, Failure):
            raise DataError(batch.message)
        return {key: self._to_device(value) for key, value in batch.items()}

    def close(self) -> None:
        """Ends the workers."""
        self._close()
        atexit.unregister(self._close)

    def _to_device(self, value: Any) -> Any:
        return value.to(self._device, non_blocking=True) if isinstance(value, Tensor) else value


class _Numbers:
    """Tells a DataLoader the indices and seeds of one batch after the other, without end."""

    def __init__(self, sampling: Sampling, first: int) -> None:
        self._sampling = sampling
        self._first = first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        number = self._first
        while True:
            draws = self._sampling(number)
            yield list(zip(draws.indices.tolist(), draws.seeds.tolist()))
            number += 1


def _start_worker(_: int) -> None:
    """Sets up a worker process, which only the main process may stop.

    Ctrl-C and a job scheduler's SIGTERM go to all processes of a run. The main process ends its iteration first and
    saves, for which it needs no more batches, but it would fail at once if it saw a worker die.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.excepthook = _report  # that of the thread, too, which hands out tensors
    cv2.setNumThreads(0)  # its threads do not survive a fork, and workers are the parallelism
    leave_with_parent()


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints what failed in a worker, unless it is only that the main process has gone or wants no more batches."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _stop_workers(batches: Any) -> None:
    stop = getattr(batches, '_shutdown_workers', None)
    if stop is None:  # no workers
        return
    stop()
    for worker in batches._workers:
        if worker.is_alive():  # stuck in an image; SIGTERM is ignored
            worker.kill()
            worker.join()


@contextmanager
def _signals_held_back(start_method: str | None) -> Iterator[None]:
    """Keeps Ctrl-C and SIGTERM back, also from processes started meanwhile, which cannot ignore them yet."""
    if not hasattr(signal, 'pthread_sigmask'):  # Windows
        yield
        return
    if multiprocessing.get_context(start_method).get_start_method() != 'fork':
        resource_tracker.ensure_running()  # would let the signals through if it was started within
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
