"""Bicubic resizing as MATLAB's ``imresize`` does it: the reference degradation and baseline of super-resolution.

The cubic kernel has a = -0.5 and is stretched for downscaling (antialiasing). Pixel centres are aligned, and borders
are mirrored with the edge pixel repeated. Another library's bicubic makes other LR images, and so another task.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pisr_plugin.utils.devices import is_exporting


def crop_to_multiple(img: np.ndarray, multiple: int) -> np.ndarray:
    """Crops an image at the bottom and at the right so that its sides are multiples of a number.

    Args:
        img: Image of shape (H, W) or (H, W, C).
        multiple: The number that divides both sides of the result, such as the scale.

    Returns:
        A view of ``img``.
    """
    height, width = (side // multiple * multiple for side in img.shape[:2])
    return img[:height, :width]


def imresize(x: Tensor, scale: float) -> Tensor:
    """Resizes images bicubically as MATLAB does for floating-point images.

    The function does not round or clip, so values may leave the range of ``x`` at edges. It is differentiable.

    Args:
        x: Images of shape (..., C, H, W), floating point. 16-bit floats are computed in float32.
        scale: Factor on both sides, a ratio of small integers such as 4, 1/3 or 0.75.

    Returns:
        Images of shape (..., C, ceil(H * scale), ceil(W * scale)), dtype and device of ``x``.

    Raises:
        TypeError: ``x`` is not floating point.
        ValueError: ``x`` has fewer than three dimensions, or ``scale`` is not a positive ratio of small integers.
    """
    if not x.is_floating_point():
        raise TypeError(f'Expected a floating-point tensor, but got {x.dtype}; imresize_uint8 takes 8-bit images')
    if x.dim() < 3:
        raise ValueError(f'Expected a tensor of shape (..., C, H, W), but got {tuple(x.shape)}')
    up, down = _ratio(scale)
    y = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    y = _resize_last(y.transpose(-1, -2), up, down).transpose(-1, -2)
    return _resize_last(y, up, down).to(x.dtype)


def bicubic_upsample(x: Tensor, scale: int) -> Tensor:
    """Upscales as :func:`imresize` by whole factors, with operations that every runtime has, so that it exports.

    Args:
        x: Images of shape (..., C, H, W), floating point. 16-bit floats are computed in float32.
        scale: Factor on both sides.

    Returns:
        Images of shape (..., C, H * scale, W * scale), dtype and device of ``x``, as imresize up to rounding.
    """
    y = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    y = _upscale_last(y.transpose(-1, -2), scale).transpose(-1, -2)
    return _upscale_last(y, scale).to(x.dtype)


def imresize_uint8(img: np.ndarray, scale: float) -> np.ndarray:
    """Resizes an 8-bit image bicubically as MATLAB does: height first, then width; rounds and clips after each.

    The first rounding matters: without it more than a tenth of all values differ.

    Args:
        img: Image of shape (H, W) or (H, W, C), uint8.
        scale: Factor on both sides, a ratio of small integers such as 4, 1/3 or 0.75.

    Returns:
        Image of shape (ceil(H * scale), ceil(W * scale)) or (..., C), uint8.

    Raises:
        TypeError: ``img`` is not uint8.
        ValueError: ``img`` has neither two nor three dimensions, or ``scale`` is not a positive
            ratio of small integers.
    """
    if img.dtype != np.uint8:
        raise TypeError(f'Expected an image of type uint8, but got {img.dtype}')
    if img.ndim not in (2, 3):
        raise ValueError(f'Expected an image of shape (H, W) or (H, W, C), but got {img.shape}')
    up, down = _ratio(scale)
    x = torch.from_numpy(np.ascontiguousarray(img.reshape(*img.shape[:2], -1).transpose(2, 0, 1))).double()
    x = _round_uint8(_resize_last(x.transpose(-1, -2), up, down)).transpose(-1, -2)
    x = _round_uint8(_resize_last(x, up, down))
    out = np.ascontiguousarray(x.to(torch.uint8).numpy().transpose(1, 2, 0))
    return out[..., 0] if img.ndim == 2 else out


def _resize_last(x: Tensor, up: int, down: int) -> Tensor:
    """Resizes the last dimension of a tensor (..., C, H, W) by ``up / down``."""
    width = x.shape[-1]
    out_width = (width * up + down - 1) // down
    # F.interpolate cuts its kernel off at the border; MATLAB mirrors the image. So the image is mirrored first, as far
    # as the kernel reaches, in whole steps of the denominator: so the padding becomes a whole number of output pixels.
    reach = math.ceil(2 * max(1, down / up)) + 1
    steps = math.ceil(reach / down)
    pad = steps * down
    column = torch.arange(-pad, width + pad + down, device=x.device) % (2 * width)
    padded = x.index_select(-1, torch.minimum(column, 2 * width - 1 - column))
    # One side at a time, and the last one: torch's result is wrong if the height changes and the width is 1.
    resized = F.interpolate(
        padded.reshape(1, -1, *padded.shape[-2:]),
        scale_factor=(1.0, up / down),
        mode='bicubic',
        antialias=True,  # also for upscaling: without it torch uses a = -0.75
    )
    first = steps * up
    return resized[..., first : first + out_width].reshape(*x.shape[:-1], out_width)


def _upscale_last(x: Tensor, scale: int) -> Tensor:
    """Upscales the last dimension of (..., C, H, W) by a whole factor.

    Each output pixel is a weighted sum of five pixels. What is exported has a transposed convolution for it.
    """
    width = x.shape[-1]
    first, last = x[..., :1], x[..., -1:]
    second, last_but_one = (x[..., 1:2], x[..., -2:-1]) if width > 1 else (first, last)
    padded = torch.cat((second, first, x, last, last_but_one), dim=-1)  # mirrored as far as the kernel reaches
    centres = [(i + 0.5) / scale - 0.5 for i in range(scale)]  # relative to the input pixel's
    if is_exporting() and not torch.jit.is_tracing():  # operations are counted on a trace, as they run
        kernel = [cubic(offset - centre) for offset in range(2, -3, -1) for centre in centres]
        channels = x.shape[-3]
        taps = torch.tensor(kernel, dtype=x.dtype, device=x.device).expand(channels, 1, 1, -1)
        return F.conv_transpose2d(padded, taps, stride=(1, scale), padding=(0, 4 * scale), groups=channels)
    neighbours = [padded[..., i : i + width] for i in range(5)]
    pixels: list[Tensor] = []
    for centre in centres:
        weights = [cubic(offset - centre) for offset in range(-2, 3)]
        # sum's type allows for no summands, whose sum is 0
        pixels.append(sum(weight * pixel for weight, pixel in zip(weights, neighbours) if weight))  # type: ignore[arg-type]
    return torch.stack(pixels, dim=-1).flatten(-2)


def cubic(distance: float) -> float:
    """Returns the value of the cubic kernel with a = -0.5."""
    d = abs(distance)
    if d >= 2:
        return 0.0
    return (1.5 * d - 2.5) * d * d + 1 if d <= 1 else ((-0.5 * d + 2.5) * d - 4) * d + 2


def _round_uint8(x: Tensor) -> Tensor:
    """Rounds half away from zero, as MATLAB does, and clips to 0..255. ``Tensor.round`` would round half to even."""
    return (x + 0.5).floor().clamp(0, 255)


@torch.compiler.assume_constant_result  # torch.compile cannot trace a Fraction
def _ratio(scale: float) -> tuple[int, int]:
    """Returns numerator and denominator of a scale."""
    ratio = Fraction(scale).limit_denominator(100)
    if ratio <= 0 or not math.isclose(ratio, scale, rel_tol=1e-9):
        raise ValueError(f'Expected a scale that is a positive ratio of small integers, but got {scale}')
    return ratio.numerator, ratio.denominator
