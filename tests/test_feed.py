"""Feeds: the same samples for any number of workers and after any resume, and processes that end when they should."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from pisr_plugin.data.loading.seeded_dataset import SeededDataset
from pisr_plugin.data.loading.train_loader import build_train_loader
from pisr_plugin.utils.errors import DataError
from tests.conftest import make_images
from tests.processes import start as start_process

ROOT = Path(__file__).parents[1]
OPTIONS = {'name': 'noise', 'phase': 'train', 'batch_size_per_gpu': 4, 'num_worker_per_gpu': 0}


class Noise(Dataset):
    """SampleDraws from every global generator; some images can be made to fail."""

    def __init__(self, bad=(), kill=()):
        self.bad, self.kill = bad, kill
        self.paths = [{'gt_path': f'{index}.png'} for index in range(10)]

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index in self.bad:
            raise ValueError('no good')
        if index in self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return {'x': torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()]), 'path': 'a'}


def stream(count, options=OPTIONS, dataset=None, **more):
    """The numbers of the first batches of a feed."""
    with build_train_loader(dataset or Noise(), options, **{'seed': 7, **more}) as feed:
        return [next(feed)['x'].clone() for _ in range(count)]


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other))


@pytest.fixture(scope='module')
def paired(tmp_path_factory):
    """Options of BasicSR's dataset on images of different sizes."""
    folder = tmp_path_factory.mktemp('data')
    make_images(folder, 5)
    return {
        'name': 'pairs',
        'type': 'PairedImageDataset',
        'phase': 'train',
        'scale': 2,
        'dataroot_gt': str(folder / 'HR'),
        'dataroot_lq': str(folder / 'LR_bicubic/X2'),
        'io_backend': {'type': 'disk'},
        'gt_size': 16,
        'use_hflip': True,
        'use_rot': True,
        'batch_size_per_gpu': 4,
        'num_worker_per_gpu': 0,
    }


@pytest.mark.parametrize('workers, method', [(1, 'fork'), (2, 'fork'), (2, 'spawn')])
def test_workers_make_what_the_main_process_makes(paired, workers, method):
    from basicsr.data import build_dataset

    def run(count, **more):
        with build_train_loader(build_dataset(paired), {**paired, **more}, seed=3) as feed:
            return [next(feed) for _ in range(count)]

    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        inline, worked = run(6), run(6, num_worker_per_gpu=workers)
    finally:
        multiprocessing.set_start_method(before, force=True)
    for one, other in zip(inline, worked):
        assert torch.equal(one['gt'], other['gt']) and torch.equal(one['lq'], other['lq'])
        assert one['gt_path'] == other['gt_path']


def test_patches_differ_between_epochs(paired):
    from basicsr.data import build_dataset

    with build_train_loader(build_dataset(paired), {**paired, 'batch_size_per_gpu': 5}, seed=3) as feed:
        first, second = ({path: gt for path, gt in zip(b['gt_path'], b['gt'])} for b in (next(feed), next(feed)))
    assert sum(torch.equal(first[path], second[path]) for path in first) < 5


@pytest.mark.parametrize('workers', [0, 2])
def test_resumed_feed_goes_on_as_the_unbroken_one(workers):
    options = {**OPTIONS, 'num_worker_per_gpu': workers}
    unbroken = stream(12)
    assert same(stream(7, options, start_iter=5), unbroken[5:])


def test_ranks_share_the_samples_of_one_large_batch():
    large = stream(3, {**OPTIONS, 'batch_size_per_gpu': 8})
    ranks = [stream(3, rank=rank, world_size=2) for rank in range(2)]
    assert same([torch.cat(parts) for parts in zip(*ranks)], large)


def test_seed_decides():
    assert not same(stream(2), stream(2, seed=8))


def test_epochs_are_counted_in_iterations():
    with build_train_loader(Noise(), {**OPTIONS, 'batch_size_per_gpu': 8}, seed=0) as feed:  # of 10 images
        assert [feed.epoch(iteration) for iteration in range(6)] == [0, 0, 1, 2, 3, 4]


