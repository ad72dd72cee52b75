"""Sampling: which samples an iteration is made of, as a function of seed and iteration alone."""

import numpy as np
import pytest

from pisr_plugin.data.datasets.patches import SampleDraws
from pisr_plugin.data.loading.sampler import InfiniteSampler


def joined(draws):
    return SampleDraws(*(np.concatenate(parts) for parts in zip(*draws)))


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other))


def test_shapes_and_ranges():
    draws = joined(InfiniteSampler(7, 5, seed=3)(iteration) for iteration in range(400))
    assert draws.indices.dtype == draws.seeds.dtype == np.int64 and draws.uniform.dtype == np.float64
    assert draws.indices.shape == draws.seeds.shape == (2000,) and draws.uniform.shape == (2000, 3)
    assert set(draws.indices) == set(range(7))
    assert draws.uniform.min() >= 0 and draws.uniform.max() < 1
    assert np.abs(draws.uniform.mean(0) - 0.5).max() < 0.03 and np.abs(np.corrcoef(draws.uniform.T)[0, 1:]).max() < 0.08
    assert draws.seeds.min() >= 0 and len(set(draws.seeds)) == 2000


@pytest.mark.parametrize('num_images, batch_size', [(10, 4), (3, 16), (1, 1), (8, 8)])
def test_each_epoch_visits_every_image_once(num_images, batch_size):
    sampling = InfiniteSampler(num_images, batch_size, seed=1)
    order = joined(sampling(iteration) for iteration in range(40)).indices
    epochs = [tuple(order[first : first + num_images]) for first in range(0, len(order) - num_images, num_images)]
    assert all(sorted(epoch) == list(range(num_images)) for epoch in epochs)
    assert num_images < 8 or len(set(epochs)) == len(epochs)
    for iteration in range(40):
        assert sampling.epoch(iteration) == iteration * batch_size // num_images


def test_any_iteration_can_be_asked_for_at_any_time():
    sampling = InfiniteSampler(11, 4, seed=5)
    forwards = [sampling(iteration) for iteration in range(30)]
    for iteration in reversed(range(30)):
        assert same(sampling(iteration), forwards[iteration])
        assert same(InfiniteSampler(11, 4, seed=5)(iteration), forwards[iteration])
    assert same(
        InfiniteSampler(11, 4, 0)(10**12), InfiniteSampler(11, 4, 0)(10**12)
    )  # far behind a real training's end


def test_ranks_share_what_one_would_see():
    whole = InfiniteSampler(11, 16, seed=5)
    for world_size in (2, 4):
        ranks = [InfiniteSampler(11, 16 // world_size, 5, rank, world_size) for rank in range(world_size)]
        for iteration in range(5):
            assert same(joined(rank(iteration) for rank in ranks), whole(iteration))
            assert all(rank.epoch(iteration) == whole.epoch(iteration) for rank in ranks)


def test_small_batches_make_up_a_large_one():
    small, large = InfiniteSampler(11, 4, 5), InfiniteSampler(11, 16, 5)
    assert same(joined(small(number) for number in range(8, 12)), large(2))


def test_seeds_differ():
    draws = [InfiniteSampler(100, 50, seed)(0) for seed in (0, 1, -1, 2**60)]
    assert len({tuple(draw.indices) for draw in draws}) == len({tuple(draw.seeds) for draw in draws}) == 4
    assert not np.array_equal(InfiniteSampler(100, 50, 0)(0).uniform, InfiniteSampler(100, 50, 0)(1).uniform)


@pytest.mark.parametrize('values', [(0, 1, 0), (1, 0, 0), (1, 1, 0, 1, 1), (1, 1, 0, -1, 1)])
def test_senseless_values(values):
    with pytest.raises(ValueError, match='Expected'):
        InfiniteSampler(*values)


def test_a_seed_is_taken_as_a_word_of_64_bits():
    draws = [InfiniteSampler(7, 5, seed=seed)(9) for seed in (3, 3 + 2**64, 3 - 2**64)]
    assert same(draws[0], draws[1]) and same(draws[0], draws[2])
