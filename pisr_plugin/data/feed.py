"""Feeds a training loop: an endless stream of batches on the training device, from any iteration on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import Dataset

from ..errors import DataError
from .loader_batches import LoaderBatches
from .sampling import Sampling
from .seeded import SeededDataset
from .store_batches import DirectBatches, ThreadBatches


class Feed:
    """An endless iterator over batches; the first is that of the iteration it was made to start at.

    A batch is a dict as the dataset makes it, with tensors on the training device. Use it in a ``with`` block, or
    close it: it may own a thread or processes.

    Args:
        batches: What makes them.
        sampling: Which samples a batch is made of.
    """

    def __init__(self, batches: LoaderBatches | ThreadBatches | DirectBatches, sampling: Sampling) -> None:
        self._batches = batches
        self._sampling = sampling
        self._is_open = True

    def epoch(self, iteration: int) -> int:
        """How many times training has visited every image before an iteration, counted from 0."""
        return self._sampling.epoch(iteration)

    def close(self) -> None:
        """Ends threads and processes; may be called twice."""
        self._is_open = False
        self._batches.close()

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> dict[str, Any]:
        """The next batch.

        Raises:
            DataError: an image could not be used.
        """
        if not self._is_open:
            raise ValueError('Expected an open feed, but it was closed')
        return next(self._batches)

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
    start_method: str | None = None,
) -> Feed:
    """Makes a feed of a dataset.

    The samples depend on the dataset, ``seed``, the iteration and the size of the batch over all ranks, and on nothing
    else: not on the number of workers, not on where training was resumed.

    A dataset that has ``batch(draws) -> dict`` makes whole batches, in a thread, and ``num_worker_per_gpu`` plays no
    part; if its ``resident`` is true, it is first moved with ``to(device)`` and makes batches there. Of any other
    dataset single samples are taken, in ``num_worker_per_gpu`` processes.

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
        start_method: How workers are started, such as ``'spawn'``; by default as Python does on this system.

    Raises:
        DataError: the dataset is empty, or does not fit on the device.
    """
    name = f'datasets.{options.get("phase", "train")}'
    if len(dataset) == 0:
        raise DataError(f'{name}: {options.get("name", "the dataset")} holds no images.')
    sampling = Sampling(len(dataset), options['batch_size_per_gpu'], seed, rank, world_size)
    if not hasattr(dataset, 'batch'):
        batches = LoaderBatches(
            SeededDataset(dataset, name),
            sampling,
            start_iter,
            device,
            num_workers=options.get('num_worker_per_gpu', 0),
            pin_memory=device.type == 'cuda' and options.get('pin_memory', True),
            start_method=start_method,
        )
    elif getattr(dataset, 'resident', False):
        dataset.to(device)
        batches = DirectBatches(lambda number: dataset.batch(sampling(number)), start_iter)
    else:
        batches = ThreadBatches(lambda number: dataset.batch(sampling(number)), start_iter, device)
    return Feed(batches, sampling)
