"""Feeds a training loop: an endless stream of batches on the training device, from any iteration on."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from .parallel import leave_with_parent
from .sampling import Sampling
from .seeded import Failure, SeededDataset

Batch = dict[str, Any]


class Feed:
    """An endless iterator over batches; the first is that of the iteration it was made to start at.

    A batch is a dict as the dataset makes it, with tensors on the training device. Use it in a ``with`` block, or
    close it: it may own threads or processes.

    Args:
        sampling: Which samples a batch is made of.
        batches_per_iter: How many batches an iteration of the training loop takes.
    """

    def __init__(self, sampling: Sampling, batches_per_iter: int = 1) -> None:
        self._sampling = sampling
        self._batches_per_iter = batches_per_iter

    def epoch(self, iteration: int) -> int:
        """How many times training has visited every image before an iteration, counted from 0."""
        return self._sampling.epoch(iteration * self._batches_per_iter)

    def close(self) -> None:
        """Ends threads and processes; may be called twice."""

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            DataError: an image could not be used.
        """
        raise NotImplementedError

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_feed(
    dataset: Dataset,
    options: Mapping[str, Any],
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device = torch.device('cpu'),  # noqa: B008  (immutable)
    start_iter: int = 0,
    batches_per_iter: int = 1,
    start_method: str | None = None,
) -> Feed:
    """Makes a feed of a dataset.

    The samples depend on the dataset, ``seed``, the iteration and the size of the batch over all ranks and
    accumulated batches, and on nothing else: not on the number of workers, not on where training was resumed.

    Args:
        dataset: A map-style dataset.
        options: The dataset's block of the options: ``batch_size_per_gpu``, ``num_worker_per_gpu``, ``pin_memory``
            (on CUDA; true by default), ``name``. Workers and copies always work ahead, so ``prefetch_mode`` and
            ``persistent_workers`` change nothing.
        seed: The run's seed, the same on all ranks.
        rank: This process among those that train together.
        world_size: How many train together.
        device: Where tensors are put.
        start_iter: The iterations done before; 0 for a new run.
        batches_per_iter: Batches that one iteration accumulates gradients over.
        start_method: How workers are started, such as ``'spawn'``; by default as Python does on this system.

    Raises:
        DataError: the dataset is empty.
    """
    name = f'datasets.{options.get("phase", "train")}'
    if len(dataset) == 0:
        raise DataError(f'{name}: {options.get("name", "the dataset")} holds no images.')
    sampling = Sampling(len(dataset), options['batch_size_per_gpu'], seed, rank, world_size)
    return _LoaderFeed(
        SeededDataset(dataset, name),
        sampling,
        batches_per_iter,
        start_iter * batches_per_iter,
        device,
        num_workers=options.get('num_worker_per_gpu', 0),
        pin_memory=device.type == 'cuda' and options.get('pin_memory', True),
        start_method=start_method,
    )


class _Batches:
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


class _LoaderFeed(Feed):
    """Batches of a dataset that makes one sample at a time, by way of torch's DataLoader."""

    def __init__(
        self,
        dataset: SeededDataset,
        sampling: Sampling,
        batches_per_iter: int,
        first: int,
        device: torch.device,
        num_workers: int,
        pin_memory: bool,
        start_method: str | None,
    ) -> None:
        super().__init__(sampling, batches_per_iter)
        self._name = dataset.name
        self._device = device
        self._num_workers = num_workers
        loader = DataLoader(
            dataset,
            batch_sampler=_Batches(sampling, first),
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

    def __next__(self) -> Batch:
        if not self._close.alive:
            raise ValueError('Expected an open feed, but it was closed')
        try:
            batch = next(self._batches)
        except RuntimeError as error:
            if 'DataLoader worker' not in str(error):
                raise
            raise DataError(
                f'{self._name}: a worker process died, perhaps for want of memory: {error} Fewer need less: '
                f'num_worker_per_gpu is {self._num_workers}.'
            ) from None
        if isinstance(batch, Failure):
            raise DataError(batch.message)
        return {key: self._to_device(value) for key, value in batch.items()}

    def close(self) -> None:
        self._close()
        atexit.unregister(self._close)

    def _to_device(self, value: Any) -> Any:
        return value.to(self._device, non_blocking=True) if isinstance(value, Tensor) else value


def _start_worker(_: int) -> None:
    """Sets up a worker process, which only the main process may stop.

    Ctrl-C and a job scheduler's SIGTERM go to all processes of a run. The main process ends its iteration first and
    saves, for which it needs no more batches, but it would fail at once if it saw a worker die.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(0)  # its threads do not survive a fork, and workers are the parallelism
    leave_with_parent()


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
