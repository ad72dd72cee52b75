"""IFC against a slow reference that follows the definition block by block, published rows, and its laws."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_metric
from basicsr.utils.registry import METRIC_REGISTRY

from pisr_plugin.metrics.ifc import calculate_ifc
from pisr_plugin.utils.errors import InstallError
from pisr_plugin.utils.resize import imresize


def image(height: int = 96, width: int = 112, seed: int = 0) -> np.ndarray:
    """A texture with detail at all scales, range 0..255."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width))
    for step in (1, 2, 4, 8, 16):
        coarse = random.standard_normal((-(-height // step), -(-width // step)))
        total += step * np.kron(coarse, np.ones((step, step)))[:height, :width]
    return (127.5 + 127.5 * total / np.abs(total).max()).round().astype(np.uint8)


def distorted(img: np.ndarray, scale: int = 2) -> np.ndarray:
    x = torch.from_numpy(img / 255.0)[None]
    y = imresize(imresize(x, 1 / scale), scale)[0, : img.shape[0], : img.shape[1]]
    return (y.clamp(0, 1) * 255).round().numpy().astype(np.uint8)


# -------------------------------------------------------------------------------------------------- the reference


def correlate(x: np.ndarray, taps: np.ndarray) -> np.ndarray:
    reach = taps.shape[0] // 2
    padded, out = np.pad(x, reach, mode='reflect'), np.zeros(x.shape)
    for i, j in np.ndindex(taps.shape):
        out += taps[i, j] * padded[i : i + x.shape[0], j : j + x.shape[1]]
    return out


def octant(rows: list[list[float]]) -> np.ndarray:
    """A filter that is symmetric under transposition and both mirrorings, from its upper octant."""
    side = 2 * len(rows) - 1
    out = np.zeros((side, side))
    for i, j in np.ndindex(side, side):
        a, b = sorted((min(i, side - 1 - i), min(j, side - 1 - j)))
        out[i, j] = rows[a][b - a]
    return out


LOW_0 = octant([[0.00341614, -0.01551246, -0.03848215], [0.05586982, 0.15925570], [0.40304148]])
LOW = octant(
    [
        [0.00170808, -0.00489834, -0.00775624, -0.01888864, -0.01924108],
        [-0.01046562, -0.01322234, 0.00821200, 0.02005976],
        [0.02793492, 0.06554076, 0.07962786],
        [0.12852666, 0.16339236],
        [0.20193080],
    ]
)
COLUMNS = np.array(
    [
        [0.00277643, 0.00496194, 0.01026699, 0.01455399],
        [-0.00986904, -0.00893064, 0.01189859, 0.02755155],
        [-0.01021852, -0.03075356, -0.08226445, -0.11732297],
    ]
)
UPPER = np.vstack([COLUMNS, np.zeros((1, 4)), -COLUMNS[::-1]]).T
BAND_1 = np.vstack([UPPER, UPPER[-2::-1]])
BAND_4 = -BAND_1.T


def bands(img: np.ndarray) -> list[tuple[int, np.ndarray]]:
    low, out = correlate(img.astype(float), LOW_0), []
    for window in (17, 9, 5, 3):
        out += [(window, correlate(low, BAND_1)), (window, correlate(low, BAND_4))]
        low = correlate(low, LOW)[::2, ::2]
    return out


def reference_ifc(reference: np.ndarray, test: np.ndarray) -> float:
    total = 0.0
    for (window, x), (_, y) in zip(bands(reference), bands(test)):
        rows, columns = x.shape[0] // 3, x.shape[1] // 3
        x, y, reach = x[: 3 * rows, : 3 * columns], y[: 3 * rows, : 3 * columns], window // 2
        blocks = np.array([x[i : i + 3, j : j + 3].ravel() for i, j in np.ndindex(x.shape[0] - 2, x.shape[1] - 2)])
        covariance = sum(np.outer(b, b) for b in blocks - blocks.mean(0)) / len(blocks)
        inverse, eigenvalues = np.linalg.inv(covariance), np.linalg.eigvalsh(covariance)
        wide_x, wide_y = np.pad(x, reach, mode='reflect'), np.pad(y, reach, mode='reflect')
        rim = -(-reach // 3)
        for i, j in np.ndindex(rows, columns):
            if min(i, j, rows - 1 - i, columns - 1 - j) < rim:
                continue
            at = (slice(3 * i + 1, 3 * i + 1 + window), slice(3 * j + 1, 3 * j + 1 + window))
            a, b = wide_x[at] - wide_x[at].mean(), wide_y[at] - wide_y[at].mean()
            g = (a * b).sum() / ((a * a).sum() + 1e-15)
            v = ((b * b).sum() - g * (a * b).sum()) / window**2
            if g < 0:
                g, v = 0, (b * b).sum()
            vector = x[3 * i : 3 * i + 3, 3 * j : 3 * j + 3].ravel()
            s = vector @ inverse @ vector / 9
            total += sum(np.log2(1 + g * g * s * e / (max(v, 1e-15) + 1e-10)) for e in eigenvalues)
    return total / reference.size


# -------------------------------------------------------------------------------------------------- tests


def test_it_is_registered_and_takes_what_validation_passes():
    pytest.importorskip('pyrtools')
    assert METRIC_REGISTRY.get('calculate_ifc') is calculate_ifc
    gt = image()[..., None]
    sr = distorted(gt[..., 0])[..., None]
    option = {'type': 'calculate_ifc', 'crop_border': 2, 'test_y_channel': True, 'better': 'higher'}
    value = calculate_metric({'img': sr, 'img2': gt}, option)
    assert isinstance(value, float) and value == calculate_ifc(sr, gt, 2)
    assert value == calculate_ifc(sr.transpose(2, 0, 1), gt.transpose(2, 0, 1), 2, input_order='CHW')
    assert value == calculate_ifc(sr[2:-2, 2:-2, 0], gt[2:-2, 2:-2, 0], 0)


@pytest.mark.parametrize('size', [(96, 112), (72, 77), (101, 83)])
def test_it_is_what_the_definition_says(size):
    pytest.importorskip('pyrtools')
    gt = image(*size)
    sr = distorted(gt)
    # Taps here have 8 digits. The unrelated image has windows of negative correlation.
    for test in (sr, image(*size, seed=1)):
        assert calculate_ifc(test, gt, 0) == pytest.approx(reference_ifc(gt, test), rel=1e-5)


def test_it_orders_distortions_and_is_finite_for_equal_images():
    pytest.importorskip('pyrtools')
    gt = image()
    values = [calculate_ifc(img, gt, 0) for img in (gt, distorted(gt, 2), distorted(gt, 3), distorted(gt, 4))]
    assert values == sorted(values, reverse=True) and np.isfinite(values).all() and values[-1] > 0


def test_flat_and_unrelated_images_tell_nothing():
    pytest.importorskip('pyrtools')
    gt, flat = image(), np.full((96, 112), 90, np.uint8)
    assert calculate_ifc(flat, gt, 0) == 0
    assert calculate_ifc(gt, flat, 0) == pytest.approx(0, abs=1e-6)
    assert calculate_ifc(image(seed=1), gt, 0) < 0.1 * calculate_ifc(distorted(gt), gt, 0)


def test_colour_is_compared_on_y_or_as_the_mean_of_the_channels():
    pytest.importorskip('pyrtools')
    gt = np.stack([image(seed=i) for i in range(3)], -1)
    sr = np.stack([distorted(gt[..., i]) for i in range(3)], -1)
    y = [x @ [24.966, 128.553, 65.481] / 255 + 16 for x in (sr.astype(float), gt.astype(float))]
    assert calculate_ifc(sr, gt, 4, test_y_channel=True) == pytest.approx(calculate_ifc(*y, 4), rel=1e-4)
    channels = [calculate_ifc(sr[..., i], gt[..., i], 4) for i in range(3)]
    assert calculate_ifc(sr, gt, 4) == pytest.approx(np.mean(channels), rel=1e-12)


def test_what_cannot_be_compared_is_named():
    gt = image()
    with pytest.raises(ValueError, match=r'img has shape \(96, 111\), img2 \(96, 112\)'):
        calculate_ifc(gt[:, 1:], gt, 0)
    with pytest.raises(ValueError, match='64 x 80 pixels are left.*border of 16; needed are 72 a side'):
        calculate_ifc(gt, gt, 16)
    with pytest.raises(ValueError, match='input_order'):
        calculate_ifc(gt, gt, 0, input_order='WHC')


def test_without_pyrtools_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith('pyrtools'):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(InstallError, match='pyrtools, which is missing: pip install pyrtools'):
        calculate_ifc(image(), image(), 0)
