"""Blur, downsampling and noise on whole batches: the classic degradations of blind super-resolution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from basicsr.utils.dist_util import get_dist_info
from scipy.fft import next_fast_len
from torch import Tensor

from pisr_plugin.degradations.registry import DEGRADATION_REGISTRY, random_stream, samples_of_rank
from pisr_plugin.utils.checks import check_choice, checked_range, checked_whole
from pisr_plugin.utils.devices import to_device
from pisr_plugin.utils.resize import imresize

DOWNSAMPLING = ('bicubic', 'direct')
_LARGEST_KERNEL = 255


def gaussian_kernels(size: int, sigma_1: Tensor, sigma_2: Tensor, theta: Tensor) -> Tensor:
    """Makes anisotropic Gaussian blur kernels, sampled at pixel centres and normalised.

    The density's covariance is R diag(sigma_1^2, sigma_2^2) R^T with the rotation R by ``theta``; x points to the right
    and y downwards. With ``sigma_1 == sigma_2`` the kernel is isotropic.

    Args:
        size: Height and width of the kernels in pixels, odd.
        sigma_1: Standard deviations along the first axis, (N,), positive, in HR pixels.
        sigma_2: Standard deviations along the second axis, (N,), positive, in HR pixels.
        theta: Angles from x to the first axis, (N,), in radians.

    Returns:
        Kernels (N, size, size), each with the sum 1, with dtype and device of ``sigma_1``.
    """
    offset = torch.arange(size, dtype=sigma_1.dtype, device=sigma_1.device) - size // 2
    y, x = torch.meshgrid(offset, offset, indexing='ij')
    cos, sin = (f(theta)[:, None, None] for f in (torch.cos, torch.sin))
    # Coordinates along the two axes, so that no covariance matrix has to be inverted.
    along, across = cos * x + sin * y, cos * y - sin * x
    exponent = (along / sigma_1[:, None, None]) ** 2 + (across / sigma_2[:, None, None]) ** 2
    return torch.softmax(-exponent.flatten(1) / 2, dim=1).view(-1, size, size)


def blur(images: Tensor, kernel: Tensor) -> Tensor:
    """Correlates images with kernels; borders are mirrored without repeating the edge pixel.

    The Fourier transform is as fast as a float32 convolution for kernels of 21x21, and hardly slower in float64, where
    a convolution on a CPU takes seconds for one image.

    Args:
        images: Images (N, C, H, W), H and W more than half of the kernel's size. 16-bit floats are computed in float32.
        kernel: One kernel for all images (1, k, k), or one for each (N, k, k), k odd.

    Returns:
        Images (N, C, H, W), with dtype and device of ``images``.
    """
    dtype = torch.promote_types(images.dtype, torch.float32)
    reach, (height, width) = kernel.shape[-1] // 2, images.shape[-2:]
    padded = F.pad(images.to(dtype), (reach,) * 4, mode='reflect')
    # Zeros beyond the padding reach no pixel of the result.
    size = [next_fast_len(side, real=True) for side in padded.shape[-2:]]
    spectrum = torch.fft.rfft2(kernel.to(padded), s=size).conj()[:, None]
    blurred = torch.fft.irfft2(torch.fft.rfft2(padded, s=size) * spectrum, s=size)
    return blurred[..., :height, :width].to(images.dtype)


def degrade(hr: Tensor, kernel: Tensor, scale: int, noise: Tensor | None = None, downsample: str = 'bicubic') -> Tensor:
    """Makes LR images: blurs, downsamples, adds noise and rounds to 8 bits (KDSR, ICLR 2023, section 4.1).

    Args:
        hr: Images (N, C, H, W) in [0, 1], H and W multiples of ``scale`` and more than half of the kernel's size.
        kernel: One kernel for all images (1, k, k), or one for each (N, k, k), k odd.
        scale: Downsampling factor.
        noise: Noise that is added after downsampling, (N, C, H / scale, W / scale).
        downsample: ``'bicubic'`` for MATLAB's, ``'direct'`` for every ``scale``-th pixel, beginning with the first.

    Returns:
        Images (N, C, H / scale, W / scale), multiples of 1/255 in [0, 1], with dtype and device of ``hr``.

    Raises:
        ValueError: the sides of ``hr`` are not multiples of ``scale``.
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

    The result follows from HR images, ``seed`` and iteration alone. A counter-based generator on the CPU draws blur and
    noise level. The device of the images draws the noise, so that a GPU's is another than a CPU's. All ranks draw
    alike, and each takes the numbers of its own samples, so that several ranks together make the batch that one process
    would make.

    Args:
        scale: Downsampling factor, a whole number.
        kernel_size: Height and width of the blur kernels in HR pixels, odd, 1 to 255.
        sigma: Range of the kernels' standard deviations in HR pixels, above 0, or one value.
        isotropic: Whether both axes share one standard deviation. Otherwise two are drawn, and an angle of [0, pi).
        noise: Range of the noise's standard deviation in 8-bit levels, 0 to 255, or one value.
        downsample: ``'bicubic'`` or ``'direct'``.
        per_image: Whether each image gets its own kernel and noise level. The authors draw one for the whole batch.
        seed: Seed of all draws, the same on all ranks.

    Raises:
        ValueError: an argument is out of its range.
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
        self.scale = checked_whole('scale', scale, 1, 64)
        self.kernel_size = checked_kernel_size(kernel_size)
        self.sigma = checked_range('sigma', sigma, 1e-6, 1e6)
        self.noise = checked_range('noise', noise, 0, 255)
        check_choice('downsample', downsample, DOWNSAMPLING)
        self.downsample, self.isotropic, self.per_image, self.seed = downsample, isotropic, per_image, seed

    def __call__(self, batch: Mapping[str, Tensor], iteration: int) -> dict[str, Tensor]:
        """Degrades one batch.

        Args:
            batch: ``gt``, HR images (N, C, H, W) in [0, 1], H and W multiples of ``scale``.
            iteration: Number of the iteration, not negative.

        Returns:
            ``lq``, the LR images (N, C, H / scale, W / scale), and ``gt`` as given.
        """
        gt = batch['gt']
        n, c, height, width = gt.shape
        random = random_stream(self.seed, iteration)
        mine = samples_of_rank(n)
        chosen = mine if self.per_image else slice(1)
        count = get_dist_info()[1] * n if self.per_image else 1
        sigma_1 = random.uniform(*self.sigma, count)
        sigma_2, theta = sigma_1, np.zeros(count)
        if not self.isotropic:
            sigma_2, theta = random.uniform(*self.sigma, count), random.uniform(0, math.pi, count)
        parameters = (torch.from_numpy(drawn[chosen]) for drawn in (sigma_1, sigma_2, theta))
        kernel = to_device(gaussian_kernels(self.kernel_size, *parameters), gt.device)
        noise = None
        if self.noise[1] > 0:
            level = torch.from_numpy(random.uniform(*self.noise, count)[chosen]) / 255
            generator = torch.Generator(gt.device).manual_seed(int(random.integers(2**63)))
            # Of all ranks: on a GPU, which numbers a sample gets depends on the size of the whole.
            shape = (get_dist_info()[1] * n, c, height // self.scale, width // self.scale)
            noise = torch.randn(shape, generator=generator, device=gt.device)[mine]
            noise = noise.to(gt.dtype) * to_device(level, gt.device).to(gt.dtype).view(-1, 1, 1, 1)
        return {'lq': degrade(gt, kernel, self.scale, noise, self.downsample), 'gt': gt}


def checked_kernel_size(size: object) -> int:
    """Returns the side of a kernel, or raises ValueError if it is not an odd number."""
    return checked_whole('kernel_size', size, 1, _LARGEST_KERNEL, multiple=2, rest=1)
