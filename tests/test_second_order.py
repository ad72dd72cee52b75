"""Real-ESRGAN's degradation: BasicSR's images, a function of seed and iteration alone; its dataset through the feed."""

import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.models import build_model
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.utils import DiffJPEG
from torch.nn import functional as F

from pisr_plugin.config.compose import compose
from pisr_plugin.config.schema import check_options
from pisr_plugin.config.stages import unroll
from pisr_plugin.data.datasets.check import check_dataset
from pisr_plugin.data.loading.train_loader import build_train_loader
from pisr_plugin.data.prepare.build import PairOptions, build
from pisr_plugin.degradations.real_esrgan import SecondOrderDegradation
from pisr_plugin.degradations.registry import build_degradation, random_stream
from pisr_plugin.utils.errors import DataError, OptionsError
from pisr_plugin.utils.random_state import seeded
from tests.conftest import ROOT, make_images
from tests.test_model import options

SMALL = {'scale': 2, 'gt_size': 64}
PULSE = torch.zeros(21, 21)
PULSE[10, 10] = 1


def make_batch(size=96, count=3, gt=None):
    """Images that are all the same, and kernels that blur nothing."""
    if gt is None:
        gt = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).expand(count, -1, -1, -1)
    return {'gt': gt, **dict.fromkeys(('kernel1', 'kernel2', 'sinc_kernel'), PULSE.expand(len(gt), -1, -1))}


# -------------------------------------------------------------------------------------------------- the degradation


def test_seed_and_iteration_decide_and_nothing_else_does():
    batch = make_batch()
    first = SecondOrderDegradation(**SMALL, seed=7)(batch, 11)
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    make = SecondOrderDegradation(**SMALL, seed=7)
    make(batch, 3)
    again = make(
        {key: value.to(memory_format=torch.channels_last) if key == 'gt' else value for key, value in batch.items()}, 11
    )
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all() and random.getstate() == state[2]
    assert all(torch.equal(again[key], first[key]) for key in ('lq', 'gt'))
    assert not torch.equal(make(batch, 12)['lq'], first['lq'])
    assert not torch.equal(SecondOrderDegradation(**SMALL, seed=8)(batch, 11)['lq'], first['lq'])


