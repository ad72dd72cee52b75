"""Patches from decoded images: those of BasicSR's dataset, and the same from every kind of store."""

import multiprocessing
import pickle
import random
import threading
import zlib
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from pisr_plugin.cli.train import main as train
from pisr_plugin.data.datasets.patch_dataset import PatchStoreDataset
from pisr_plugin.data.datasets.patches import SampleDraws, lr_patch
from pisr_plugin.data.loading.sampler import InfiniteSampler
from pisr_plugin.data.loading.train_loader import build_train_loader
from pisr_plugin.data.storage.png_lmdb import write_lmdb
from pisr_plugin.data.storage.raw_lmdb import RawLmdb, write_raw_lmdb
from pisr_plugin.inference.checkpoint import load_weights
from pisr_plugin.models.pisr_model import PISRModel
from pisr_plugin.utils.errors import DataError, OptionsError
from pisr_plugin.utils.resize import imresize_uint8

SIZES = [(48, 60), (60, 48), (36, 84), (24, 24), (72, 36)]
STORES = ['lmdb', 'memory', 'device']


def noise(height, width, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_images(folder, images):
    folder.mkdir(parents=True)
    for number, img in enumerate(images):
        Image.fromarray(img).save(folder / f'{number}.png')
    return sorted(folder.iterdir())


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Noise, whose every pixel differs, as image files, LMDBs of them and raw LMDBs, LR by 2, 3 and 4."""
    folder = tmp_path_factory.mktemp('stores')
    hrs = [noise(*size, seed) for seed, size in enumerate(SIZES)]
    for name, images in {'HR': hrs, **{f'X{s}': [imresize_uint8(hr, 1 / s) for hr in hrs] for s in (2, 3, 4)}}.items():
        paths = write_images(folder / name, images)
        write_lmdb(paths, folder / f'{name}.lmdb')
        write_raw_lmdb(paths, folder / f'{name}_raw.lmdb')
    return folder


def options(root, scale=2, **changes):
    return {
        'name': 'noise',
        'type': 'PatchStoreDataset',
        'phase': 'train',
        'scale': scale,
        'dataroot_gt': str(root / 'HR_raw.lmdb'),
        'dataroot_lq': str(root / f'X{scale}_raw.lmdb'),
        'gt_size': 24,
        'use_hflip': True,
        'use_rot': True,
        'batch_size_per_gpu': 8,
        'num_worker_per_gpu': 0,
        **changes,
    }


def paired(root, **changes):
    """BasicSR's dataset of the same images."""
    from basicsr.data.paired_image_dataset import PairedImageDataset

    opt = options(root, **changes)
    opt['dataroot_gt'], opt['dataroot_lq'] = str(root / 'HR.lmdb'), str(root / f'X{opt["scale"]}.lmdb')
    return PairedImageDataset({**opt, 'io_backend': {'type': 'lmdb'}})


def assert_close(one, other, color):
    for key in ('lq', 'gt'):
        assert one[key].dtype == other[key].dtype == torch.float32
        assert one[key].is_contiguous()
        assert other[key].shape == one[key].shape
        if color == 'rgb':
            assert torch.equal(one[key], other[key])
        else:
            assert (one[key].double() - other[key].double()).abs().max() <= 1e-7


# Parity with BasicSR


@pytest.mark.parametrize('color', ['y', 'rgb'])
@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('hflip, rot', [(True, True), (False, True), (True, False)])
def test_item_is_that_of_basicsr(root, color, scale, hflip, rot):
    changes = {'scale': scale, 'color': color, 'use_hflip': hflip, 'use_rot': rot}
    stock, ours = paired(root, **changes), PatchStoreDataset(options(root, **changes))
    assert len(ours) == len(stock) == len(SIZES)
    for seed in range(40):
        random.seed(seed)
        expected = stock[seed % len(SIZES)]
        state = random.getstate()
        random.seed(seed)
        assert_close(ours[seed % len(SIZES)], expected, color)
        assert random.getstate() == state


@pytest.mark.parametrize('color', ['y', 'rgb'])
@pytest.mark.parametrize('lr', ['stored', 'made'])
def test_whole_images_for_validation(root, color, lr):
    changes = {'phase': 'val', 'color': color}
    stock = paired(root, **changes)
    ours = PatchStoreDataset(options(root, **changes, **({'dataroot_lq': None} if lr == 'made' else {})))
    for index in range(len(SIZES)):
        assert_close(ours[index], stock[index], color)
        assert ours[index]['lq_path'] == ours[index]['gt_path'] == str(index)


def test_hr_with_a_rest_is_cut_for_validation(tmp_path):
    (path,) = write_images(tmp_path / 'HR', [noise(25, 31, 0)])
    write_raw_lmdb([path], tmp_path / 'HR_raw.lmdb')
    item = PatchStoreDataset(options(tmp_path, phase='val', dataroot_lq=None))[0]
    assert item['gt'].shape == (3, 24, 30) and item['lq'].shape == (3, 12, 15)


# Batches


@pytest.mark.parametrize('color', ['y', 'rgb'])
@pytest.mark.parametrize('scale', [2, 3, 4])
def test_same_draws_give_the_same_patches_from_every_store(root, color, scale):
    sampling = InfiniteSampler(len(SIZES), 16, seed=1)
    reference = PatchStoreDataset(options(root, scale, color=color))
    others = [PatchStoreDataset(options(root, scale, color=color, store=store)) for store in STORES[1:]]
    others += [PatchStoreDataset(options(root, scale, color=color, store=store, dataroot_lq=None)) for store in STORES]
    for iteration in range(4):
        expected = reference.batch(sampling(iteration))
        channels = 1 if color == 'y' else 3
        assert expected['gt'].shape == (16, channels, 24, 24)
        assert expected['lq'].shape == (16, channels, 24 // scale, 24 // scale)
        for other in others:
            batch = other.batch(sampling(iteration))
            assert list(batch) == ['lq', 'gt']
            assert_close(batch, expected, 'rgb')  # bit for bit, luminance too


@pytest.mark.parametrize('store', STORES)
@pytest.mark.parametrize('stored', [True, False])
def test_images_that_are_smaller_than_a_patch_are_left_out_where_asked(root, store, stored):
    side = 2 * (min(min(size) for size in SIZES) // 2) + 2  # one pixel too many for the smallest image
    large = [index for index, size in enumerate(SIZES) if min(size) >= side]
    assert 0 < len(large) < len(SIZES)
    more = {} if stored else {'dataroot_lq': None}
    whole = PatchStoreDataset(options(root, store=store, gt_size=24, phase='val', **more))
    dataset = PatchStoreDataset(options(root, store=store, gt_size=side, skip_small=True, **more))
    assert [dataset[index]['gt_path'] for index in range(len(dataset))] == [whole[index]['gt_path'] for index in large]
    batch = dataset.batch(InfiniteSampler(len(dataset), 16, seed=0)(0))
    assert batch['gt'].shape == (16, 3, side, side)
    for gt in batch['gt']:  # noise: its first pixel tells the image that it is of
        assert any(bool((whole[index]['gt'] == gt[:, :1, :1]).all(0).any()) for index in large)


@pytest.mark.parametrize('store', STORES)
def test_eight_symmetries_each_of_hr_and_lr_alike(root, store):
    dataset = PatchStoreDataset(options(root, store=store))
    hr = torch.from_numpy(noise(24, 24, 3)).permute(2, 0, 1) / 255  # as large as a patch
    lr = torch.from_numpy(imresize_uint8(noise(24, 24, 3), 1 / 2)).permute(2, 0, 1) / 255
    uniform = np.stack([np.zeros(8), np.zeros(8), (np.arange(8) + 0.5) / 8], 1)
    batch = dataset.batch(SampleDraws(np.full(8, 3), uniform, np.zeros(8, np.int64)))
    for number in range(8):
        for key, img in (('gt', hr), ('lq', lr)):
            expected = img.flip(2) if number & 1 else img
            expected = expected.flip(1) if number & 2 else expected
            expected = expected.transpose(1, 2) if number & 4 else expected
            assert torch.equal(batch[key][number], expected)
    assert len({item.numpy().tobytes() for item in batch['gt']}) == 8


@pytest.mark.parametrize('hflip, rot, count', [(False, False, 1), (True, False, 2), (False, True, 4)])
def test_only_the_symmetries_asked_for(root, hflip, rot, count):
    dataset = PatchStoreDataset(options(root, use_hflip=hflip, use_rot=rot))
    uniform = np.stack([np.zeros(8), np.zeros(8), np.arange(8) / 8], 1)
    batch = dataset.batch(SampleDraws(np.full(8, 3), uniform, np.zeros(8, np.int64)))
    assert len({item.numpy().tobytes() for item in batch['gt']}) == count


def test_every_place_is_used_and_none_beyond(root):
    dataset = PatchStoreDataset(options(root, use_hflip=False, use_rot=False))
    whole = torch.from_numpy(noise(36, 84, 2)).permute(2, 0, 1) / 255
    count = 3000
    draws = SampleDraws(np.full(count, 2), np.random.default_rng(0).random((count, 3)), np.zeros(count, np.int64))
    draws.uniform[:2, :2] = [[0, 0], [1 - 2**-53, 1 - 2**-53]]
    firsts = {gt.numpy().tobytes() for gt in dataset.batch(draws)['gt']}
    places = [(top, left) for top in range(0, 13, 2) for left in range(0, 61, 2)]
    assert firsts == {whole[:, top : top + 24, left : left + 24].contiguous().numpy().tobytes() for top, left in places}


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_lr_of_a_patch_is_that_of_the_whole_image(scale):
    for seed, (height, width) in enumerate([(8, 11), (17, 9), (5, 30)]):
        hr = noise(height * scale, width * scale, seed)
        lr = imresize_uint8(hr, 1 / scale)
        for side in (1, 5):
            for top in range(height - side + 1):
                for left in range(width - side + 1):
                    found = lr_patch(hr, top, left, side, scale)
                    assert np.array_equal(found, lr[top : top + side, left : left + side])


# Feeds


def stream(dataset, opt, count, **more):
    with build_train_loader(dataset, opt, seed=5, **more) as feed:
        return [next(feed)['gt'] for _ in range(count)]


@pytest.mark.parametrize('store', STORES)
def test_feed_resumes_and_ranks_share(root, store):
    opt = options(root, store=store)
    dataset = PatchStoreDataset(opt)
    unbroken = stream(dataset, opt, 9)
    assert all(map(torch.equal, stream(dataset, opt, 4, start_iter=5), unbroken[5:]))
    half = {**opt, 'batch_size_per_gpu': 4}
    ranks = [stream(dataset, half, 3, rank=rank, world_size=2) for rank in range(2)]
    assert all(map(torch.equal, map(torch.cat, zip(*ranks)), unbroken))


def threads():
    return [thread for thread in threading.enumerate() if thread.name == 'batches']


def test_no_thread_is_left(root):
    opt = options(root)
    dataset = PatchStoreDataset(opt)
    with pytest.raises(KeyError), build_train_loader(dataset, opt, seed=0) as feed:
        next(feed)
        assert len(threads()) == 1
        raise KeyError
    assert not threads()
    feed = build_train_loader(dataset, opt, seed=0)
    feed.close()
    feed.close()
    assert not threads()
    feed = build_train_loader(dataset, opt, seed=0)
    next(feed)
    del feed  # forgotten
    assert not threads()


def test_what_the_thread_raises_comes_to_the_consumer(root):
    class Broken(PatchStoreDataset):
        def batch(self, draws):
            if 3 in draws.indices:
                raise DataError('3 is broken')
            return super().batch(draws)

    opt = options(root, batch_size_per_gpu=1)
    with build_train_loader(Broken(opt), opt, seed=0) as feed:
        with pytest.raises(DataError, match='3 is broken'):
            for _ in range(9):
                next(feed)
        with pytest.raises(DataError, match='3 is broken'):
            next(feed)
    assert not threads()


def test_the_prefetch_thread_works_on_the_gpu_of_its_rank(root, monkeypatch):
    """A new thread begins on GPU 0, whichever the rank's current one is; without a GPU the calls are noted only."""
    noted = []
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda device: noted.append(('set_device', device)))
    monkeypatch.setattr(torch.cuda, 'Stream', lambda device: noted.append(('stream', device)))
    opt = options(root)
    with build_train_loader(PatchStoreDataset(opt), opt, seed=0, device=torch.device('cuda')) as loader:
        next(loader)
    assert noted == [('set_device', torch.device('cuda:1')), ('stream', torch.device('cuda:1'))]


def test_a_batch_is_drawn_once(root, monkeypatch):
    from pisr_plugin.data.datasets import patch_dataset

    calls = []
    draw = patch_dataset.draw_patches
    monkeypatch.setattr(patch_dataset, 'draw_patches', lambda *args: calls.append(1) or draw(*args))
    for store in STORES:
        _batch_of(PatchStoreDataset(options(root, store=store)))
    assert len(calls) == len(STORES)


def test_a_step_that_gathers_its_batches_trains_the_same(root, workspace, monkeypatch):
    """A recorded step does so with store device. Here steps run as usual, but are fed in the same way."""
    keys = ('type', 'dataroot_gt', 'dataroot_lq', 'gt_size')
    data = [f'datasets:train:{key}={options(root)[key]}' for key in keys]
    found, fed = [], []
    feed = PISRModel.feed_data
    monkeypatch.setattr(PISRModel, 'feed_data', lambda model, data: fed.append(sorted(data)) or feed(model, data))
    for gathers in (False, True):
        monkeypatch.setattr(PISRModel, 'gathers', gathers)
        recipe = workspace.recipe(name=f'gathers_{gathers}', val=None)
        assert train(['-opt', str(recipe), '--force_yml', *data, 'datasets:train:store=device']) == 0
        found.append(load_weights(next(Path('experiments', recipe.stem).rglob('net_g_latest.pth'))))
    # two stages of four steps; the first batch of a student is looked at for links that weigh too little
    assert fed == [['gt', 'lq']] * 9 + [*[['indices']] * 4, ['gt', 'lq'], *[['indices']] * 4]
    assert found[0].keys() == found[1].keys() and all(torch.equal(found[1][key], found[0][key]) for key in found[0])


@pytest.mark.gpu
@pytest.mark.parametrize('color', ['y', 'rgb'])
@pytest.mark.parametrize('store', STORES)
def test_gpu_is_fed_what_the_host_has(root, store, color):
    opt = options(root, store=store, color=color)
    host = stream(PatchStoreDataset(opt), opt, 5)
    device = stream(PatchStoreDataset(opt), opt, 5, device=torch.device('cuda'))
    assert all(batch.is_cuda and torch.equal(batch.cpu(), other) for batch, other in zip(device, host))


# Processes


def _batch_of(dataset):
    return dataset.batch(InfiniteSampler(len(dataset), 8, 0)(3))['gt'].numpy()


@pytest.mark.parametrize('store', STORES)
def test_dataset_in_a_forked_process_and_unpickled(root, store):
    dataset = PatchStoreDataset(options(root, store=store))
    expected = _batch_of(dataset)
    # one thread, as in a DataLoader's workers: torch's others do not survive a fork
    with multiprocessing.get_context('fork').Pool(1, torch.set_num_threads, (1,)) as pool:
        assert np.array_equal(pool.apply(_batch_of, (dataset,)), expected)  # also sent there pickled
    sent = pickle.dumps(dataset)
    assert len(sent) < 2000  # not the images
    assert np.array_equal(_batch_of(pickle.loads(sent)), expected)
    assert np.array_equal(_batch_of(dataset), expected)


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_basicsr_s_loader_with_workers(root, method):
    dataset = PatchStoreDataset(options(root))
    assert len(_batch_of(dataset)) == 8  # the file is mapped before the workers start
    loader = torch.utils.data.DataLoader(dataset, 2, num_workers=1, multiprocessing_context=method)
    assert sum(len(batch['gt']) for batch in loader) == len(SIZES)


# The store's file


def test_values_are_the_bytes_of_images(root):
    with lmdb.open(str(root / 'HR_raw.lmdb'), readonly=True, lock=False) as env, env.begin() as txn:
        found = {key.decode(): value for key, value in txn.cursor()}
    assert found == {str(seed): noise(*size, seed).tobytes() for seed, size in enumerate(SIZES)}


@pytest.mark.parametrize('workers', [1, 3])
def test_images_of_all_sizes_are_found(tmp_path, workers, monkeypatch):
    # less than a page's quarter lies in the tree itself, with old copies of it after every commit
    monkeypatch.setattr('pisr_plugin.data.storage.lmdb_writer._COMMIT_BYTES', 3000)
    images = [noise(1 + seed % 40, 1 + seed * 7 % 31, seed) * (seed % 5 > 0) for seed in range(200)]
    paths = write_images(tmp_path / 'in', images)
    write_raw_lmdb(paths, tmp_path / 'a_raw.lmdb', workers)
    store = RawLmdb(tmp_path / 'a_raw.lmdb')
    assert store.keys == sorted(map(str, range(200)))
    for index, key in enumerate(store.keys):
        (view,) = store.views([index])
        assert np.array_equal(view, images[int(key)]) and not view.flags.writeable and not store.is_changed(index)


def copied_list(root, folder, change):
    """A copy of a store with a changed list."""
    folder.mkdir()
    (folder / 'data.mdb').write_bytes((root / 'HR_raw.lmdb/data.mdb').read_bytes())
    (folder / 'images.txt').write_text('\n'.join(change((root / 'HR_raw.lmdb/images.txt').read_text().splitlines())))
    return folder


def test_one_wrong_digit_in_the_list_is_found(root, tmp_path):
    text = (root / 'HR_raw.lmdb/images.txt').read_text()
    folder = copied_list(root, tmp_path / 'a_raw.lmdb', lambda lines: lines)
    for place, character in enumerate(text):
        if character.isdigit():
            (folder / 'images.txt').write_text(f'{text[:place]}{(int(character) + 1) % 10}{text[place + 1 :]}')
            with pytest.raises(DataError, match='images.txt'):
                RawLmdb(folder)


def with_checksum(lines):
    return [*lines, f'checksum {zlib.crc32(chr(10).join(lines).encode()):08x}']


@pytest.mark.parametrize(
    'change',
    [
        lambda lines: [*lines, lines[-1].replace('4 ', 'x ', 1)],  # the same pixels twice
        lambda lines: [*lines[:-1], 'x 999999999 999999999 00000000 4096'],
        lambda lines: [*lines[:-1], 'x 1 1 00000000 999999999999999'],
        lambda lines: lines[:-1],
        lambda lines: [lines[0].replace('has ', 'has 1'), *lines[1:]],
    ],
    ids=['overlap', 'absurd size', 'beyond the file', 'line missing', 'another length'],
)
def test_a_list_with_a_right_checksum_must_fit_the_file(root, tmp_path, change):
    folder = copied_list(root, tmp_path / 'a_raw.lmdb', lambda lines: with_checksum(change(lines[:-1])))
    with pytest.raises(DataError, match='damaged or cut off, or not the one of images.txt'):
        RawLmdb(folder)


def test_a_store_of_an_earlier_version_opens_after_reading_all_of_it(root, tmp_path):
    def earlier(lines):
        head = 'raw images, uint8 RGB; data.mdb has pages of 4096 bytes and, but for the pixels, the checksum 0123abcd'
        crc = {str(n): f'{zlib.crc32(noise(*size, n).tobytes()):08x}' for n, size in enumerate(SIZES)}
        parts = [line.split() for line in lines[1:-1]]
        return [head, *(' '.join([key, height, width, crc[key], offset]) for key, height, width, _, offset in parts)]

    store = RawLmdb(copied_list(root, tmp_path / 'a_raw.lmdb', earlier))
    for index, key in enumerate(store.keys):
        assert np.array_equal(store.views([index])[0], noise(*SIZES[int(key)], int(key)))
    content = bytearray((tmp_path / 'a_raw.lmdb/data.mdb').read_bytes())
    content[store._infos[2].offset + 5] ^= 1
    (tmp_path / 'a_raw.lmdb/data.mdb').write_bytes(content)
    with pytest.raises(DataError, match='damaged'):
        RawLmdb(tmp_path / 'a_raw.lmdb')


def damaged(root, folder, rng):
    """A copy of a store with something done to one of its files."""
    folder.mkdir(exist_ok=True)
    for name in ('data.mdb', 'images.txt'):
        (folder / name).write_bytes((root / 'HR_raw.lmdb' / name).read_bytes())
    file = folder / rng.choice(['data.mdb', 'images.txt'])
    content = bytearray(file.read_bytes())
    kind = rng.choice(['cut', 'flip', 'zero', 'grow', 'gone', 'swap'], p=[0.25, 0.4, 0.15, 0.1, 0.02, 0.08])
    at = int(rng.integers(len(content)))
    if rng.random() < 0.5:  # into the frame, most of which is at the end
        at = max(0, len(content) - 1 - int(rng.integers(16384)))
    if kind == 'cut':
        del content[at:]
    elif kind == 'flip':
        for place in [at, *rng.integers(len(content), size=rng.integers(4))]:
            content[int(place)] ^= 1 << int(rng.integers(8))
    elif kind == 'zero':
        content[at : at + 5000] = bytes(len(content[at : at + 5000]))
    elif kind == 'grow':
        content += rng.bytes(int(rng.integers(1, 9000)))
    elif kind == 'swap':
        content[at : at + 100], content[:100] = content[:100], content[at : at + 100]
    file.write_bytes(content)
    if kind == 'gone':
        file.unlink()


def test_damaged_stores_are_told_or_read_but_never_kill(root, tmp_path):
    rng = np.random.default_rng(0)
    draws = InfiniteSampler(len(SIZES), 8, 0)(0)
    expected = PatchStoreDataset(options(root)).batch(draws)['gt']
    outcomes = {'told': 0, 'unchanged': 0, 'changed': 0}
    for _ in range(300):
        damaged(root, tmp_path / 'HR_raw.lmdb', rng)
        opt = options(root, dataroot_gt=str(tmp_path / 'HR_raw.lmdb'))
        try:
            batch = PatchStoreDataset(opt).batch(draws)['gt']
        except DataError as error:
            assert str(tmp_path / 'HR_raw.lmdb') in str(error)
            outcomes['told'] += 1
            continue
        assert batch.shape == expected.shape
        store = RawLmdb(tmp_path / 'HR_raw.lmdb')
        is_changed = any(map(store.is_changed, range(len(store))))
        outcomes['changed' if is_changed else 'unchanged'] += 1
        assert is_changed or torch.equal(batch, expected)
        if is_changed:
            with pytest.raises(DataError, match='changed since it was built'):
                PatchStoreDataset({**opt, 'store': 'memory'})
    assert min(outcomes['told'], outcomes['changed']) > 20, outcomes


# Mistakes


def test_missing_and_wrong_roots(root, tmp_path):
    with pytest.raises(DataError, match='images.txt: No such file'):
        PatchStoreDataset(options(root, dataroot_gt=str(tmp_path)))
    with pytest.raises(DataError, match='It holds PNG files, for PairedImageDataset'):
        PatchStoreDataset(options(root, dataroot_gt=str(root / 'HR.lmdb')))
    with pytest.raises(DataError, match='HR must be exactly 2 x LR'):
        PatchStoreDataset(options(root, dataroot_lq=str(root / 'X4_raw.lmdb')))


@pytest.mark.parametrize(
    'changes, error, told',
    [
        ({'store': 'memroy'}, OptionsError, "Did you mean 'memory'"),
        ({'color': 'ycbcr'}, OptionsError, 'Possible: rgb, y'),
        ({'gt_size': 25}, OptionsError, r'gt_size: not a multiple of the scale, 2 \(found 25\)'),
        ({'gt_size': 26}, DataError, 'smaller than gt_size, 26'),
    ],
)
def test_wrong_options(root, changes, error, told):
    with pytest.raises(error, match=told):
        PatchStoreDataset(options(root, **changes))


def test_stores_of_different_images(root, tmp_path):
    paths = sorted((root / 'X2').iterdir())[:3]
    write_raw_lmdb(paths, tmp_path / 'X2_raw.lmdb')
    with pytest.raises(DataError, match='hold different images'):
        PatchStoreDataset(options(root, dataroot_lq=str(tmp_path / 'X2_raw.lmdb')))
