"""Blur kernels, noise and downsampling against closed forms and BasicSR's makers; reproducibility."""

import importlib
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.data.degradations import bivariate_Gaussian
from basicsr.utils.img_process_util import filter2D
from torch.utils.data import DataLoader, Dataset

from pisr_plugin.degradations.blur_noise import BlurNoiseDownsample, blur, degrade, gaussian_kernels
from pisr_plugin.degradations.registry import DEGRADATION_REGISTRY, build_degradation
from pisr_plugin.utils.errors import OptionsError
from pisr_plugin.utils.resize import imresize

SIGMA_1 = torch.tensor([0.2, 1.8, 4.0, 3.5, 2.0], dtype=torch.float64)
SIGMA_2 = torch.tensor([0.2, 1.8, 1.5, 1.5, 0.2], dtype=torch.float64)
THETA = torch.tensor([0.0, 1.0, math.radians(120), math.radians(30), 0.0], dtype=torch.float64)
KERNELS = gaussian_kernels(21, SIGMA_1, SIGMA_2, THETA)


def delta(size: int = 64, batch: int = 1) -> torch.Tensor:
    image = torch.zeros(batch, 3, size, size, dtype=torch.float64)
    image[..., size // 2, size // 2] = 1
    return image


def rounded(image: torch.Tensor) -> torch.Tensor:
    return (image * 255).round().clamp(0, 255) / 255


# -------------------------------------------------------------------------------------------------- kernels


def test_kernels_sum_to_one_and_point_both_ways():
    assert torch.allclose(KERNELS.sum((1, 2)), torch.ones(5, dtype=torch.float64), atol=1e-14)
    assert torch.allclose(KERNELS, KERNELS.flip(1, 2), atol=1e-15)


@pytest.mark.parametrize('i', range(5))
def test_kernels_are_the_density_of_the_covariance_and_basicsrs(i):
    rotation = np.array([[math.cos(THETA[i]), -math.sin(THETA[i])], [math.sin(THETA[i]), math.cos(THETA[i])]])
    precision = np.linalg.inv(rotation @ np.diag([SIGMA_1[i] ** 2, SIGMA_2[i] ** 2]) @ rotation.T)
    density = np.empty((21, 21))
    for row in range(21):
        for column in range(21):
            place = np.array([column - 10, row - 10])
            density[row, column] = math.exp(-place @ precision @ place / 2)
    assert np.allclose(KERNELS[i], density / density.sum(), atol=1e-12)
    theirs = bivariate_Gaussian(21, float(SIGMA_1[i]), float(SIGMA_2[i]), float(THETA[i]), isotropic=False)
    assert np.allclose(KERNELS[i], theirs, atol=1e-12)


def test_the_first_axis_lies_at_the_angle():
    (kernel,) = gaussian_kernels(21, *(torch.tensor([value]) for value in (4.0, 1.0, math.pi / 6)))
    x = torch.arange(-10.0, 11)
    y = x[:, None]
    cov_xy, var_x, var_y = ((kernel * moment).sum() for moment in (x * y, x * x + 0 * y, y * y + 0 * x))
    assert 0.5 * math.atan2(2 * cov_xy, var_x - var_y) == pytest.approx(math.pi / 6, abs=0.02)


def test_a_very_narrow_kernel_leaves_images_as_they_are():
    (kernel,) = gaussian_kernels(21, *(torch.tensor([value]) for value in (1e-3, 1e-3, 0.0)))
    assert kernel[10, 10] == 1 and kernel.isfinite().all()


# -------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize('i', range(5))
def test_the_blur_of_a_delta_is_the_kernel(i):
    blurred = blur(delta(), KERNELS[i : i + 1])
    assert torch.allclose(blurred[0, 1, 22:43, 22:43], KERNELS[i], atol=1e-15)
    assert torch.allclose(blurred.sum((2, 3)), torch.ones(1, 3, dtype=torch.float64), atol=1e-12)
    lr = degrade(delta(), KERNELS[i : i + 1], 1, downsample='direct')
    assert torch.equal(lr[0, 1, 22:43, 22:43], rounded(KERNELS[i])) and not lr[..., :22, :].any()


@pytest.mark.parametrize('size', [(11, 11), (37, 52), (64, 31)], ids=str)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_blur_is_basicsrs_correlation(size, dtype):
    images, kernels = torch.rand(5, 3, *size, dtype=dtype), torch.rand(5, 21, 21, dtype=dtype)
    kernels /= kernels.sum((1, 2), keepdim=True)  # not symmetric: a convolution would differ
    tolerance = 1e-12 if dtype is torch.float64 else 2e-6
    assert torch.allclose(blur(images, kernels), filter2D(images, kernels), atol=tolerance, rtol=0)
    assert torch.allclose(blur(images, kernels[:1]), filter2D(images, kernels[:1]), atol=tolerance, rtol=0)


def test_each_image_has_its_kernel_or_all_have_one():
    image = torch.rand(5, 3, 32, 40, dtype=torch.float64)
    together = degrade(image, KERNELS, 2)
    alone = torch.cat([degrade(image[i : i + 1], KERNELS[i : i + 1], 2) for i in range(5)])
    assert torch.equal(together, alone)
    shared = degrade(image, KERNELS[1:2], 2)
    assert torch.equal(shared[3], degrade(image[3:4], KERNELS[1:2], 2)[0])


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_without_blur_it_is_matlabs_bicubic_or_every_nth_pixel(scale):
    image = torch.rand(2, 3, 36, 48, dtype=torch.float64)
    sharp = torch.zeros(1, 21, 21)
    sharp[0, 10, 10] = 1
    assert torch.equal(degrade(image, sharp, scale), rounded(imresize(image, 1 / scale)))
    assert torch.equal(degrade(image, sharp, scale, downsample='direct'), rounded(image[..., ::scale, ::scale]))


def test_a_constant_image_stays_constant():
    assert torch.allclose(degrade(torch.full((1, 3, 32, 32), 51 / 255), KERNELS[2:3], 4), torch.tensor(51 / 255))


@pytest.mark.parametrize('level', [10, 25])
def test_noise_has_the_stated_variance_and_none_in_common_between_colours(level):
    gray = torch.full((4, 3, 256, 256), 0.5)
    make = BlurNoiseDownsample(scale=2, noise=level, seed=3)
    noise = (make({'gt': gray}, 1)['lq'] - 0.5) * 255
    rounding = 1 / 12
    assert noise.var() == pytest.approx(level**2 + rounding, rel=0.02)
    assert abs(noise.mean()) < 0.2 + 0.5  # 0.5 is 127.5 of 255, which is rounded to even
    assert abs(torch.corrcoef(noise.transpose(0, 1).flatten(1))[0, 1]) < 0.02


# -------------------------------------------------------------------------------------------------- batches


def test_parameters_are_drawn_from_the_published_ranges(monkeypatch):
    drawn = []

    def note(size, *parameters):
        drawn.append(torch.stack(parameters))
        return gaussian_kernels(size, *parameters)

    monkeypatch.setattr('pisr_plugin.degradations.blur_noise.gaussian_kernels', note)
    gt = torch.rand(1, 3, 16, 16)
    for isotropic in (True, False):
        drawn.clear()
        make = BlurNoiseDownsample(scale=4, isotropic=isotropic, sigma=[0.2, 4.0])
        for iteration in range(300):
            make({'gt': gt}, iteration)
        sigma_1, sigma_2, theta = torch.cat(drawn, dim=1)
        assert sigma_1.min() >= 0.2 and sigma_1.max() <= 4 and sigma_1.mean() == pytest.approx(2.1, abs=0.2)
        assert torch.equal(sigma_1, sigma_2) == isotropic
        if not isotropic:
            assert theta.min() >= 0 and theta.max() < math.pi and theta.mean() == pytest.approx(math.pi / 2, abs=0.2)


def test_a_batch_shares_kernel_and_level_unless_each_image_has_its_own():
    gt = torch.rand(1, 3, 64, 64).expand(3, -1, -1, -1)
    shared = BlurNoiseDownsample(scale=2)({'gt': gt}, 5)['lq']
    assert torch.equal(shared[0], shared[1])
    own = BlurNoiseDownsample(scale=2, per_image=True)({'gt': gt}, 5)['lq']
    assert not torch.equal(own[0], own[1])


NOISY = {'scale': 4, 'isotropic': False, 'noise': [0, 25], 'per_image': True}


def test_seed_and_iteration_decide_and_nothing_else_does():
    gt = torch.rand(2, 3, 32, 32)
    first = BlurNoiseDownsample(**NOISY, seed=7)({'gt': gt}, 11)
    assert first['gt'] is gt
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    make = BlurNoiseDownsample(**NOISY, seed=7)
    make({'gt': gt}, 3)
    assert torch.equal(make({'gt': gt}, 11)['lq'], first['lq'])
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all() and random.getstate() == state[2]
    assert not torch.equal(make({'gt': gt}, 12)['lq'], first['lq'])
    assert not torch.equal(BlurNoiseDownsample(**NOISY, seed=8)({'gt': gt}, 11)['lq'], first['lq'])


class Photos(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))


