"""Any map-style dataset as a function of index and seed, whatever random numbers it draws."""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate, get_worker_info


class Failure(NamedTuple):
    """What went wrong in making a sample or a batch; it travels in its place, as exceptions lose their form on the way.

    Attributes:
        message: Place and reason, for the user.
    """

    message: str


class SeededDataset(Dataset):
    """Gives the samples of another dataset, with their randomness decided by a seed that comes with the index.

    BasicSR's datasets draw from global generators, whose states depend on what ran before in the same process: on the
    number of workers, and on resuming. Its workers are also seeded alike in every epoch and so repeat their patches.

    Args:
        dataset: A dataset that draws from ``random``, ``numpy.random`` or torch's CPU generator.
        name: What messages call it.
    """

    def __init__(self, dataset: Dataset, name: str) -> None:
        self.dataset = dataset
        self.name = name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index_and_seed: tuple[int, int]) -> Any:
        """The sample, or a :class:`Failure`."""
        index, seed = index_and_seed
        try:
            with seeded(seed):
                return self.dataset[index]
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            return Failure(
                f'{self.name}: image {index}{_path(self.dataset, index)} cannot be used: {type(error).__name__}: '
                f'{error} ({frame.filename}:{frame.lineno})'
            )

    def collate(self, samples: list) -> Any:
        """Makes a batch of samples, or hands on what was wrong with one of them."""
        for sample in samples:
            if isinstance(sample, Failure):
                return sample
        try:
            return default_collate(samples)
        except (RuntimeError, TypeError, KeyError) as error:
            return Failure(f'{self.name}: its images do not make a batch: {error}')


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seeds the global generators; the main process gets their states back, a worker has no other use for them.

    Args:
        seed: Of ``random``, ``numpy.random`` and torch's CPU generator, 0 to 2^64 - 1.
        device: A CUDA device whose generator is seeded, and given its state back, too.
    """
    on_cuda = device is not None and device.type == 'cuda'
    if get_worker_info() is None:
        states = random.getstate(), np.random.get_state()
        forked = torch.random.fork_rng([device] if on_cuda else [])
    else:
        states, forked = None, nullcontext()
    with forked:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reach for all GPUs
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            if states is not None:
                random.setstate(states[0])
                np.random.set_state(states[1])


def _path(dataset: Dataset, index: int) -> str:
    """The path of an image where the dataset tells it as BasicSR's do."""
    try:
        entry = dataset.paths[index]
    except Exception:
        return ''
    path = entry.get('gt_path', entry.get('lq_path')) if isinstance(entry, dict) else entry
    return f' ({path})' if isinstance(path, str) else ''
