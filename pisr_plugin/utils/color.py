"""Y channel of 8-bit RGB images (BT.601, as MATLAB's ``rgb2ycbcr``), on the host and on any device.

Y = (65.481 R + 128.553 G + 24.966 B) / 255**2 + 16 / 255. The weights have a common divisor: they are 0.219 times 299,
587 and 114. So float32 holds a sum with whole weights exactly, in any order, and only its scaling rounds. BasicSR
divides by 255 first; over all 2**24 colours the two differ by at most one unit in the last place, 6e-8.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

# Times 63, which leaves the sum below 2**24 and makes the factor for it a number that float32 holds to 2e-9.
_WEIGHTS = (63 * 299, 63 * 587, 63 * 114)
_FACTOR = 0.219 / 255**2 / 63
_OFFSET = torch.tensor(16 / 255, device='cpu')  # torch adds a tensor without dimensions on any device

_ROW = np.array([[*_WEIGHTS, 0]], np.float32)  # in the form that cv2.transform takes


class RGBToY:
    """Converts images of one size, one by one, in arrays that it keeps, since allocating them takes longer.

    Args:
        height: Height of the images in pixels.
        width: Width of the images in pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        self._float = torch.empty(height, width, 3)
        self._array = self._float.numpy()
        self._sum = torch.empty(height, width)
        self._sum_array = self._sum.numpy()

    def __call__(self, img: Tensor, out: Tensor) -> None:
        """Converts one image.

        Args:
            img: RGB image of shape (H, W, 3), uint8.
            out: Receives the Y channel, (H, W), float32, from 16/255 to 235/255.
        """
        self._float.copy_(img)
        cv2.transform(self._array, _ROW, self._sum_array)
        torch.add(_OFFSET, self._sum, alpha=_FACTOR, out=out)


def rgb_to_y(img: Tensor) -> Tensor:
    """Converts images on their device.

    Args:
        img: RGB images of shape (..., 3, H, W), uint8.

    Returns:
        Tensor of shape (..., 1, H, W), float32, from 16/255 to 235/255.
    """
    wide = img.float()
    red, green, blue = (wide.narrow(-3, channel, 1) * weight for channel, weight in enumerate(_WEIGHTS))
    return torch.add(_OFFSET, red + green + blue, alpha=_FACTOR)


def luminance(rgb: Tensor) -> Tensor:
    """Converts images of floating-point values on their device; differentiable.

    Args:
        rgb: RGB images of shape (..., 3, H, W) in [0, 1].

    Returns:
        Tensor of shape (..., 1, H, W), from 16/255 to 235/255.
    """
    red, green, blue = rgb.split(1, dim=-3)
    return (16 + 65.481 * red + 128.553 * green + 24.966 * blue) / 255
