"""Resizing against closed forms, an obvious slow version, and BasicSR's."""

import math

import numpy as np
import pytest
import torch

from pisr_plugin.archs.bicubic_arch import Bicubic
from pisr_plugin.utils.resize import bicubic_upsample, imresize, imresize_uint8

SCALES = [2, 3, 4, 1 / 2, 1 / 3, 1 / 4]
ODD_SCALES = [1, 1.5, 0.75, 2 / 3]


def cubic(x):
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def weights(size, scale):
    """The matrix (out, in) of MATLAB's resizing, tap by tap."""
    out_size = math.ceil(round(size * scale, 9))
    matrix = np.zeros((out_size, size))
    stretch = min(1, scale)
    for out in range(out_size):
        centre = (out + 0.5) / scale - 0.5
        taps = range(math.floor(centre - 2 / stretch), math.ceil(centre + 2 / stretch) + 1)
        row = [cubic((tap - centre) * stretch) for tap in taps]
        for tap, weight in zip(taps, row):
            mirrored = tap % (2 * size)
            matrix[out, min(mirrored, 2 * size - 1 - mirrored)] += weight / sum(row)
    return matrix


@pytest.mark.parametrize('scale', SCALES + ODD_SCALES)
@pytest.mark.parametrize('size', [(24, 36), (17, 29), (3, 1), (1, 4)])
def test_agrees_with_the_sum_over_taps(scale, size):
    x = np.random.default_rng(0).random((2, *size))
    expected = weights(size[0], scale) @ x @ weights(size[1], scale).T
    found = imresize(torch.from_numpy(x), scale).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-12


@pytest.mark.parametrize('scale', SCALES)
def test_constant_image_stays_constant(scale):
    assert (imresize(torch.full((1, 13, 10), 0.3, dtype=torch.float64), scale) - 0.3).abs().max() < 1e-12
    assert (imresize_uint8(np.full((13, 10, 3), 77, np.uint8), scale) == 77).all()


@pytest.mark.parametrize('scale', SCALES)
def test_ramp_stays_a_ramp_inside(scale):
    ramp = torch.arange(40.0, dtype=torch.float64).expand(1, 40, 40)
    found = imresize(ramp, scale)[0, 5]
    expected = (torch.arange(len(found)) + 0.5) / scale - 0.5  # pixel centres in coordinates of the input
    inside = (expected > 2 / min(1, scale)) & (expected < 39 - 2 / min(1, scale))
    assert inside.sum() >= 5
    assert torch.allclose(found[inside], expected[inside].double(), atol=1e-5)


@pytest.mark.parametrize('scale', SCALES)
def test_a_single_pixel_shows_the_kernel(scale):
    x = torch.zeros(1, 48, 48, dtype=torch.float64)
    x[0, :, 24] = 1
    found = imresize(x, scale)[0, 0]
    stretch = min(1, scale)
    expected = [stretch * cubic(((out + 0.5) / scale - 0.5 - 24) * stretch) for out in range(len(found))]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_keeps_leading_dimensions_dtype_and_device():
    x = torch.rand(2, 4, 3, 9, 7)
    found = imresize(x, 1 / 2)
    assert found.shape == (2, 4, 3, 5, 4)
    assert torch.equal(found[1, 2], imresize(x[1, 2], 1 / 2))
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        small = imresize(x[0, 0].to(dtype), 3)
        assert (small.dtype, small.device) == (dtype, x.device)


@pytest.mark.gpu
def test_a_gpu_computes_the_same():
    x = torch.rand(2, 3, 9, 7)
    on_gpu = imresize(x.cuda(), 1 / 3)
    assert on_gpu.is_cuda
    assert torch.allclose(on_gpu.cpu(), imresize(x, 1 / 3), atol=1e-5)


@pytest.mark.parametrize('scale', [2, 1 / 3])
def test_gradient(scale):
    x = torch.rand(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: imresize(x, scale), (x,))


@pytest.mark.parametrize('scale', [2, 4, 1 / 2, 1 / 4])  # here all weights are dyadic, so that sums are exact
@pytest.mark.parametrize('size', [(24, 36), (17, 29)])
def test_uint8_rounds_and_clips_after_rows_and_after_columns(scale, size):
    def rounded(x):
        return np.clip(np.floor(x + 0.5), 0, 255)

    img = np.random.default_rng(1).choice(np.array([0, 255, 90, 91], np.uint8), (*size, 3))  # edges that overshoot
    rows = rounded(np.einsum('oh,hwc->owc', weights(size[0], scale), img))
    expected = rounded(np.einsum('ow,hwc->hoc', weights(size[1], scale), rows))
    assert np.array_equal(imresize_uint8(img, scale), expected)


