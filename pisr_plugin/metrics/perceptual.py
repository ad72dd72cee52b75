"""LPIPS and DISTS, distances of deep features, computed by ``piq`` (extra ``perceptual``), which downloads weights."""

from __future__ import annotations

import functools

import numpy as np
import torch
from basicsr.utils.registry import METRIC_REGISTRY

from pisr_plugin.utils.errors import InstallError


@METRIC_REGISTRY.register()
def calculate_lpips(img: np.ndarray, img2: np.ndarray, crop_border: int, **_: object) -> float:
    """Learned perceptual image patch similarity (CVPR 2018) on VGG; lower is better.

    It compares colour pictures under every protocol.

    .. code-block:: yaml

        lpips: {type: calculate_lpips, better: lower}

    Args:
        img: Reconstruction, BGR in 0..255, shape (H, W, 3).
        img2: Ground truth of the same shape.
        crop_border: Pixels cut from each border.

    Raises:
        ValueError: an image is not in colour, or shapes differ.
        InstallError: piq is missing.
    """
    return _distance('LPIPS', img, img2, crop_border)


@METRIC_REGISTRY.register()
def calculate_dists(img: np.ndarray, img2: np.ndarray, crop_border: int, **_: object) -> float:
    """Deep image structure and texture similarity (TPAMI 2020); lower is better. As :func:`calculate_lpips`."""
    return _distance('DISTS', img, img2, crop_border)


# The evaluation reads this: these metrics get pictures, not what the protocol compares.
calculate_lpips.on_pictures = calculate_dists.on_pictures = True


def _distance(name: str, img: np.ndarray, img2: np.ndarray, border: int) -> float:
    if img.shape != img2.shape or img.ndim != 3 or img.shape[2] != 3:
        raise ValueError(f'{name}: img has shape {img.shape}, img2 {img2.shape}; both must be (H, W, 3) and equal')
    pair = []
    for image in (img, img2):
        image = image[border : image.shape[0] - border, border : image.shape[1] - border, ::-1]
        pair.append(torch.from_numpy(np.array(image, np.float32) / 255).permute(2, 0, 1)[None])
    with torch.no_grad():
        return float(_model(name)(*pair))


@functools.cache
def _model(name: str) -> torch.nn.Module:
    try:
        import piq
    except ImportError:
        raise InstallError(f'{name} needs piq, which is missing: pip install piq') from None
    return getattr(piq, name)().eval()