def test_the_same_seed_gives_the_same_batches_whatever_the_number_of_workers():
    make = BlurNoiseDownsample(**NOISY, seed=1)
    runs = [
        [make({'gt': gt}, i)['lq'] for i, gt in enumerate(DataLoader(Photos(), batch_size=2, num_workers=workers))]
        for workers in (0, 1, 2)
    ]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


@pytest.mark.gpu
def test_another_device_gives_the_same_batch_within_rounding_but_for_the_noise():
    gt = torch.rand(2, 3, 64, 64)
    make = BlurNoiseDownsample(**{**NOISY, 'noise': 0})
    difference = (make({'gt': gt}, 1)['lq'] - make({'gt': gt.cuda()}, 1)['lq'].cpu()).abs()
    assert difference.max() < 1.01 / 255 and (difference > 0).float().mean() < 0.001
    make, gt = BlurNoiseDownsample(**NOISY), gt.cuda()
    torch.cuda.set_sync_debug_mode('error')
    try:
        noisy = [make({'gt': gt}, iteration)['lq'] for iteration in (1, 1, 2)]
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[0], noisy[2])


def test_half_precision_and_luminance_pass_through():
    assert BlurNoiseDownsample(scale=2, noise=5)({'gt': torch.rand(2, 1, 32, 32)}, 0)['lq'].shape == (2, 1, 16, 16)
    assert BlurNoiseDownsample(scale=2)({'gt': torch.rand(1, 3, 32, 32).bfloat16()}, 0)['lq'].dtype == torch.bfloat16


