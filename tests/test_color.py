"""Luminance: equal to BasicSR's within one unit in the last place, and to itself on every path."""

import numpy as np
import pytest
import torch

from pisr_plugin.utils.color import RGBToY, rgb_to_y


def every_fifth_colour():
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels, indexing='ij'), -1).reshape(52 * 52, 52, 3)


@pytest.mark.parametrize('make', [every_fifth_colour, lambda: np.random.default_rng(0).integers(0, 256, (300, 400, 3))])
def test_equals_basicsr_and_its_own_other_form(make):
    from basicsr.utils import bgr2ycbcr

    img = make().astype(np.uint8)
    expected = bgr2ycbcr(img[..., ::-1].astype(np.float32) / 255.0, y_only=True)
    found = torch.empty(img.shape[:2])
    RGBToY(*img.shape[:2])(torch.from_numpy(img), found)
    assert np.abs(found.double().numpy() - expected).max() <= 1e-7
    tensor = rgb_to_y(torch.from_numpy(img).permute(2, 0, 1)[None])
    assert tensor.shape == (1, 1, *img.shape[:2])
    assert torch.equal(tensor[0, 0], found)


@pytest.mark.gpu
def test_gpu_gives_the_same_bits():
    img = torch.from_numpy(every_fifth_colour()).permute(2, 0, 1)[None]
    assert torch.equal(rgb_to_y(img.cuda()).cpu(), rgb_to_y(img))
