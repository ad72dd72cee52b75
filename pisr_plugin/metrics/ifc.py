"""Information fidelity criterion (IFC): information that an image shares with the ground truth, in wavelet bands.

Sheikh, Bovik, de Veciana: An Information Fidelity Criterion for Image Quality Assessment Using Natural Scene
Statistics (IEEE TIP 2005), with the parameters of the LIVE laboratory's ``ifcvec``, by which tables of
super-resolution are made: a steerable pyramid of 4 levels, two orthogonal bands of each, vectors of 3 x 3 coefficients.
"""

from __future__ import annotations

import math

import numpy as np
from basicsr.metrics.metric_util import reorder_image, to_y_channel
from basicsr.utils.registry import METRIC_REGISTRY
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import uniform_filter

from pisr_plugin.utils.errors import InstallError
from pisr_plugin.utils.resize import crop_to_multiple

LEVELS = 4
BANDS = (0, 3)  # two orthogonal orientations of the six
BLOCK = 3
SMALLEST = 72  # pixels: the filters have 9 at the coarsest level, an eighth of the size
FLAT = 1e-15  # a variance below this counts as 0
NOISE = 1e-10  # keeps the information of an undistorted image finite


@METRIC_REGISTRY.register()
def calculate_ifc(
    img: np.ndarray,
    img2: np.ndarray,
    crop_border: int,
    input_order: str = 'HWC',
    test_y_channel: bool = False,
    **_: object,  # BasicSR passes the option ``better`` on
) -> float:
    """Information fidelity criterion in bits per pixel; higher is better.

    Not symmetric, unbounded, and large but finite for equal images. The published tables round both images to 8 bit on
    Y, as one-channel images are; Y of a colour image is not rounded here, like in BasicSR's PSNR. Needs ``pyrtools``.

    .. code-block:: yaml

        ifc: {type: calculate_ifc, crop_border: 2, test_y_channel: true, better: higher}

    Args:
        img: Reconstruction, range 0..255, shape (H, W), (H, W, C) or (C, H, W), BGR if it has three channels.
        img2: Ground truth of the same shape.
        crop_border: Pixels cut from each border; at least 72 pixels a side must remain.
        input_order: ``'HWC'`` | ``'CHW'``.
        test_y_channel: Whether to compare Y of BT.601; otherwise the mean over channels is returned.

    Raises:
        ValueError: shapes differ or are too small, or ``input_order`` is unknown.
        InstallError: pyrtools is missing.
    """
    if img.shape != img2.shape:
        raise ValueError(f'calculate_ifc: img has shape {img.shape}, img2 {img2.shape}; they must be equal')
    pair = []
    for image in (img, img2):
        image = reorder_image(image, input_order=input_order)
        image = image[crop_border : image.shape[0] - crop_border, crop_border : image.shape[1] - crop_border]
        pair.append((to_y_channel(image) if test_y_channel else image).astype(np.float64))
    test, reference = pair
    if min(reference.shape[:2]) < SMALLEST:
        raise ValueError(
            f'calculate_ifc: {reference.shape[0]} x {reference.shape[1]} pixels are left of {img.shape} without a '
            f'border of {crop_border}; needed are {SMALLEST} a side'
        )
    return float(np.mean([_ifc(reference[..., c], test[..., c]) for c in range(reference.shape[2])]))


def _ifc(reference: np.ndarray, test: np.ndarray) -> float:
    references, tests = _pyramid(reference), _pyramid(test)
    bits = 0.0
    for level in range(LEVELS):
        window = 2 ** (LEVELS - level) + 1  # covers about the same part of the image at each level
        rim = math.ceil((window - 1) / 2 / BLOCK)  # blocks whose windows cross the border
        inner = (slice(rim, -rim), slice(rim, -rim))
        for band in BANDS:
            x, y = (crop_to_multiple(pyramid[level, band], BLOCK) for pyramid in (references, tests))
            gain, noise = (values[inner] for values in _distortion(x, y, window))
            field, eigenvalues = _source(x)
            signal = gain**2 * field[inner] / (noise + NOISE)
            bits += np.log2(1 + signal[..., None] * eigenvalues).sum()
    return bits / reference.size


def _pyramid(image: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Returns the bands by (level, orientation), the finest level first."""
    try:
        from pyrtools.pyramids import SteerablePyramidSpace
    except ImportError:
        raise InstallError(
            'calculate_ifc takes its filters from pyrtools, which is missing: pip install pyrtools'
        ) from None
    return SteerablePyramidSpace(image, height=LEVELS, order=5, edge_type='reflect1').pyr_coeffs


def _source(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the Gaussian scale mixture of a reference band: its field (one value a block) and its eigenvalues."""
    blocks = sliding_window_view(x, (BLOCK, BLOCK))
    vectors = blocks.reshape(-1, BLOCK**2)
    covariance = np.cov(vectors, rowvar=False, bias=True)
    vectors = blocks[::BLOCK, ::BLOCK].reshape(-1, BLOCK**2)
    # The pseudo-inverse, because the covariance of a flat image cannot be inverted.
    field = np.einsum('ni,ij,nj->n', vectors, np.linalg.pinv(covariance, hermitian=True), vectors) / BLOCK**2
    rows, columns = (side // BLOCK for side in x.shape)
    return field.reshape(rows, columns), np.linalg.eigvalsh(covariance).clip(min=0)


def _distortion(x: np.ndarray, y: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns gain g and noise variance v of y = g x + noise, by least squares in a window around each block."""

    def mean(values: np.ndarray) -> np.ndarray:
        middle = BLOCK // 2
        return uniform_filter(values, window, mode='mirror')[middle::BLOCK, middle::BLOCK]

    count, mean_x, mean_y = window**2, mean(x), mean(y)
    covariance = count * (mean(x * y) - mean_x * mean_y)
    power_x = (count * (mean(x * x) - mean_x**2)).clip(min=0)
    power_y = (count * (mean(y * y) - mean_y**2)).clip(min=0)
    gain = covariance / (power_x + FLAT)
    noise = (power_y - gain * covariance) / count
    # Without gain there is no information, whatever the noise is.
    gain = np.where((gain < 0) | (power_x < FLAT) | (power_y < FLAT), 0, gain)
    return gain, noise.clip(min=FLAT)