def split_over_ranks(make, batch, iteration, monkeypatch, world_size):
    """What the ranks make of their parts of a batch, put together."""
    parts = []
    for rank in range(world_size):
        for name in ('registry', 'blur_noise'):
            monkeypatch.setattr(f'pisr_plugin.degradations.{name}.get_dist_info', lambda rank=rank: (rank, world_size))
        share = {key: value.chunk(world_size)[rank] for key, value in batch.items()}
        parts.append(make(share, iteration)['lq'])
    return torch.cat(parts)


@pytest.mark.parametrize('per_image', [True, False])
@pytest.mark.parametrize('isotropic', [True, False])
def test_ranks_together_make_the_batch_of_one_process(monkeypatch, per_image, isotropic):
    make = BlurNoiseDownsample(scale=2, noise=[0, 25], per_image=per_image, isotropic=isotropic, seed=3)
    batch = {'gt': torch.rand(6, 3, 32, 32)}
    whole = make(batch, 5)['lq']
    for world_size in (2, 3):
        assert torch.equal(split_over_ranks(make, batch, 5, monkeypatch, world_size), whole)


# -------------------------------------------------------------------------------------------------- options


def test_options_build_it():
    options = {'type': 'BlurNoiseDownsample', 'kernel_size': 13, 'sigma': 1.5, 'noise': [0, 25], 'downsample': 'direct'}
    make = build_degradation(options, scale=2, seed=5)
    assert (make.kernel_size, make.sigma, make.noise, make.seed) == (13, (1.5, 1.5), (0, 25), 5)
    assert options['type'] == 'BlurNoiseDownsample'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'type': 'BlurNoise'}, "degradation.type: 'BlurNoise' is not registered. Did you mean 'BlurNoiseDownsample'?"),
        ({}, 'degradation.type: None is not registered'),
        ({'kernel_size': 20}, r'kernel_size: impossible value \(found 20\). Expected an odd number'),
        ({'sigma': [4, 0.2]}, r'sigma: impossible value \(found \[4, 0.2\]\)'),
        ({'sigma': 0}, r'sigma: impossible value \(found 0\)'),
        ({'noise': -1}, r'noise: impossible value \(found -1\)'),
        ({'noise': float('nan')}, r'noise: impossible value \(found nan\)'),
        ({'sigma': [1, float('inf')]}, r'sigma: impossible value \(found \[1, inf\]\)'),
        ({'sigma': 'wide'}, r"sigma: impossible value \(found 'wide'\)"),
        ({'sigma': True}, r'sigma: impossible value \(found True\)'),
        (
            {'downsample': 'bilinear'},
            r"downsample: unknown value \(found 'bilinear'\). Expected one of 'bicubic', 'direct'",
        ),
        ({'sigmas': 2}, "unexpected keyword argument 'sigmas'"),
    ],
)
def test_impossible_options_are_refused_by_name(options, message):
    kind = {} if not options or 'type' in options else {'type': 'BlurNoiseDownsample'}
    with pytest.raises(OptionsError, match=message):
        build_degradation({**kind, **options}, scale=2)


