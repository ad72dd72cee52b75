"""The blind test set: what it holds, and that it holds the same everywhere."""

import shutil

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.utils import bgr2ycbcr
from scipy.ndimage import correlate

from pisr_plugin.data.datasets.blurred_image_dataset import ANISOTROPIC9
from pisr_plugin.data.storage.png_lmdb import write_lmdb
from pisr_plugin.utils.errors import DataError, OptionsError
from pisr_plugin.utils.resize import imresize
from tests.conftest import make_images


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('photos')
    make_images(path, 2, size=(50, 63))
    return path / 'HR'


def dataset(folder, **options):
    given = {'type': 'BlurredImageDataset', 'name': 'blind', 'phase': 'val', 'scale': 4, 'dataroot_gt': str(folder)}
    return build_dataset({**given, 'io_backend': {'type': 'disk'}, **options})


def test_each_image_comes_with_all_widths_as_a_paired_dataset_gives_it(folder):
    data = dataset(folder)
    assert len(data) == 16
    items = [data[i] for i in range(16)]
    assert [item['lq_path'] for item in items[6:9]] == ['0_iso3.png', '0_iso3.2.png', '1_iso1.8.png']
    assert len({item['lq_path'] for item in items}) == 16
    assert all(item['lq'].shape == (3, 12, 15) and item['gt'].shape == (3, 48, 60) for item in items)
    assert all(item['lq'].dtype == item['gt'].dtype == torch.float32 for item in items)
    assert items[0]['gt_path'] == str(folder / '0.png')
    assert items[7]['lq'].var() < items[0]['lq'].var()  # the wider blur
    bgr = cv2.imread(str(folder / '0.png'))[:48, :60]
    assert torch.equal(items[0]['gt'], torch.from_numpy(bgr[..., ::-1] / 255).permute(2, 0, 1).float())


def test_lr_is_the_formula(folder):
    item = dataset(folder, kernels=[[3.0, 1.2, 90]])[0]
    gt = cv2.imread(str(folder / '0.png'))[:48, :60, ::-1] / 255
    offset = np.arange(-10, 11)
    kernel = np.exp(-((offset[:, None] / 3.0) ** 2 + (offset / 1.2) ** 2) / 2)  # upright: the first axis points down
    blurred = np.stack([correlate(gt[..., c], kernel / kernel.sum(), mode='mirror') for c in range(3)])
    expected = imresize(torch.from_numpy(blurred), 1 / 4)
    assert torch.equal(item['lq'], ((expected * 255).round().clamp(0, 255) / 255).float())


def test_noise_is_of_its_level_and_of_the_images_name_alone(folder, tmp_path):
    clean, ten, twenty = (dataset(folder, kernels=2.0, noise=level)[0]['lq'] for level in (0, 10, 20))
    assert ((ten - clean) * 255).std() == pytest.approx(10, rel=0.1)
    assert ((twenty - clean) * 255).std() == pytest.approx(20, rel=0.1)
    both = dataset(folder, kernels=2.0, noise=[0, 10])
    assert torch.equal(both[1]['lq'], ten) and both[1]['lq_path'] == '0_iso2_noise10.png'
    shutil.copy(folder / '1.png', tmp_path / '1.png')  # elsewhere, and the first there
    assert torch.equal(dataset(tmp_path, noise=10)[0]['lq'], dataset(folder, noise=10)[8]['lq'])
    assert not torch.equal(ten, dataset(folder, kernels=2.01, noise=10)[0]['lq'])


def test_values_are_what_they_always_were(tmp_path):
    """Guards kernel, noise and rounding: figures in tables hang on them."""
    ramps = np.indices((24, 32, 3)) * np.array([9, 5, 40])[:, None, None, None]
    cv2.imwrite(str(tmp_path / 'ramps.png'), (ramps.sum(0) % 256).astype(np.uint8))
    lq = dataset(tmp_path, kernels=[[4, 1.5, 120]], noise=10)[0]['lq']
    assert (lq[:, 3, 4] * 255).round().int().tolist() == [55, 145, 188]


def test_an_lmdb_gives_the_same(folder, tmp_path):
    write_lmdb(sorted(folder.iterdir()), tmp_path / 'HR.lmdb')
    stored = dataset(tmp_path / 'HR.lmdb', io_backend={'type': 'lmdb'}, noise=10)
    files = dataset(folder, noise=10)
    for i in (0, 9):
        assert torch.equal(stored[i]['lq'], files[i]['lq']) and stored[i]['lq_path'] == files[i]['lq_path']
    assert stored[0]['gt_path'] == '0'


@pytest.mark.parametrize('workers', [1, 2])
def test_workers_change_nothing(folder, workers):
    data = dataset(folder, kernels=[1.0, 2.0], noise=15)
    options = {'phase': 'val', 'num_worker_per_gpu': workers}
    assert build_dataloader(data, options, num_gpu=0, dist=False).dataset is data
    loader = torch.utils.data.DataLoader(data, num_workers=workers)
    for i, batch in enumerate(loader):
        assert torch.equal(batch['lq'][0], data[i]['lq'])


def test_luminance_is_that_of_the_rgb_pair(folder):
    rgb, y = (dataset(folder, kernels=2, noise=5, **color)[0] for color in ({}, {'color': 'y'}))
    for key in ('lq', 'gt'):
        expected = bgr2ycbcr(rgb[key].numpy().transpose(1, 2, 0)[..., ::-1], y_only=True)
        assert y[key].shape[0] == 1 and np.allclose(y[key][0], expected, atol=1e-6)


def test_published_sets_are_there(folder):
    assert [kernel[0] for kernel in dataset(folder, scale=2).kernels] == [0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]
    assert dataset(folder, kernels='anisotropic9').kernels == list(ANISOTROPIC9)
    assert len(dataset(folder, kernels='anisotropic9', noise=[0, 10, 20])) == 2 * 9 * 3


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'kernels': 'gaussian9'}, r"kernels: unknown \(found 'gaussian9'\). Did you mean 'gaussian8'"),
        ({'scale': 3}, r'gaussian8 exists for x2 and x4 only \(found x3\)'),
        ({'kernels': [[1, 2]]}, r'kernels: impossible kernel \(found \[1, 2\]\). Expected sigma, or'),
        ({'kernels': [0]}, 'Expected standard deviations above 0'),
        ({'kernels': []}, 'kernels: empty'),
        ({'noise': -1}, r'noise: impossible value \(found -1\)'),
        ({'noise': [float('inf')]}, r'noise: impossible value \(found \[inf\]\)'),
        ({'kernels': [float('nan')]}, r'impossible kernel \(found nan\)'),
        ({'kernel_size': 4}, r'kernel_size: impossible value \(found 4\)'),
        ({'kernel_size': 10**9 + 1}, 'an odd number from 1 to 255'),
        ({'downsample': 'area'}, r"downsample: unknown value \(found 'area'\)"),
        ({'io_backend': {'type': 'disc'}}, "Did you mean 'disk'"),
    ],
)
def test_impossible_options_are_refused_by_name(folder, options, message):
    with pytest.raises(OptionsError, match=message):
        dataset(folder, **options)


def test_a_damaged_image_is_named(folder, tmp_path):
    (tmp_path / 'torn.png').write_bytes((folder / '0.png').read_bytes()[:200])
    with pytest.raises(DataError, match='torn.png'):
        dataset(tmp_path)[0]
    with pytest.raises(DataError, match='no images'):
        dataset(folder.parent)
