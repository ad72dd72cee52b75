"""Patches of 192 (HR) and 96 (LR) on Y: our store against BasicSR's PairedImageDataset and a decoded-in-memory loop."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from basicsr.data import build_dataset
from skimage.color import rgb2ycbcr
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from benchmarks.harness import Action, Settings, clock, measure
from benchmarks.photos import SCALE, Pair, PhotoSets, make_photo_sets
from benchmarks.report import Table
from benchmarks.workload import build, iterate, stage_options
from pisr_plugin.data.loading.sampler import InfiniteSampler
from pisr_plugin.data.loading.train_loader import TrainLoader, build_train_loader
from pisr_plugin.data.storage.image_files import list_images, read_rgb

_BATCH, _PATCH = 16, 192
_WANTED = 4800  # samples per second: 300 iterations
_BASICSR_LMDB, _IN_MEMORY, _STORE = 'BasicSR, LMDB of PNG pieces', 'decoded in memory, patch by patch', 'store'
_WORKER, _THREAD = 'store, one worker process', 'store, prefetch thread'


def run(settings: Settings) -> list[Table]:
    """Three tables: what a core reads, what reaches a training loop, what a training loop notices of it."""
    with tempfile.TemporaryDirectory() as folder:
        sets = make_photo_sets(Path(folder), settings)
        return [_reading(sets, settings), _delivery(sets, settings), _training(sets, settings)]


# ---------------------------------------------------------------------------------------------------- in one process


def _reading(sets: PhotoSets, settings: Settings) -> Table:
    datasets = {
        _BASICSR_LMDB: _paired(sets.lmdb, 'lmdb'),
        'BasicSR, folder of PNG pieces': _paired(sets.folder, 'disk'),
        _IN_MEMORY: DecodedInMemory(sets.photos),
    }
    stores = {
        _STORE: _store(sets.store),
        'store, in memory': _store(sets.store, store='memory'),
        'store, RGB': _store(sets.store, color='rgb'),
        'store, LR made of each patch': _store(Pair(sets.store.gt, None)),
    }
    actions = {name: _sample_by_sample(dataset) for name, dataset in datasets.items()}
    actions |= {name: iter(_Batches(store)).__next__ for name, store in stores.items()}
    many = 2 if settings.quick else 100
    calls = {name: 1 if name in datasets else many for name in actions} | {_IN_MEMORY: max(many // 10, 1)}
    timings = measure(actions, settings, calls=calls, now=clock(replace(settings, device='cpu')))
    rows = [
        {
            'reader': name,
            'samples_per_s': _BATCH / timings.median(name),
            'times_BasicSR_LMDB': timings.speedup(name, _BASICSR_LMDB),
            'times_decoded_in_memory': timings.speedup(name, _IN_MEMORY),
        }
        for name in actions
    ]
    return Table('Patches made by one core (CPU time), batches of 16, x2, Y', rows)


class DecodedInMemory(Dataset):
    """What the PISR authors' code does, written anew: uint8 images in memory, a crop, then Y by scikit-image."""

    def __init__(self, photos: Pair) -> None:
        self.gt, self.lq = ([read_rgb(path) for path in list_images(folder)] for folder in (photos.gt, photos.lq))

    def __len__(self) -> int:
        return len(self.gt)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        side = _PATCH // SCALE
        height, width = self.lq[index].shape[:2]
        top, left = random.randint(0, height - side), random.randint(0, width - side)
        turn = [random.random() < 0.5 for _ in range(3)]
        return {
            'lq': _luma_patch(self.lq[index], top, left, side, turn),
            'gt': _luma_patch(self.gt[index], SCALE * top, SCALE * left, _PATCH, turn),
        }


def _luma_patch(image: np.ndarray, top: int, left: int, side: int, turn: list[bool]) -> Tensor:
    patch = image[top : top + side, left : left + side]
    for wanted, turned in zip(turn, (patch[::-1], patch[:, ::-1], patch.transpose(1, 0, 2))):
        if wanted:
            patch = turned
    y = rgb2ycbcr(patch)[None, ..., 0] / 255
    return torch.from_numpy(np.ascontiguousarray(y, dtype=np.float32))


def _sample_by_sample(dataset: Dataset) -> Action:
    """Makes a batch as a data loader does."""
    choose = np.random.default_rng(0).integers
    return lambda: default_collate([dataset[index] for index in choose(len(dataset), size=_BATCH)])


# ---------------------------------------------------------------------------------------------------- into a loop


