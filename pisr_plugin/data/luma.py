"""Luminance of 8-bit RGB images (BT.601, as MATLAB's ``rgb2ycbcr``), the same to the last bit on every device.

Y = (65.481 R + 128.553 G + 24.966 B) / 255**2 + 16 / 255. In plain float32 arithmetic its error depends on the order
of the sum and reaches two units in the last place. Here each weight is split into multiples of 2**-24 and a small rest
in multiples of 2**-39. Both sums are exact in float32 in any order, so only the last addition rounds. BasicSR divides
by 255 before it weights, and so differs by at most one unit, 6e-8.
"""

from __future__ import annotations

import cv2
import numpy as np
from torch import Tensor

_WEIGHTS = np.array([65.481 / 255**2, 128.553 / 255**2, 24.966 / 255**2, 16 / 255])
_COARSE = np.round(_WEIGHTS * 2**24) / 2**24
_FINE = np.round((_WEIGHTS - _COARSE) * 2**39) / 2**39
# As cv2.transform takes them, a row for each channel it makes. One row at a time: for two it is ten times slower.
_COARSE_ROW, _FINE_ROW = _COARSE.astype(np.float32)[None], _FINE.astype(np.float32)[None]


def luma(img: np.ndarray, out: np.ndarray, space: np.ndarray) -> None:
    """Writes the luminance of an image into an array.

    Args:
        img: RGB image of shape (H, W, 3), uint8; also a view into a larger one.
        out: Where to write it, (H, W), float32, contiguous; values from 16/255 to 235/255.
        space: To work in, (4, H, W), float32: to allocate it for every patch takes longer than to fill it.
    """
    wide, fine = space[:3].reshape(img.shape), space[3]
    np.copyto(wide, img)
    cv2.transform(wide, _FINE_ROW, fine)
    cv2.transform(wide, _COARSE_ROW, out)
    cv2.add(out, fine, out)


def luma_tensor(img: Tensor) -> Tensor:
    """The luminance of images on their device.

    Args:
        img: RGB images of shape (..., 3, H, W), uint8.

    Returns:
        Tensor of shape (..., 1, H, W), float32; values from 16/255 to 235/255.
    """
    wide = img.float()
    red, green, blue = (wide.narrow(-3, channel, 1) for channel in range(3))
    coarse, fine = (
        red * weights[0] + green * weights[1] + blue * weights[2] + weights[3]
        for weights in (_COARSE.tolist(), _FINE.tolist())
    )
    return coarse + fine