def test_one_new_file_adds_a_degradation(tmp_path, monkeypatch):
    """The package only calls import_modules, as the packages of degradations and of datasets do."""
    package = tmp_path / 'my_degradations'
    package.mkdir()
    package.joinpath('__init__.py').write_text(
        'from pisr_plugin.utils.registration import import_modules\n\nimport_modules(__name__)\n'
    )
    package.joinpath('sharp.py').write_text(
        'from pisr_plugin.degradations.registry import DEGRADATION_REGISTRY\n\n\n'
        '@DEGRADATION_REGISTRY.register()\n'
        'class Sharp:\n'
        '    def __init__(self, *, scale, seed=0):\n'
        '        self.scale = scale\n\n'
        '    def __call__(self, batch, iteration):\n'
        "        return {'lq': batch['gt'][..., :: self.scale, :: self.scale], 'gt': batch['gt']}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module('my_degradations')
    try:
        assert build_degradation({'type': 'Sharp'}, scale=2)({'gt': torch.ones(1, 3, 4, 4)}, 1)['lq'].shape[-1] == 2
    finally:
        DEGRADATION_REGISTRY._obj_map.pop('Sharp')


@pytest.mark.parametrize('package', ['pisr_plugin.degradations', 'pisr_plugin.data.datasets'])
def test_packages_import_all_their_modules(package):
    folder = Path(importlib.import_module(package).__file__).parent
    names = {path.stem for path in folder.glob('[!_]*.py')}
    assert names and all(f'{package}.{name}' in sys.modules for name in names)


def test_images_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match='multiples of 4, but got 30x32'):
        BlurNoiseDownsample(scale=4)({'gt': torch.rand(1, 3, 30, 32)}, 0)