@pytest.mark.parametrize('scale', [2, 4])
def test_lr_patches_are_8_bit_images_with_draws_of_their_own(scale):
    batch = make_batch()
    pairs = SecondOrderDegradation(scale=scale, gt_size=64)(batch, 1)
    lq, gt = pairs['lq'], pairs['gt']
    assert lq.shape == (3, 3, 64 // scale, 64 // scale) and gt.shape == (3, 3, 64, 64)
    assert lq.min() >= 0 and lq.max() <= 1 and torch.equal((lq * 255).round() / 255, lq)
    assert len({image.numpy().tobytes() for image in lq}) == len({image.numpy().tobytes() for image in gt}) == 3
    windows = batch['gt'][0].unfold(1, 64, scale).unfold(2, 64, scale).permute(1, 2, 0, 3, 4)
    for patch in gt:  # as it was, at a place that LR has too
        assert (windows == patch).flatten(2).all(2).sum() == 1
    alone = {key: value[:1] for key, value in batch.items()}
    assert torch.equal(SecondOrderDegradation(scale=scale, gt_size=64)(alone, 1)['lq'][0], lq[0])


CLEAN = {
    **dict.fromkeys(('resize_prob', 'resize_prob2'), [0, 0, 1]),
    **dict.fromkeys(('gaussian_noise_prob', 'gaussian_noise_prob2'), 1),
    **dict.fromkeys(('noise_range', 'noise_range2'), [0, 0]),
    **dict.fromkeys(('jpeg_range', 'jpeg_range2'), [99, 99]),
}


def test_without_blur_noise_and_compression_it_is_a_smaller_picture_of_the_same_place():
    y, x = torch.meshgrid(torch.linspace(0, 6, 96), torch.linspace(0, 9, 96), indexing='ij')
    smooth = (x.sin() * y.cos() * 0.4 + 0.5).expand(3, -1, -1)  # gray, because JPEG stores colours at half the size
    pairs = SecondOrderDegradation(**SMALL, **CLEAN)(make_batch(gt=smooth.expand(4, -1, -1, -1)), 1)
    expected = F.interpolate(pairs['gt'], scale_factor=0.5, mode='area')
    assert (pairs['lq'] - expected).abs().max() < 4 / 255
    strong = SecondOrderDegradation(**SMALL)(make_batch(gt=smooth.expand(4, -1, -1, -1)), 1)
    assert (strong['lq'] - F.interpolate(strong['gt'], scale_factor=0.5, mode='area')).abs().max() > 0.05


def test_the_kernels_of_the_batch_are_used_one_for_each_image():
    batch = make_batch(count=2)
    blurred = {key: value.clone() for key, value in batch.items()}
    blurred['kernel1'][1] = 1 / 441
    make = SecondOrderDegradation(**SMALL, **CLEAN)
    sharp, soft = make(batch, 1)['lq'], make(blurred, 1)['lq']
    assert torch.equal(sharp[0], soft[0]) and soft[1].std() < 0.5 * sharp[1].std()


PUBLISHED = {
    'resize_prob': [0.2, 0.7, 0.1],
    'resize_range': [0.15, 1.5],
    'gaussian_noise_prob': 0.5,
    'noise_range': [1, 30],
    'poisson_scale_range': [0.05, 3],
    'gray_noise_prob': 0.4,
    'jpeg_range': [30, 95],
    'second_blur_prob': 0.8,
    'resize_prob2': [0.3, 0.4, 0.3],
    'resize_range2': [0.3, 1.2],
    'gaussian_noise_prob2': 0.5,
    'noise_range2': [1, 25],
    'poisson_scale_range2': [0.05, 2.5],
    'gray_noise_prob2': 0.4,
    'jpeg_range2': [30, 95],
}


class Stock(RealESRGANModel):
    """BasicSR's own synthesis of one LR image, without network, sharpening and pool."""

    def __init__(self, options):
        self.opt, self.device, self.is_train = options, torch.device('cpu'), True
        self.jpeger = deepcopy(DiffJPEG(differentiable=False))

    def usm_sharpener(self, images):
        return images

    def _dequeue_and_enqueue(self):
        pass


def random_batch(count):
    draw = torch.Generator().manual_seed(count)
    gt = F.interpolate(torch.rand(count, 3, 12, 12, generator=draw), size=(100, 96), mode='bicubic').clamp(0, 1)
    kernels = torch.rand(3, count, 21, 21, generator=draw).pow(8)
    kernels /= kernels.sum((2, 3), keepdim=True)
    return {'gt': gt, **dict(zip(('kernel1', 'kernel2', 'sinc_kernel'), kernels))}


@pytest.mark.parametrize('scale', [2, 4])
def test_with_the_published_numbers_it_makes_the_images_of_basicsr(scale):
    count, batch = 40, random_batch(40)
    made = SecondOrderDegradation(scale=scale, gt_size=64, seed=3)(batch, 5)
    stock = Stock({**PUBLISHED, 'scale': scale, 'gt_size': 64})
    for index, seed in enumerate(random_stream(3, 5).integers(2**63, size=count).tolist()):
        with seeded(seed):
            stock.feed_data({name: part[index : index + 1] for name, part in batch.items()})
        assert torch.equal(made['gt'][index], stock.gt[0]) and torch.equal(made['lq'][index], stock.lq[0])


def test_nothing_is_read_back_from_the_device():
    """Tensors of the device ``meta`` have no values, so that whoever reads one fails."""
    batch = {name: part.to('meta') for name, part in random_batch(40).items()}
    made = SecondOrderDegradation(**SMALL)(batch, 1)
    assert made['lq'].is_meta and made['lq'].shape == (40, 3, 32, 32) and made['gt'].shape == (40, 3, 64, 64)


def test_ranks_together_make_the_batch_of_one_process(monkeypatch):
    gt = torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    make, batch = SecondOrderDegradation(**SMALL, seed=7), make_batch(gt=gt)
    whole = make(batch, 5)
    for rank in range(2):
        monkeypatch.setattr('pisr_plugin.degradations.registry.get_dist_info', lambda rank=rank: (rank, 2))
        part = make({key: value[2 * rank : 2 * rank + 2] for key, value in batch.items()}, 5)
        assert all(torch.equal(part[key], whole[key][2 * rank : 2 * rank + 2]) for key in ('lq', 'gt'))


def test_cudnn_does_not_tune_itself_for_random_sizes(monkeypatch):
    noted = []

    def note(self, gt, *kernels):
        noted.append(torch.backends.cudnn.benchmark)
        return gt[..., ::2, ::2]

    monkeypatch.setattr(SecondOrderDegradation, '_degrade', note)
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', True)
    SecondOrderDegradation(**SMALL)(make_batch(), 1)
    assert noted == [False] * 3 and torch.backends.cudnn.benchmark


@pytest.mark.gpu
def test_on_a_gpu_it_is_as_reproducible_and_leaves_the_cpu_usable():
    batch = make_batch()
    on_gpu = {key: value.cuda() for key, value in batch.items()}
    make = SecondOrderDegradation(**SMALL)
    state = torch.cuda.get_rng_state()
    first = make(on_gpu, 1)
    assert first['lq'].is_cuda and torch.equal(make(on_gpu, 1)['lq'], first['lq'])
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert make(batch, 1)['lq'].shape == first['lq'].shape
    assert SecondOrderDegradation(**SMALL)(batch, 1)['lq'].shape == first['lq'].shape


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'gt_size': 63}, r'gt_size: impossible value \(found 63\). Expected a multiple of 2'),
        ({'resize_prob': [1, 2]}, r'resize_prob: impossible value \(found \[1, 2\]\). Expected three weights'),
        ({'resize_prob': 1}, r'resize_prob: impossible value \(found 1\)'),
        ({'resize_prob2': [float('nan')] * 3}, 'resize_prob2: impossible value'),
        ({'resize_range': [0.5, 1e9]}, 'resize_range: impossible value'),
        ({'resize_range2': [1.1, 1.5]}, r'resize_range2: impossible value \(found \[1.1, 1.5\]\).*contains 1'),
        ({'resize_range': [0, 1.5]}, r'resize_range: impossible value \(found \[0, 1.5\]\)'),
        ({'gaussian_noise_prob': 2}, r'gaussian_noise_prob: impossible value \(found 2\).*from 0 to 1'),
        ({'noise_range': [30, 1]}, r'noise_range: impossible value \(found \[30, 1\]\)'),
        ({'jpeg_range2': [0, 95]}, r'jpeg_range2: impossible value \(found \[0, 95\]\).*from 1 to 99'),
        ({'jpeg_range': [30, 100]}, r'jpeg_range: impossible value \(found \[30, 100\]\).*from 1 to 99'),
        ({'jpeg': [30, 95]}, "unexpected keyword argument 'jpeg'"),
    ],
)
def test_impossible_options_are_refused_by_name(changes, message):
    with pytest.raises(OptionsError, match=message):
        build_degradation({'type': 'SecondOrderDegradation', **changes}, scale=2, seed=0)


