"""LPIPS and DISTS get the pictures they are about; piq itself and its weights are not tested here."""

import sys
import types

import numpy as np
import pytest
import torch

from pisr_plugin.evaluation.measure import ModelDescriptor, measure
from pisr_plugin.evaluation.protocol import PROTOCOLS
from pisr_plugin.evaluation.test_images import read_images
from pisr_plugin.metrics import perceptual
from pisr_plugin.metrics.perceptual import calculate_dists, calculate_lpips
from pisr_plugin.utils.errors import InstallError
from tests.conftest import make_images


@pytest.fixture
def seen(monkeypatch):
    """A stand-in for piq that notes what it gets."""
    pairs = []

    class Distance(torch.nn.Module):
        def forward(self, x, y):
            pairs.append((x, y))
            return (x - y).abs().mean()

    monkeypatch.setitem(sys.modules, 'piq', types.SimpleNamespace(LPIPS=Distance, DISTS=Distance))
    perceptual._model.cache_clear()
    yield pairs
    perceptual._model.cache_clear()


def test_images_come_as_rgb_without_border(seen):
    img = np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8)
    assert calculate_lpips(img, img, crop_border=2) == calculate_dists(img, img, crop_border=2) == 0
    expected = torch.from_numpy(img[2:-2, 2:-2, ::-1].astype(np.float32) / 255).permute(2, 0, 1)[None]
    assert torch.equal(seen[0][0], expected)


def test_a_luminance_network_is_judged_by_its_colour_pictures(seen, tmp_path):
    make_images(tmp_path, 1)
    data = {'name': 'toy', 'dataroot_gt': str(tmp_path / 'HR'), 'dataroot_lq': str(tmp_path / 'LR_bicubic/X2')}
    metrics = {'lpips': {'type': 'calculate_lpips'}, 'psnr': {'type': 'calculate_psnr'}}
    result = measure(ModelDescriptor('bicubic', None, 1, 2), data, PROTOCOLS['basicsr'], metrics)
    (sample,) = read_images(data)
    truth = torch.from_numpy(sample.gt.astype(np.float32) / 255).permute(2, 0, 1)[None, :, 2:-2, 2:-2]
    assert torch.equal(seen[0][1], truth) and seen[0][0].shape == truth.shape
    assert set(result.mean) == {'lpips', 'psnr'} and result.mean['lpips'] > 0


def test_grey_is_refused_and_a_missing_package_named(monkeypatch):
    with pytest.raises(ValueError, match='must be'):
        calculate_lpips(np.zeros((9, 9, 1)), np.zeros((9, 9, 1)), crop_border=0)
    monkeypatch.setitem(sys.modules, 'piq', None)
    perceptual._model.cache_clear()
    with pytest.raises(InstallError, match='pip install piq'):
        calculate_dists(np.zeros((9, 9, 3)), np.zeros((9, 9, 3)), crop_border=0)