def _delivery(sets: PhotoSets, settings: Settings) -> Table:
    store = _store(sets.store)
    # processes are started before the thread, which they would inherit half alive
    workers = {
        'BasicSR, one worker process': DataLoader(
            _paired(sets.lmdb, 'lmdb'), _BATCH, shuffle=True, drop_last=True, num_workers=1, persistent_workers=True
        ),
        _WORKER: DataLoader(_Batches(store), batch_size=None, num_workers=1),
    }
    sources: dict[str, Iterator] = {name: _endless(loader) for name, loader in workers.items()}
    for source in sources.values():
        next(source)
    with closing(_feed(store, settings)) as feed:
        sources[_THREAD] = feed
        many = 4 if settings.quick else 200
        calls = {name: many for name in sources} | {'BasicSR, one worker process': max(many // 40, 1)}
        actions = {name: source.__next__ for name, source in sources.items()}
        timings = measure(actions, settings, calls=calls, now=time.perf_counter)
        cores, rate = _paced(feed, 0.2 if settings.quick else 5)
    rows = [
        {
            'source': name,
            'samples_per_s': _BATCH / timings.median(name),
            'times_worker_process': timings.speedup(name, _WORKER),
        }
        for name in sources
    ]
    rows[-1] |= {'samples_per_s_when_paced': rate, f'cores_for_{_WANTED}_per_s': cores}
    note = f'Paced: one batch is taken every {1000 * _BATCH / _WANTED:.2f} ms, which makes {_WANTED} samples/s.'
    return Table('Patches delivered to a training loop (wall time), batches of 16, x2, Y', rows, [note])


def _paced(source: Iterator, seconds: float) -> tuple[float, float]:
    """Takes batches at the wanted rate; returns how many cores that rate costs, and the rate that was held."""
    interval, count = _BATCH / _WANTED, int(seconds * _WANTED / _BATCH)
    start, cpu = time.perf_counter(), time.process_time()
    for number in range(count):
        time.sleep(max(0.0, start + number * interval - time.perf_counter()))
        next(source)
    wall = time.perf_counter() - start
    samples = count * _BATCH
    return (time.process_time() - cpu) / samples * _WANTED, samples / wall


# ---------------------------------------------------------------------------------------------------- while training


def _training(sets: PhotoSets, settings: Settings) -> Table:
    model = build(stage_options('pisr_fsrcnn_x2', 'student', settings))
    store = _store(sets.store)
    waited, worked = [], []
    with closing(_feed(store, settings)) as feed:
        next(feed)  # reading ahead begins
        for current_iter in range(1, 4 if settings.quick else 21):
            start = time.perf_counter()
            batch = next(feed)
            got = time.perf_counter()
            iterate(model, batch, current_iter)
            if settings.device == 'cuda':
                torch.cuda.synchronize()
            waited.append(got - start)
            worked.append(time.perf_counter() - got)
    total = sum(waited) + sum(worked)
    row = {
        'ms_per_iteration': 1000 * total / len(waited),
        'ms_waiting_for_data': 1000 * sum(waited) / len(waited),
        'percent_waiting': 100 * sum(waited) / total,
    }
    return Table('Student stage, FSRCNN x2, fed by the prefetch thread (wall time)', [row])


# ---------------------------------------------------------------------------------------------------- data sets


class _Batches(IterableDataset):
    """A store's batches, without end."""

    def __init__(self, store: Dataset) -> None:
        self.store = store

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        sampling, iteration = InfiniteSampler(len(self.store), _BATCH, seed=0), 0
        while True:
            yield self.store.batch(sampling(iteration))
            iteration += 1


def _endless(loader: DataLoader) -> Iterator:
    while True:
        yield from loader


def _paired(pair: Pair, backend: str) -> Dataset:
    return build_dataset({**_common(pair), 'type': 'PairedImageDataset', 'io_backend': {'type': backend}})


def _store(pair: Pair, **changes) -> Dataset:
    return build_dataset({**_common(pair), 'type': 'PatchStoreDataset', **changes})


def _common(pair: Pair) -> dict:
    return {
        'name': 'benchmark',
        'phase': 'train',
        'scale': SCALE,
        'dataroot_gt': str(pair.gt),
        **({'dataroot_lq': str(pair.lq)} if pair.lq else {}),
        'color': 'y',
        'gt_size': _PATCH,
        'use_hflip': True,
        'use_rot': True,
    }


def _feed(store: Dataset, settings: Settings) -> TrainLoader:
    """The loader of a training run, which copies batches to the device."""
    options = {**store.opt, 'batch_size_per_gpu': _BATCH, 'num_worker_per_gpu': 1}
    return build_train_loader(store, options, seed=0, device=torch.device(settings.device))
