"""Loader for a dataset that makes one sample at a time, on torch's DataLoader."""

from __future__ import annotations

import atexit
import itertools
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

from pisr_plugin.data.loading.sampler import InfiniteSampler
from pisr_plugin.data.loading.seeded_dataset import Failure, SeededDataset
from pisr_plugin.utils.errors import DataError
from pisr_plugin.utils.parallel import leave_with_parent


class WorkerLoader:
    """An endless iterator over batches, which worker processes or this process make.

    Args:
        dataset: Dataset that makes the samples.
        sampler: Sampler that chooses the samples of each batch.
        first: Iteration of the first batch.
        device: Device of the batches' tensors.
        num_workers: Number of worker processes; 0 makes the batches in this process.
        pin_memory: Whether to copy through pinned memory, so that the host does not wait for a copy to a GPU.
    """

    def __init__(
        self,
        dataset: SeededDataset,
        sampler: InfiniteSampler,
        first: int,
        device: torch.device,
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        self._name = dataset.name
        self._device = device
        self._num_workers = num_workers
        loader = DataLoader(
            dataset,
            batch_sampler=_seeded_indices(sampler, first),
            num_workers=num_workers,
            collate_fn=dataset.collate,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # without it the loader draws from torch's global generator
        )
        with _signals_blocked():
            self._batches = iter(loader)
        self._close = weakref.finalize(self, _stop_workers, self._batches)
        # The last registered function runs first: multiprocessing's would wait for workers that only this one stops.
        atexit.register(self._close)

    def __next__(self) -> dict[str, Any]:
        """Returns the next batch.

        Raises:
            DataError: an image cannot be used, or a worker died.
        """
        try:
            batch = next(self._batches)
        # The loader notices a dead worker itself, or cannot read what the worker was sending.
        except (RuntimeError, ConnectionError, EOFError) as error:
            if isinstance(error, RuntimeError) and 'DataLoader worker' not in str(error):
                raise
            raise DataError(
                f'{self._name}.num_worker_per_gpu: a worker process died, perhaps because memory ran out '
                f'(found {self._num_workers} workers): {error} Expected fewer workers.'
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


def _seeded_indices(sampler: InfiniteSampler, first: int) -> Iterator[list[tuple[int, int]]]:
    """Yields the indices and seeds of one batch after the other, without end."""
    for draws in map(sampler, itertools.count(first)):
        yield list(zip(draws.indices.tolist(), draws.seeds.tolist()))


def _start_worker(_: int) -> None:
    """Sets up a worker process, which only the main process may stop.

    Ctrl-C and a job scheduler's SIGTERM reach all processes of a run. The main process ends its iteration and saves;
    it would fail at once if a worker died meanwhile.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.excepthook = _report  # also used by the thread that sends tensors
    cv2.setNumThreads(0)  # its threads do not survive a fork, and the workers already run in parallel
    leave_with_parent()


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints an error of a worker, unless the main process has ended or wants no more batches."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _stop_workers(batches: Any) -> None:
    stop = getattr(batches, '_shutdown_workers', None)
    if stop is None:  # no workers
        return
    stop()
    for worker in batches._workers:
        if worker.is_alive():  # stuck in an image; it ignores SIGTERM
            worker.kill()
            worker.join()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Blocks Ctrl-C and SIGTERM, also in processes started meanwhile, which cannot ignore them yet."""
    if not hasattr(signal, 'pthread_sigmask'):  # Windows
        yield
        return
    if multiprocessing.get_start_method() != 'fork':
        resource_tracker.ensure_running()  # it would unblock the signals if the block started it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
