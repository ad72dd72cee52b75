"""Luminance: equal to BasicSR's within one unit in the last place, and to itself on every path."""

import numpy as np
import pytest
import torch

from pisr_plugin.data.luma import luma, luma_tensor


def every_fifth_colour():
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels, indexing='ij'), -1).reshape(52 * 52, 52, 3)


@pytest.mark.parametrize('make', [every_fifth_colour, lambda: np.random.default_rng(0).integers(0, 256, (300, 400, 3))])
def test_equals_basicsr_and_its_own_other_form(make):
    from basicsr.utils import bgr2ycbcr

    img = make().astype(np.uint8)
    expected = bgr2ycbcr(img[..., ::-1].astype(np.float32) / 255.0, y_only=True)
    found = np.empty(img.shape[:2], np.float32)
    luma(img, found, np.empty((4, *img.shape[:2]), np.float32))
    assert np.abs(found.astype(np.float64) - expected).max() <= 1e-7
    tensor = luma_tensor(torch.from_numpy(img).permute(2, 0, 1)[None])
    assert tensor.shape == (1, 1, *img.shape[:2])
    assert np.array_equal(tensor[0, 0].numpy(), found)


def test_takes_a_view_that_cannot_be_written():
    img = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    img.flags.writeable = False
    crop, whole, part = img[3:11, 5:20], np.empty((20, 30), np.float32), np.empty((8, 15), np.float32)
    luma(img, whole, np.empty((4, 20, 30), np.float32))
    luma(crop, part, np.empty((4, 8, 15), np.float32))
    assert np.array_equal(part, whole[3:11, 5:20])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_gpu_gives_the_same_bits():
    img = torch.from_numpy(every_fifth_colour()).permute(2, 0, 1)[None]
    assert torch.equal(luma_tensor(img.cuda()).cpu(), luma_tensor(img))