def test_random_states_of_the_main_process_are_left_alone():
    def states():
        return random.random(), np.random.rand(), torch.rand(()).item()

    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(1)
    expected = states()
    for workers in (0, 1):
        for generator in (random.seed, np.random.seed, torch.manual_seed):
            generator(1)
        stream(3, {**OPTIONS, 'num_worker_per_gpu': workers})
        assert states() == expected


@pytest.mark.parametrize('workers', [0, 2])
def test_image_that_fails_is_named(workers):
    with pytest.raises(DataError) as raised:
        stream(5, {**OPTIONS, 'num_worker_per_gpu': workers}, Noise(bad=[3]))
    message = str(raised.value)
    assert message.startswith('datasets.train: image 3 (3.png) cannot be used: ValueError: no good (')
    assert 'test_feed.py:' in message and 'Traceback' not in message


def test_images_that_make_no_batch():
    class Sizes(Noise):
        def __getitem__(self, index):
            return {'x': torch.zeros(index)}

    with pytest.raises(DataError, match='datasets.train: its images do not make a batch'):
        stream(1, dataset=Sizes())


def test_empty_dataset_and_closed_feed():
    with pytest.raises(DataError, match='datasets.train: noise holds no images'):
        build_train_loader([], OPTIONS, seed=0)
    feed = build_train_loader(Noise(), OPTIONS, seed=0)
    feed.close()
    feed.close()
    with pytest.raises(ValueError, match='closed'):
        next(feed)


def test_dead_worker_is_told():
    with pytest.raises(DataError, match='num_worker_per_gpu: a worker process died.*found 1 workers'):
        stream(9, {**OPTIONS, 'num_worker_per_gpu': 1}, Noise(kill=[3]))


def test_dataset_without_paths_fails_as_well():
    failure = SeededDataset([], 'datasets.train')[0, 1]
    assert failure.message.startswith('datasets.train: image 0 cannot be used: IndexError')


# Processes


SCRIPT = """
import os, signal, sys, time
from tests import test_feed
from pisr_plugin.data.loading.train_loader import build_train_loader

def main():
    options = {{**test_feed.OPTIONS, 'num_worker_per_gpu': 2}}
    feed = build_train_loader(test_feed.Noise(), options, seed=0)
    next(feed)
    print('started', *[worker.pid for worker in feed._batches._batches._workers], flush=True)
    {ending}

if __name__ == '__main__':
    main()
"""


def start(ending, tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT.format(ending=ending))
    process = start_process(script, cwd=tmp_path)
    word, *workers = process.stdout.readline().split()
    assert word == 'started', process.communicate()
    return process, [int(worker) for worker in workers]


def alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def wait_for_end(pids):
    deadline = time.monotonic() + 60
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, 'workers outlived the main process'
        time.sleep(0.05)


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks at /proc')
def test_workers_end_with_a_killed_main_process(tmp_path):
    process, workers = start('time.sleep(100)', tmp_path)
    process.kill()
    process.wait()
    wait_for_end(workers)
    process.communicate()


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks at /proc')
@pytest.mark.parametrize(
    'ending, code',
    [
        ('pass  # the feed is left open', 0),
        ('test_feed.kept = feed; sys.exit(3)', 3),
    ],
)
def test_interpreter_ends_at_once_with_an_open_feed(ending, code, tmp_path):
    process, workers = start(ending, tmp_path)
    assert process.wait(timeout=60) == code
    wait_for_end(workers)
    process.communicate()


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks at /proc')
def test_signals_to_the_whole_group_are_the_main_process_s_to_handle(tmp_path):
    ending = """
    asked = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: asked.append(number))
    print('ready', flush=True)
    while len(asked) < 2:
        next(feed)
    for _ in range(20):  # a checkpoint may still need batches
        next(feed)
    feed.close()
    print('saved', flush=True)
    """
    process, workers = start(ending, tmp_path)
    assert process.stdout.readline() == 'ready\n'
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, 'saved\n')
    wait_for_end(workers)
