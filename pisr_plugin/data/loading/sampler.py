"""Chooses the images and random numbers of each iteration's batch from seed and iteration alone.

The sampler has no state. A run that resumes at iteration n needs no saved position, and the samples do not depend on
the number of ranks or workers.
"""

from __future__ import annotations

import numpy as np

from pisr_plugin.data.datasets.patches import SampleDraws

# Keys of the two random streams of a seed.
_OF_SAMPLES, _OF_EPOCHS = 0, 1
_WORD = 2**64


class InfiniteSampler:
    """An endless sequence of samples, divided into batches.

    Samples have numbers that run through the whole training and over all ranks: the batch of iteration i on rank r
    begins with number ``(i * world_size + r) * batch_size``. Each epoch visits every image once, in its own order. A
    batch may begin in one epoch and end in another, so no image is left out.

    Args:
        num_images: Number of images, at least 1.
        batch_size: Number of samples in a batch of one rank, at least 1.
        seed: Seed of the sequence, any whole number.
        rank: Index of this process among those that train together.
        world_size: Number of processes that train together. Two ranks with 8 samples each see what one with 16 sees.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if num_images < 1 or batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f'Expected images, a batch and 0 <= rank < world_size, but got {num_images} images, batch size '
                f'{batch_size}, rank {rank} of {world_size}'
            )
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed % _WORD
        self.rank = rank
        self.world_size = world_size
        self._cached: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __call__(self, iteration: int) -> SampleDraws:
        """Draws the batch of an iteration, counted from 0, on this rank."""
        first = (iteration * self.world_size + self.rank) * self.batch_size
        # Philox makes four words from each value of its counter. A sample uses one value, its number, so any range of
        # samples can be drawn without those before it.
        words = self._random(_OF_SAMPLES, first).random_raw(4 * self.batch_size).reshape(-1, 4)
        uniform = (words[:, :3] >> np.uint64(11)) * 2.0**-53
        return SampleDraws(self._indices(first), uniform, (words[:, 3] >> np.uint64(1)).astype(np.int64))

    def epoch(self, iteration: int) -> int:
        """Returns how many times every image was visited before the first sample of an iteration."""
        return iteration * self.world_size * self.batch_size // self.num_images

    def _indices(self, first: int) -> np.ndarray:
        parts, left = [], self.batch_size
        while left:
            epoch, start = divmod(first, self.num_images)
            parts.append(self._order(epoch)[start : start + left])
            first += len(parts[-1])
            left -= len(parts[-1])
        return np.concatenate(parts)

    def _order(self, epoch: int) -> np.ndarray:
        """Returns the order in which an epoch visits the images."""
        if self._cached[0] != epoch:
            # the epoch as second word of the counter: no epoch uses up 2**64 values of the first
            random = np.random.Generator(self._random(_OF_EPOCHS, epoch * _WORD))
            self._cached = epoch, random.permutation(self.num_images)
        return self._cached[1]

    def _random(self, family: int, counter: int) -> np.random.Philox:
        return np.random.Philox(key=self.seed + family * _WORD, counter=counter)