def test_batches_that_it_cannot_use_are_refused():
    make = SecondOrderDegradation(**SMALL)
    with pytest.raises(
        OptionsError, match='needs kernel1, kernel2, sinc_kernel of each image, which RealESRGANDataset'
    ):
        make({'gt': torch.rand(1, 3, 96, 96)}, 1)
    for shape in ((1, 1, 96, 96), (1, 3, 62, 96), (1, 3, 64, 64)):
        with pytest.raises(OptionsError, match='cannot use images of shape'):
            make(make_batch(gt=torch.rand(shape)), 1)


# -------------------------------------------------------------------------------------------------- its dataset


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two photos as files with a list, and as an LMDB."""
    path = tmp_path_factory.mktemp('photos')
    make_images(path, 2, size=(420, 410))
    (path / 'list.txt').write_text('0.png (420,410,3)\n1.png\n')
    build(sorted((path / 'HR').iterdir()), path / 'lmdb', PairOptions(), workers=1)
    return path


def training_data(folder, backend, **changes):
    """The data block of the recipe for real photos, on two images."""
    (stage, *_) = unroll(compose(ROOT / 'options/kdsr/kdsr_gan_x4.yml'))
    where = {
        'disk': {'dataroot_gt': str(folder / 'HR'), 'meta_info': str(folder / 'list.txt')},
        'lmdb': {'dataroot_gt': str(folder / 'lmdb/HR.lmdb')},
    }[backend]
    data = stage.options['datasets']['train']
    data.update(where, io_backend={'type': backend}, batch_size_per_gpu=2, phase='train', scale=4, **changes)
    return data


@pytest.mark.parametrize('backend', ['disk', 'lmdb'])
def test_the_feed_gives_the_same_batches_whatever_the_number_of_workers(folder, backend):
    data = training_data(folder, backend)
    check_dataset(data, 'datasets.train', 4)
    runs = []
    for workers, start in ((0, 0), (2, 0), (0, 1)):
        with build_train_loader(
            build_dataset(data), {**data, 'num_worker_per_gpu': workers}, seed=5, start_iter=start
        ) as feed:
            runs.append([next(feed) for _ in range(2)])
    assert runs[0][0]['gt'].shape == (2, 3, 400, 400) and runs[0][0]['kernel1'].shape == (2, 21, 21)
    for one, other in zip([*runs[0], runs[0][1]], [*runs[1], runs[2][0]], strict=True):
        for key in ('gt', 'kernel1', 'kernel2', 'sinc_kernel'):
            assert torch.equal(one[key], other[key])
    lq = SecondOrderDegradation(scale=4)(runs[0][0], 1)['lq']
    assert lq.shape == (2, 3, 64, 64)


@pytest.mark.parametrize(
    ('changes', 'error', 'message'),
    [
        ({'meta_info': None}, OptionsError, 'datasets.train.meta_info: missing'),
        ({'meta_info': 'none.txt'}, DataError, 'datasets.train.meta_info: none.txt: No such file'),
        ({'meta_info': 'other.txt'}, DataError, r'meta_info: it lists images that are not in .*found 7.png'),
        ({'meta_info': 'empty.txt'}, DataError, 'empty.txt lists no images'),
    ],
)
def test_a_list_that_does_not_hold_is_told_before_training(folder, tmp_path, monkeypatch, changes, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'other.txt').write_text('0.png\n7.png\n')
    (tmp_path / 'empty.txt').write_text('')
    with pytest.raises(error, match=message):
        check_dataset(training_data(folder, 'disk', **changes), 'datasets.train', 4)


def test_what_the_dataset_lacks_or_does_not_know_is_told():
    (stage, *_) = unroll(compose(ROOT / 'options/kdsr/kdsr_gan_x4.yml'))
    wrong = deepcopy(stage.options)
    del wrong['datasets']['train']['kernel_prob2']
    wrong['datasets']['train'].update(sinc_probs=0.1, blur_sigma=3)
    with pytest.raises(OptionsError) as raised:
        check_options(wrong)
    lines = str(raised.value).splitlines()
    assert [line.split(':')[0] for line in lines] == [
        *('datasets.train.blur_sigma', 'datasets.train.sinc_probs', 'datasets.train.kernel_prob2')
    ]


def test_a_dataset_without_lr_images_needs_a_degradation():
    model = build_model(options(datasets={'train': {'type': 'RealESRGANDataset', 'color': 'y', 'gt_size': 16}}))
    model.feed_data({'gt': torch.rand(1, 1, 16, 16), 'kernel1': torch.rand(1, 21, 21)})
    with pytest.raises(OptionsError, match='RealESRGANDataset gives no lq .found gt, kernel1.'):
        model.optimize_parameters(1)
