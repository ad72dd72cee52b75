"""Luminance of 8-bit RGB images (BT.601, as MATLAB's ``rgb2ycbcr``), on the host and on any device.

Y = (65.481 R + 128.553 G + 24.966 B) / 255**2 + 16 / 255. The weights have a common divisor: they are 0.219 times 299,
587 and 114. So a sum with whole weights is exact in float32, in any order, and only its scaling rounds. BasicSR divides
by 255 before it weights; over all 2**24 colours the two differ by at most one unit in the last place, 6e-8.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

# Times 63, which leaves the sum below 2**24 and makes the factor for it a number that float32 holds to 2e-9.
_WEIGHTS = (63 * 299, 63 * 587, 63 * 114)
_FACTOR = 0.219 / 255**2 / 63
_OFFSET = torch.tensor(16 / 255, device='cpu')  # as a tensor of no dimensions it goes with those of any device

_ROW = np.array([[*_WEIGHTS, 0]], np.float32)  # as cv2.transform takes them


class Luma:
    """The luminance of images of one size, one by one; it holds arrays to work in, as to allocate them takes longer.

    Args:
        height: Height of the images.
        width: Their width.
    """

    def __init__(self, height: int, width: int) -> None:
        self._float = torch.empty(height, width, 3)
        self._array = self._float.numpy()
        self._sum = torch.empty(height, width)
        self._sum_array = self._sum.numpy()

    def __call__(self, img: Tensor, out: Tensor) -> None:
        """Writes the luminance of an image into another tensor.

        Args:
            img: RGB image of shape (H, W, 3), uint8.
            out: Where to write it, (H, W), float32; values from 16/255 to 235/255.
        """
        self._float.copy_(img)
        cv2.transform(self._array, _ROW, self._sum_array)
        torch.add(_OFFSET, self._sum, alpha=_FACTOR, out=out)


def luma_tensor(img: Tensor) -> Tensor:
    """The luminance of images on their device.

    Args:
        img: RGB images of shape (..., 3, H, W), uint8.

    Returns:
        Tensor of shape (..., 1, H, W), float32; values from 16/255 to 235/255.
    """
    wide = img.float()
    red, green, blue = (wide.narrow(-3, channel, 1) * weight for channel, weight in enumerate(_WEIGHTS))
    return torch.add(_OFFSET, red + green + blue, alpha=_FACTOR)
