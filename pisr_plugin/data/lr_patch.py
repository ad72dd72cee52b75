"""LR patches made of HR images where no LR is stored."""

from __future__ import annotations

import numpy as np

from ..resize import imresize_uint8

_REACH = 2  # LR pixels: MATLAB's cubic kernel, stretched to shrink, looks at less than two to each side


def lr_patch(hr: np.ndarray, top: int, left: int, side: int, scale: int) -> np.ndarray:
    """A patch of the bicubic LR image, equal bit for bit to one cut from the whole LR image.

    Args:
        hr: The whole HR image, (H, W, 3), uint8, with sides that are multiples of the scale.
        top: Row of the LR image where the patch begins.
        left: Column of the LR image where it begins.
        side: Height and width of the patch.
        scale: The upscaling factor.

    Returns:
        Array of shape (side, side, 3), uint8.
    """
    rows, columns = (
        slice(max(0, first - _REACH) * scale, (first + side + _REACH) * scale) for first in (top, left)
    )  # where this reaches over the border, the whole image is mirrored in the same place
    small = imresize_uint8(hr[rows, columns], 1 / scale)
    top, left = min(top, _REACH), min(left, _REACH)
    return small[top : top + side, left : left + side]
