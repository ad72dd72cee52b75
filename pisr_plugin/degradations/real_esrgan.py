"""The second-order degradation of Real-ESRGAN, which imitates real photos without a model of the camera."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.utils import DiffJPEG
from torch import Tensor

from pisr_plugin.degradations.registry import DEGRADATION_REGISTRY, random_stream, samples_of_rank
from pisr_plugin.utils.checks import checked_number, checked_range, checked_whole, is_number
from pisr_plugin.utils.errors import OptionsError
from pisr_plugin.utils.random_state import seeded

_QUALITIES = (1, 99)  # at 100 BasicSR's DiffJPEG divides by zero
NEEDED = ('gt', 'kernel1', 'kernel2', 'sinc_kernel')


@DEGRADATION_REGISTRY.register()
class SecondOrderDegradation:
    """Blur, resizing, noise and JPEG twice, then a sinc filter (Real-ESRGAN, ICCVW 2021), by BasicSR's own code.

    It needs batches of BasicSR's ``RealESRGANDataset``, which draws the kernels. gt is not sharpened. The defaults are
    the published numbers, also those of KDSR for real photos.

    Each image has its own random numbers. BasicSR draws once for a whole batch, and therefore mixes batches in a pool
    of 180 pairs, which a resumed run would have to restore. Here no pool is needed, and a batch follows from HR images,
    kernels, ``seed`` and iteration alone, on any number of ranks. Global random states stay as they are. Torch draws on
    the device of the images, so a GPU draws other numbers than a CPU.

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
        self.options: dict[str, Any] = {
            'scale': scale,
            'gt_size': gt_size,
            'resize_prob': _weights('resize_prob', resize_prob),
            'resize_range': _around_one('resize_range', resize_range),
            'gaussian_noise_prob': checked_number('gaussian_noise_prob', gaussian_noise_prob, 0, 1),
            'noise_range': checked_range('noise_range', noise_range, 0, 255),
            'poisson_scale_range': checked_range('poisson_scale_range', poisson_scale_range, 0, 1000),
            'gray_noise_prob': checked_number('gray_noise_prob', gray_noise_prob, 0, 1),
            'jpeg_range': checked_range('jpeg_range', jpeg_range, *_QUALITIES),
            'second_blur_prob': checked_number('second_blur_prob', second_blur_prob, 0, 1),
            'resize_prob2': _weights('resize_prob2', resize_prob2),
            'resize_range2': _around_one('resize_range2', resize_range2),
            'gaussian_noise_prob2': checked_number('gaussian_noise_prob2', gaussian_noise_prob2, 0, 1),
            'noise_range2': checked_range('noise_range2', noise_range2, 0, 255),
            'poisson_scale_range2': checked_range('poisson_scale_range2', poisson_scale_range2, 0, 1000),
            'gray_noise_prob2': checked_number('gray_noise_prob2', gray_noise_prob2, 0, 1),
            'jpeg_range2': checked_range('jpeg_range2', jpeg_range2, *_QUALITIES),
        }
        self._jpeg = deepcopy(DiffJPEG(differentiable=False))  # all instances of DiffJPEG share two tables

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
        synthesis = _Synthesis(self.options, self._jpeg, images.device)
        mine = samples_of_rank(len(images))
        seeds = random_stream(self.seed, iteration).integers(2**63, size=mine.stop)[mine]
        pairs = []
        for index, seed in enumerate(seeds.tolist()):
            with seeded(seed, images.device), _without_benchmark():
                pairs.append(synthesis.pair({name: part[index : index + 1] for name, part in parts.items()}))
        lq, gt = (torch.cat(parts) for parts in zip(*pairs))
        return {'lq': lq, 'gt': gt}

    def _check_size(self, images: Tensor, reach: int) -> None:
        """Raises OptionsError for images that resizing may make too small to mirror their borders for a kernel."""
        channels, *sides = images.shape[1:]
        smallest = int(min(sides) * min(self.options['resize_range'][0], 1 / self.scale))
        if channels != 3 or min(sides) < self.gt_size or smallest <= reach:
            raise OptionsError(
                f'train.degradation: SecondOrderDegradation cannot use images of shape {tuple(images.shape[1:])}: they '
                f'need 3 channels, sides of at least gt_size, {self.gt_size}, and more than {reach} pixels after '
                f'resizing by {self.options["resize_range"][0]} or 1/{self.scale}.'
            )


class _Synthesis(RealESRGANModel):
    """The part of BasicSR's model that makes LR images: no network, no loss, no sharpening, no pool of pairs.

    It takes one image at a time: on a CPU ``filter2D`` cannot view the layout of a larger batch from ``DiffJPEG``.

    Args:
        options: Options that ``feed_data`` reads.
        jpeg: JPEG compression as a network.
        device: Device of the images.
    """

    def __init__(self, options: Mapping, jpeg: DiffJPEG, device: torch.device) -> None:
        self.opt, self.device, self.is_train = options, device, True
        self.jpeger = jpeg.to(device)

    def pair(self, data: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns LR and HR patch of one image."""
        self.feed_data(data)
        return self.lq, self.gt

    def usm_sharpener(self, images: Tensor) -> Tensor:
        """Returns the images without sharpening them."""
        return images

    def _dequeue_and_enqueue(self) -> None:
        """Does not mix batches."""


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
