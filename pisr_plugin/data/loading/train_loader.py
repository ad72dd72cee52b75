"""Loads training batches: an endless stream on the training device that can begin at any iteration."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Mapping
from typing import Any

import torch

from pisr_plugin.data.loading.prefetcher import Prefetcher
from pisr_plugin.data.loading.sampler import InfiniteSampler
from pisr_plugin.data.loading.seeded_dataset import SeededDataset
from pisr_plugin.data.loading.worker_loader import WorkerLoader
from pisr_plugin.utils.errors import DataError


class TrainLoader:
    """An endless iterator over training batches.

    A batch is a dict as the dataset makes it, with tensors on the training device. Use the loader in a ``with`` block,
    or close it: it may own a thread or processes.

    Args:
        batches: Loader that makes the batches.
        sampler: Sampler that chooses the samples of each batch.
    """

    def __init__(self, batches: WorkerLoader | Prefetcher | Generator, sampler: InfiniteSampler) -> None:
        self._batches = batches
        self._sampler = sampler
        self._is_open = True

    def epoch(self, iteration: int) -> int:
        """Returns how many times training has visited every image before an iteration, counted from 0."""
        return self._sampler.epoch(iteration)

    def close(self) -> None:
        """Ends threads and processes; a second call does nothing."""
        self._is_open = False
        self._batches.close()

    def __iter__(self) -> TrainLoader:
        return self

    def __next__(self) -> dict[str, Any]:
        """Returns the next batch.

        Raises:
            DataError: an image cannot be used.
        """
        if not self._is_open:
            raise ValueError('Expected an open train loader, but it is closed')
        return next(self._batches)

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def build_train_loader(
    dataset: Any,
    options: Mapping[str, Any],
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device = torch.device('cpu'),  # noqa: B008  (immutable)
    start_iter: int = 0,
    indices_only: bool = False,
) -> TrainLoader:
    """Builds the train loader of a dataset.

    The samples depend only on the dataset, ``seed``, the iteration and the batch size over all ranks. They do not
    depend on the number of workers, nor on where training was resumed.

    A dataset with a method ``batch(draws) -> dict`` makes whole batches in a thread, and ``num_worker_per_gpu`` has no
    effect. If its attribute ``on_device`` is true, it is first moved with ``to(device)`` and makes batches there. Any
    other dataset makes single samples in ``num_worker_per_gpu`` processes.

    Args:
        dataset: A map-style dataset.
        options: The dataset's block of the options: ``batch_size_per_gpu``, ``num_worker_per_gpu``, ``pin_memory``
            (on CUDA; true by default), ``name``. Workers and copies always work ahead, so ``prefetch_mode`` and
            ``persistent_workers`` have no effect.
        seed: Seed of the run, the same on all ranks.
        rank: Index of this process among those that train together.
        world_size: Number of processes that train together.
        device: Device of the batches' tensors.
        start_iter: Number of iterations done before; 0 for a new run.
        indices_only: Whether batches of a dataset on the device hold only ``indices``, for the dataset's ``gather``.

    Raises:
        DataError: the dataset is empty, or does not fit into the device's memory.
    """
    name = f'datasets.{options.get("phase", "train")}'
    if len(dataset) == 0:
        raise DataError(f'{name}: {options.get("name", "the dataset")} holds no images.')
    sampler = InfiniteSampler(len(dataset), options['batch_size_per_gpu'], seed, rank, world_size)
    if not hasattr(dataset, 'batch'):
        batches: WorkerLoader | Prefetcher | Generator = WorkerLoader(
            SeededDataset(dataset, name),
            sampler,
            start_iter,
            device,
            num_workers=options.get('num_worker_per_gpu', 0),
            pin_memory=device.type == 'cuda' and options.get('pin_memory', True),
        )
    elif getattr(dataset, 'on_device', False):
        dataset.to(device)
        every_draw = (sampler(number) for number in itertools.count(start_iter))
        if indices_only:
            batches = ({'indices': dataset.gather_indices(draws)} for draws in every_draw)
        else:
            batches = (dataset.batch(draws) for draws in every_draw)
    else:
        batches = Prefetcher(lambda number: dataset.batch(sampler(number)), start_iter, device)
    return TrainLoader(batches, sampler)