def test_uint8_by_3_is_at_most_one_level_from_the_sum_over_taps():
    img = np.random.default_rng(2).integers(90, 160, (31, 22), dtype=np.uint8)
    rows = np.floor(weights(31, 1 / 3) @ img + 0.5)
    expected = np.floor(rows @ weights(22, 1 / 3).T + 0.5)
    difference = np.abs(imresize_uint8(img, 1 / 3) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.05  # sums that end in .5 but for the last bit


def test_uint8_rounds_half_away_from_zero():
    stripes = np.tile(np.array([[0], [1]], np.uint8), (8, 8))  # halves of shrinking are 0.5: half to even would give 0
    assert (imresize_uint8(stripes, 1 / 2)[2:-2] == 1).all()


@pytest.mark.parametrize(
    'call, error, told',
    [
        (lambda: imresize(torch.zeros(1, 4, 4, dtype=torch.uint8), 2), TypeError, 'torch.uint8'),
        (lambda: imresize(torch.zeros(4, 4), 2), ValueError, r'\(4, 4\)'),
        (lambda: imresize(torch.zeros(1, 4, 4), 0), ValueError, 'got 0'),
        (lambda: imresize(torch.zeros(1, 4, 4), -2), ValueError, 'got -2'),
        (lambda: imresize(torch.zeros(1, 4, 4), math.pi), ValueError, 'ratio'),
        (lambda: imresize_uint8(np.zeros((4, 4)), 2), TypeError, 'float64'),
        (lambda: imresize_uint8(np.zeros(4, np.uint8), 2), ValueError, r'\(4,\)'),
    ],
)
def test_mistakes_are_named(call, error, told):
    with pytest.raises(error, match=told):
        call()


@pytest.mark.parametrize('scale', SCALES)
def test_agrees_with_basicsr(scale):
    from basicsr.utils import matlab_functions as stock

    x = torch.rand(3, 24, 36, generator=torch.Generator().manual_seed(0))
    # BasicSR computes positions in float32
    assert (imresize(x, scale) - stock.imresize(x, scale)).abs().max() < 5e-6


def test_bicubic_is_a_network_without_parameters():
    from basicsr.utils.registry import ARCH_REGISTRY

    from pisr_plugin.archs.bicubic_arch import Bicubic

    net = ARCH_REGISTRY.get('Bicubic')(upscale=3, num_in_ch=1, num_out_ch=1)
    x = torch.rand(2, 1, 5, 8)
    assert type(net) is Bicubic
    assert net.state_dict() == {}
    torch.testing.assert_close(net(x), imresize(x, 3), rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match='num_out_ch'):
        Bicubic(upscale=2, num_in_ch=3, num_out_ch=1)


@pytest.mark.parametrize('scale', [2, 3, 4, 5])
@pytest.mark.parametrize('size', [(1, 1), (1, 7), (2, 3), (9, 14)], ids=str)
def test_enlarge_is_imresize(scale, size):
    x = torch.rand(2, 3, *size, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(bicubic_upsample(x, scale), imresize(x, scale), rtol=0, atol=1e-14)
    weights = torch.rand(2, 3, size[0] * scale, size[1] * scale, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((bicubic_upsample(x, scale) * weights).sum(), x)
    (expected,) = torch.autograd.grad((imresize(x, scale) * weights).sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-13)
    half = x.detach().bfloat16()
    assert bicubic_upsample(half, scale).dtype == torch.bfloat16
    torch.testing.assert_close(bicubic_upsample(half, scale), imresize(half, scale), rtol=0.01, atol=0.01)


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_exported_upsampling_is_a_transposed_convolution_with_the_same_values(scale):
    x, net = torch.rand(2, 3, 5, 7, dtype=torch.float64), Bicubic(upscale=scale)
    program = torch.export.export(net, (x,))
    called = [str(node.target) for node in program.graph.nodes]
    assert sum('conv_transpose' in name for name in called) == 2 and not any('stack' in name for name in called)
    torch.testing.assert_close(program.module()(x), imresize(x, scale), rtol=0, atol=1e-14)
