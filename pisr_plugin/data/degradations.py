"""Blur, downsampling and noise on whole batches: the classic degradations of blind super-resolution.

What degrades training batches is a class in :data:`DEGRADATION_REGISTRY`, called as ``degradation(batch, iteration)``:
from a batch as its dataset makes it, and the iteration's number, to ``{'lq': ..., 'gt': ...}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from basicsr.utils.registry import Registry
from scipy.fft import next_fast_len
from torch import Tensor

from ..errors import OptionsError, choice
from ..resize import imresize

DEGRADATION_REGISTRY = Registry('degradation')
DOWNSAMPLING = ('bicubic', 'direct')


def build_degradation(options: Mapping, **more) -> Callable[[Mapping[str, Tensor], int], dict[str, Tensor]]:
    """Builds what degrades training batches.

    Args:
        options: ``type`` and the arguments of a class in :data:`DEGRADATION_REGISTRY`.
        more: Further arguments, which the run rather than the recipe decides: ``scale``, ``seed``.

    Raises:
        OptionsError: the type is unknown, or it refuses its arguments.
    """
    options = dict(options)
    kind = options.pop('type', None)
    if kind not in DEGRADATION_REGISTRY:
        raise OptionsError(f'degradation.type: {kind!r} is not registered. {choice(kind, DEGRADATION_REGISTRY.keys())}')
    try:
        return DEGRADATION_REGISTRY.get(kind)(**options, **more)
    except (TypeError, ValueError) as error:
        raise OptionsError(f'degradation: {kind} cannot be built: {error}') from None


def gaussian_kernels(size: int, sigma_1: Tensor, sigma_2: Tensor, theta: Tensor) -> Tensor:
    """Anisotropic Gaussian blur kernels, sampled at pixel centres and normalised.

    The density's covariance is R diag(sigma_1^2, sigma_2^2) R^T with the rotation R by ``theta``; x runs to the right
    and y downwards. With ``sigma_1 == sigma_2`` the kernel is isotropic.

    Args:
        size: Side of the kernels, odd.
        sigma_1: Standard deviations along the first axis, (N,), positive, in HR pixels.
        sigma_2: The same along the second axis.
        theta: Angles from x to the first axis in radians, (N,).

    Returns:
        Kernels (N, size, size), each with the sum 1, of the dtype and on the device of ``sigma_1``.
    """
    offset = torch.arange(size, dtype=sigma_1.dtype, device=sigma_1.device) - size // 2
    y, x = torch.meshgrid(offset, offset, indexing='ij')
    cos, sin = (f(theta)[:, None, None] for f in (torch.cos, torch.sin))
    # Coordinates along the two axes: no covariance matrix has to be inverted.
    along, across = cos * x + sin * y, cos * y - sin * x
    exponent = (along / sigma_1[:, None, None]) ** 2 + (across / sigma_2[:, None, None]) ** 2
    return torch.softmax(-exponent.flatten(1) / 2, dim=1).view(-1, size, size)


def blur(images: Tensor, kernel: Tensor) -> Tensor:
    """Correlates images with kernels; borders are mirrored without repeating the edge pixel.

    By Fourier transform: for 21x21 as quick as a float32 convolution at its best, and in float64, where a convolution
    on a CPU takes seconds for one image, hardly slower.

    Args:
        images: (N, C, H, W), H and W more than half of the kernel's size. 16-bit floats are computed in float32.
        kernel: One for all (1, k, k) or one for each image (N, k, k), k odd.

    Returns:
        Images (N, C, H, W), of the dtype and on the device of ``images``.
    """
    dtype = torch.promote_types(images.dtype, torch.float32)
    reach, (height, width) = kernel.shape[-1] // 2, images.shape[-2:]
    padded = F.pad(images.to(dtype), (reach,) * 4, mode='reflect')
    # Zeros beyond the padding reach no pixel that is kept.
    size = [next_fast_len(side, real=True) for side in padded.shape[-2:]]
    spectrum = torch.fft.rfft2(kernel.to(padded), s=size).conj()[:, None]
    blurred = torch.fft.irfft2(torch.fft.rfft2(padded, s=size) * spectrum, s=size)
    return blurred[..., :height, :width].to(images.dtype)


def degrade(hr: Tensor, kernel: Tensor, scale: int, noise: Tensor | None = None, downsample: str = 'bicubic') -> Tensor:
    """Makes LR images: blurred, downsampled, noisy, as 8 bits hold them (KDSR, ICLR 2023, section 4.1).

    Args:
        hr: Images (N, C, H, W) in [0, 1], H and W multiples of ``scale`` and more than half of the kernel's size.
        kernel: One for all (1, k, k) or one for each image (N, k, k), k odd; see :func:`blur`.
        scale: Downsampling factor.
        noise: Added after downsampling, (N, C, H / scale, W / scale).
        downsample: ``'bicubic'`` as MATLAB's, or ``'direct'``: every ``scale``-th pixel, beginning with the first.

    Returns:
        Images (N, C, H / scale, W / scale), multiples of 1/255 in [0, 1], of the dtype and on the device of ``hr``.

    Raises:
        ValueError: the sides of ``hr`` are no multiples of ``scale``.
    """
    height, width = hr.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f'Expected images with sides that are multiples of {scale}, but got {height}x{width}')
    blurred = blur(hr, kernel)
    lr = imresize(blurred, 1 / scale) if downsample == 'bicubic' else blurred[..., ::scale, ::scale]
    if noise is not None:
        lr = lr + noise.to(lr)
    return (lr * 255).round().clamp(0, 255) / 255


@DEGRADATION_REGISTRY.register()
class BlurNoiseDownsample:
    """Random Gaussian blur, downsampling and noise for training batches (KDSR, ICLR 2023, section 4.1).

    A batch depends on HR images, ``seed`` and iteration alone: neither on the number of workers nor on a global random
    state, and on the device within rounding. Everything random is drawn on the CPU, by a counter-based generator.

    Args:
        scale: Downsampling factor.
        kernel_size: Side of the blur kernels, odd.
        sigma: Range of the kernels' standard deviations in HR pixels, or one value.
        isotropic: One standard deviation for both axes. Otherwise two are drawn, and an angle of [0, pi).
        noise: Range of the noise's standard deviation in 8-bit levels, or one value.
        downsample: ``'bicubic'`` or ``'direct'``.
        per_image: A kernel and a noise level for each image. The authors draw one for the whole batch.
        seed: Of all draws; different ranks of a distributed run need different ones.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        *,
        scale: int,
        kernel_size: int = 21,
        sigma: float | Sequence[float] = (0.2, 4.0),
        isotropic: bool = True,
        noise: float | Sequence[float] = 0,
        downsample: str = 'bicubic',
        per_image: bool = False,
        seed: int = 0,
    ) -> None:
        if not isinstance(scale, int) or scale < 1:
            raise ValueError(f'scale: found {scale!r}, possible: a whole number from 1 on')
        self.kernel_size = checked_kernel_size(kernel_size)
        self.sigma = checked_range('sigma', sigma)
        if self.sigma[0] == 0:
            raise ValueError(f'sigma: found {sigma!r}, possible: more than 0')
        self.noise = checked_range('noise', noise)
        self.downsample = checked_downsample(downsample)
        self.scale, self.isotropic, self.per_image, self.seed = scale, isotropic, per_image, seed

    def __call__(self, batch: Mapping[str, Tensor], iteration: int) -> dict[str, Tensor]:
        """Degrades one batch.

        Args:
            batch: ``gt``, HR images (N, C, H, W) in [0, 1], H and W multiples of ``scale``.
            iteration: Number of the batch, from 0 or 1 on.

        Returns:
            ``lq``, the LR images (N, C, H / scale, W / scale), and ``gt`` as given.
        """
        gt = batch['gt']
        n, c, height, width = gt.shape
        random = random_stream(self.seed, iteration)
        count = n if self.per_image else 1
        sigma_1 = random.uniform(*self.sigma, count)
        sigma_2, theta = sigma_1, np.zeros(count)
        if not self.isotropic:
            sigma_2, theta = random.uniform(*self.sigma, count), random.uniform(0, math.pi, count)
        kernel = gaussian_kernels(self.kernel_size, *map(torch.from_numpy, (sigma_1, sigma_2, theta)))
        noise = None
        if self.noise[1] > 0:
            level = torch.from_numpy(random.uniform(*self.noise, count)) / 255
            shape = (n, c, height // self.scale, width // self.scale)
            drawn = torch.from_numpy(random.standard_normal(shape, dtype=np.float32))
            noise = drawn.to(gt) * level.to(gt).view(-1, 1, 1, 1)
        return {'lq': degrade(gt, kernel, self.scale, noise, self.downsample), 'gt': gt}


def random_stream(*key: int) -> np.random.Generator:
    """A generator of its own for each key of up to two whole numbers, 0 to 2^64 - 1; the same on every machine."""
    return np.random.Generator(np.random.Philox(key=np.array([*key, 0][:2], dtype=np.uint64)))


def checked_kernel_size(size: object) -> int:
    """Refuses what is no odd number."""
    if not isinstance(size, int) or size < 1 or size % 2 == 0:
        raise ValueError(f'kernel_size: found {size!r}, possible: odd numbers')
    return size


def checked_downsample(name: object) -> str:
    """Refuses an unknown way of downsampling."""
    if name not in DOWNSAMPLING:
        raise ValueError(f'downsample: found {name!r}, possible: {", ".join(map(repr, DOWNSAMPLING))}')
    return name


def checked_range(name: str, value: float | Sequence[float]) -> tuple[float, float]:
    """One number as a range of its own; a range that is none is refused."""
    bounds = (value, value) if isinstance(value, (int, float)) else tuple(value)
    if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1]:
        raise ValueError(f'{name}: found {value!r}, possible: a number, or the lower and upper bound; from 0 on')
    return bounds
