"""Makes any map-style dataset a function of index and seed, whatever random numbers it draws."""

from __future__ import annotations

import traceback
from typing import Any, NamedTuple, Protocol

from torch.utils.data import Dataset, default_collate

from pisr_plugin.utils.random_state import seeded


class Failure(NamedTuple):
    """Takes the place of a sample or batch that could not be made, because an exception would lose its message.

    Attributes:
        message: Place and reason, written for the user.
    """

    message: str


class MapDataset(Protocol):
    """A map-style dataset: it has a length and is indexed by whole numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class SeededDataset(Dataset):
    """Returns the samples of another dataset, whose random numbers follow from a seed that comes with the index.

    BasicSR's datasets draw from global generators, whose states depend on the number of workers and on resuming. Its
    workers also start every epoch with the same seeds, and so repeat their patches.

    Args:
        dataset: A dataset that draws from ``random``, ``numpy.random`` or torch's CPU generator.
        name: Name of the dataset in messages.
    """

    def __init__(self, dataset: MapDataset, name: str) -> None:
        self.dataset = dataset
        self.name = name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index_and_seed: tuple[int, int]) -> Any:
        """Returns the sample, or a :class:`Failure`."""
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
        """Makes a batch of samples, or returns the first :class:`Failure` among them."""
        for sample in samples:
            if isinstance(sample, Failure):
                return sample
        try:
            return default_collate(samples)
        except (RuntimeError, TypeError, KeyError) as error:
            return Failure(f'{self.name}: its images do not make a batch: {error}')


def _path(dataset: MapDataset, index: int) -> str:
    """Returns the path of an image if the dataset lists paths as BasicSR's datasets do."""
    try:
        entry = getattr(dataset, 'paths', ())[index]
    except Exception:
        return ''
    path = entry.get('gt_path', entry.get('lq_path')) if isinstance(entry, dict) else entry
    return f' ({path})' if isinstance(path, str) else ''
