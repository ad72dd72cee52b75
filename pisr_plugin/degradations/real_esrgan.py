"""The second-order degradation of Real-ESRGAN, which imitates real photos without a model of the camera."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from basicsr.data.degradations import generate_gaussian_noise_pt, rgb_to_grayscale
from basicsr.data.transforms import paired_random_crop
from basicsr.utils import DiffJPEG
from basicsr.utils.img_process_util import filter2D
from torch import Tensor
from torch.nn import functional as F

from pisr_plugin.degradations.registry import DEGRADATION_REGISTRY, random_stream, samples_of_rank
from pisr_plugin.utils.checks import checked_number, checked_range, checked_whole, is_number
from pisr_plugin.utils.errors import OptionsError
from pisr_plugin.utils.random_state import seeded

NEEDED = ('gt', 'kernel1', 'kernel2', 'sinc_kernel')


@DEGRADATION_REGISTRY.register()
class SecondOrderDegradation:
    """Blur, resizing, noise and JPEG twice, then a sinc filter (Real-ESRGAN, ICCVW 2021), as BasicSR's model does it.

    It needs batches of BasicSR's ``RealESRGANDataset``, which draws the kernels. gt is not sharpened. The defaults are
    the published numbers, also those of KDSR for real photos.

    Each image has its own random numbers. BasicSR draws once for a whole batch, and therefore mixes batches in a pool
    of 180 pairs, which a resumed run would have to restore. Here no pool is needed, and a batch follows from HR images,
    kernels, ``seed`` and iteration alone, on any number of ranks. Global random states stay as they are. The host draws
    what decides a step, and the device of the images draws the noise: nothing is read back from a GPU, whose noise is
    another than a CPU's. On a CPU the draws are those of BasicSR.

    Args:
        scale: Downsampling factor.
        gt_size: Height and width of the HR patches that are cut from the images, in pixels, a multiple of ``scale``.
        resize_prob: Weights of the first resizing: to enlarge, to shrink, to keep the size.
        resize_range: Smallest and largest factor of the first resizing, 0.01 to 16; contains 1.
        gaussian_noise_prob: Probability that the first noise is Gaussian; else it is Poisson noise.
        noise_range: Range of the standard deviation of the first Gaussian noise in 8-bit levels, 0 to 255.
        poisson_scale_range: Range of the strength of the first Poisson noise, 0 to 1000.
        gray_noise_prob: Probability that the first noise is the same in all channels.
        jpeg_range: Range of the JPEG quality of the first compression, 1 to 99.
        second_blur_prob: Probability that an image is blurred a second time.
        resize_prob2: Weights of the second resizing, as ``resize_prob``.
        resize_range2: Range of the second resizing, as ``resize_range``; the factor refers to the LR size.
        gaussian_noise_prob2: Probability that the second noise is Gaussian.
        noise_range2: Range of the second Gaussian noise, as ``noise_range``.
        poisson_scale_range2: Range of the second Poisson noise, as ``poisson_scale_range``.
        gray_noise_prob2: Probability that the second noise is the same in all channels.
        jpeg_range2: Range of the JPEG quality of the second compression, 1 to 99.
        seed: Seed of all draws, the same on all ranks.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        scale: int,
        gt_size: int = 256,
        resize_prob: Sequence[float] = (0.2, 0.7, 0.1),
        resize_range: Sequence[float] = (0.15, 1.5),
        gaussian_noise_prob: float = 0.5,
        noise_range: Sequence[float] = (1, 30),
        poisson_scale_range: Sequence[float] = (0.05, 3),
        gray_noise_prob: float = 0.4,
        jpeg_range: Sequence[float] = (30, 95),
        second_blur_prob: float = 0.8,
        resize_prob2: Sequence[float] = (0.3, 0.4, 0.3),
        resize_range2: Sequence[float] = (0.3, 1.2),
        gaussian_noise_prob2: float = 0.5,
        noise_range2: Sequence[float] = (1, 25),
        poisson_scale_range2: Sequence[float] = (0.05, 2.5),
        gray_noise_prob2: float = 0.4,
        jpeg_range2: Sequence[float] = (30, 95),
        seed: int = 0,
    ) -> None:
        self.gt_size = checked_whole('gt_size', gt_size, scale, 1 << 16, multiple=scale)
        self.scale, self.seed = scale, seed
        self.first = _Round.checked(
            '',
            resize_prob=resize_prob,
            resize_range=resize_range,
            gaussian_noise_prob=gaussian_noise_prob,
            noise_range=noise_range,
            poisson_scale_range=poisson_scale_range,
            gray_noise_prob=gray_noise_prob,
            jpeg_range=jpeg_range,
        )
        self.second_blur_prob = checked_number('second_blur_prob', second_blur_prob, 0, 1)
        self.second = _Round.checked(
            '2',
            resize_prob=resize_prob2,
            resize_range=resize_range2,
            gaussian_noise_prob=gaussian_noise_prob2,
            noise_range=noise_range2,
            poisson_scale_range=poisson_scale_range2,
            gray_noise_prob=gray_noise_prob2,
            jpeg_range=jpeg_range2,
        )
        self._jpeg = deepcopy(DiffJPEG(differentiable=False))  # all instances of DiffJPEG share two tables

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor], iteration: int) -> dict[str, Tensor]:
        """Degrades one batch, image by image.

        Args:
            batch: ``gt``, HR images (N, 3, H, W) in [0, 1], H and W at least ``gt_size``; ``kernel1``, ``kernel2`` and
                ``sinc_kernel``, (N, k, k) each, k odd.
            iteration: Number of the iteration, not negative.

        Returns:
            ``lq``, LR patches (N, 3, gt_size / scale, gt_size / scale), multiples of 1/255 in [0, 1], and ``gt``, the
            HR patches (N, 3, gt_size, gt_size) that they show.

        Raises:
            OptionsError: the batch does not come from ``RealESRGANDataset``, or its images are too small.
        """
        missing = [name for name in NEEDED if name not in batch]
        if missing:
            raise OptionsError(
                f'train.degradation: SecondOrderDegradation needs {", ".join(missing)} of each image, which '
                'RealESRGANDataset makes (datasets.train.type).'
            )
        parts = {name: batch[name].contiguous() for name in NEEDED}
        images = parts['gt']
        self._check_size(images, max(parts[name].shape[-1] for name in NEEDED[1:]) // 2)
        self._jpeg.to(images.device)
        mine = samples_of_rank(len(images))
        seeds = random_stream(self.seed, iteration).integers(2**63, size=mine.stop)[mine]
        pairs = []
        for index, seed in enumerate(seeds.tolist()):
            with seeded(seed, images.device), _without_benchmark():
                gt, *kernels = (part[index : index + 1] for part in parts.values())
                pairs.append(paired_random_crop(gt, self._degrade(gt, *kernels), self.gt_size, self.scale))
        gt, lq = (torch.cat(parts) for parts in zip(*pairs))
        return {'lq': lq, 'gt': gt}

    def _check_size(self, images: Tensor, reach: int) -> None:
        """Raises OptionsError for images that resizing may make too small to mirror their borders for a kernel."""
        channels, *sides = images.shape[1:]
        smallest = int(min(sides) * min(self.first.resize_range[0], 1 / self.scale))
        if channels != 3 or min(sides) < self.gt_size or smallest <= reach:
            raise OptionsError(
                f'train.degradation: SecondOrderDegradation cannot use images of shape {tuple(images.shape[1:])}: they '
                f'need 3 channels, sides of at least gt_size, {self.gt_size}, and more than {reach} pixels after '
                f'resizing by {self.first.resize_range[0]} or 1/{self.scale}.'
            )

    def _degrade(self, gt: Tensor, kernel1: Tensor, kernel2: Tensor, sinc_kernel: Tensor) -> Tensor:
        """Returns the LR image of one HR image (1, 3, H, W), with draws from the global generators."""
        height, width = (side // self.scale for side in gt.shape[2:])
        image = filter2D(gt, kernel1)
        image = F.interpolate(image, scale_factor=self.first.draw_factor(), mode=_draw_mode())
        image = self._compress(self.first.add_noise(image), self.first.jpeg_range)
        if np.random.uniform() < self.second_blur_prob:
            image = filter2D(image, kernel2)
        factor = self.second.draw_factor()
        size = tuple(int(side / self.scale * factor) for side in gt.shape[2:])
        image = self.second.add_noise(F.interpolate(image, size=size, mode=_draw_mode()))
        # To LR size and the sinc filter are one operation, which comes before or after the compression.
        resized_first = np.random.uniform() < 0.5
        if not resized_first:
            image = self._compress(image, self.second.jpeg_range)
        image = filter2D(F.interpolate(image, size=(height, width), mode=_draw_mode()), sinc_kernel)
        if resized_first:
            image = self._compress(image, self.second.jpeg_range)
        return torch.clamp((image * 255).round(), 0, 255) / 255

    def _compress(self, image: Tensor, quality: tuple[float, float]) -> Tensor:
        return self._jpeg(image.clamp(0, 1), torch.zeros(()).uniform_(*quality).item())


@dataclass(frozen=True)
class _Round:
    """How an image is resized and gets noise, once; the arguments of :class:`SecondOrderDegradation`."""

    resize_prob: Sequence[float]
    resize_range: tuple[float, float]
    gaussian_noise_prob: float
    noise_range: tuple[float, float]
    poisson_scale_range: tuple[float, float]
    gray_noise_prob: float
    jpeg_range: tuple[float, float]

    @classmethod
    def checked(cls, suffix: str, **values: Any) -> _Round:
        """Makes one of the arguments that end in ``suffix``, or raises ValueError if one is out of its range."""
        checks: dict[str, Callable[[str, Any], Any]] = {
            'resize_prob': _weights,
            'resize_range': _around_one,
            'gaussian_noise_prob': partial(checked_number, low=0, high=1),
            'noise_range': partial(checked_range, low=0, high=255),
            'poisson_scale_range': partial(checked_range, low=0, high=1000),
            'gray_noise_prob': partial(checked_number, low=0, high=1),
            'jpeg_range': partial(checked_range, low=1, high=99),  # at 100 BasicSR's DiffJPEG divides by zero
        }
        return cls(**{name: checks[name](f'{name}{suffix}', value) for name, value in values.items()})

    def draw_factor(self) -> float:
        """Draws the factor of the resizing."""
        way = random.choices(['up', 'down', 'keep'], self.resize_prob)[0]
        if way == 'keep':
            return 1
        low, high = self.resize_range
        return np.random.uniform(1, high) if way == 'up' else np.random.uniform(low, 1)

    def add_noise(self, image: Tensor) -> Tensor:
        """Adds Gaussian or Poisson noise to one image (1, 3, H, W) in [0, 1]."""
        gaussian = np.random.uniform() < self.gaussian_noise_prob
        low, high = self.noise_range if gaussian else self.poisson_scale_range
        strength = (torch.rand(1) * (high - low) + low).item()
        gray = bool(torch.rand(1) < self.gray_noise_prob)
        if gaussian:
            noise = generate_gaussian_noise_pt(image, strength, int(gray))
        else:
            noise = _poisson_noise(image, gray) * strength
        return torch.clamp(image + noise, 0, 1)


def _draw_mode() -> str:
    return random.choice(['area', 'bilinear', 'bicubic'])


def _poisson_noise(image: Tensor, gray: bool) -> Tensor:
    """Draws Poisson noise for one image (1, 3, H, W), as BasicSR does but without reading the image back."""
    in_gray = _shot_noise(rgb_to_grayscale(image, num_output_channels=1)) if gray else None
    in_colour = _shot_noise(image)  # drawn in any case, so that the next draws are BasicSR's
    return in_colour if in_gray is None else in_gray.expand_as(image)


def _shot_noise(image: Tensor) -> Tensor:
    """Draws the noise of counting photons, as many for white as the image has levels, rounded up to a power of two."""
    levels = (image * 255).round().clamp(0, 255)
    used = torch.zeros(256, device=image.device).scatter_(0, levels.flatten().long(), 1).sum()
    doublings = (used > 2 ** torch.arange(8, device=image.device)).sum()
    photons = torch.bitwise_left_shift(torch.ones_like(doublings), doublings)
    image = levels / 255
    return torch.poisson(image * photons) / photons - image


def _weights(name: str, value: Any) -> list[float]:
    """Returns three weights, or raises ValueError if the value is not three numbers of which one is above 0."""
    is_three = isinstance(value, Sequence) and len(value) == 3 and all(map(is_number, value))
    if not is_three or min(value) < 0 or sum(value) <= 0:
        raise ValueError(
            f'{name}: impossible value (found {value!r}). Expected three weights, to enlarge, to shrink, '
            'to keep the size'
        )
    return list(value)


def _around_one(name: str, value: object) -> tuple[float, float]:
    """Returns a range of factors, or raises ValueError if it does not contain 1."""
    low, high = checked_range(name, value, 0.01, 16)
    if not low <= 1 <= high:
        raise ValueError(f'{name}: impossible value (found {value!r}). Expected a range that contains 1')
    return low, high


@contextmanager
def _without_benchmark() -> Iterator[None]:
    """Keeps cuDNN from trying out its algorithms, which it would repeat for each of the random sizes."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
