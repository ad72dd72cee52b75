"""The second-order degradation of Real-ESRGAN for training batches: real photos without a model of their camera."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.utils import DiffJPEG
from torch import Tensor

from ..errors import OptionsError
from .degradations import DEGRADATION_REGISTRY, checked_range, random_stream
from .seeded import seeded

NEEDED = ('gt', 'kernel1', 'kernel2', 'sinc_kernel')


@DEGRADATION_REGISTRY.register()
class SecondOrderDegradation:
    """Blur, resizing, noise and JPEG twice over, then a sinc filter (Real-ESRGAN, ICCVW 2021), by BasicSR's own code.

    For batches of BasicSR's ``RealESRGANDataset``, which draws the kernels. gt is not sharpened. The defaults are the
    published numbers, those of KDSR for real photos too.

    Each image has draws of its own. BasicSR draws once for a whole batch, and therefore mixes batches by a pool of 180
    pairs, whose content a resumed run would have to restore. Here a batch is as diverse without, and a function of
    HR images, kernels, ``seed`` and iteration alone: global random states are left as they were. Torch's draws are made
    on the device of the images, so another kind of device gives other ones.

    Args:
        scale: Downsampling factor.
        gt_size: Side of the HR patches that are cut out of the degraded images; a multiple of ``scale``.
        resize_prob: How likely the first resizing is to enlarge, to shrink, to keep the size.
        resize_range: Smallest and largest factor of the first resizing, around 1.
        gaussian_noise_prob: How likely the first noise is Gaussian; else it is Poisson noise.
        noise_range: Standard deviation of the first Gaussian noise in 8-bit levels, lowest and highest.
        poisson_scale_range: Strength of the first Poisson noise, lowest and highest.
        gray_noise_prob: How likely the first noise is the same in all channels.
        jpeg_range: JPEG quality of the first compression, lowest and highest, of 1 to 99.
        second_blur_prob: How likely an image is blurred a second time.
        resize_prob2: As ``resize_prob``, of the second resizing.
        resize_range2: As ``resize_range``, of the second resizing, whose factor counts from the LR size.
        gaussian_noise_prob2: As ``gaussian_noise_prob``, of the second noise.
        noise_range2: As ``noise_range``, of the second noise.
        poisson_scale_range2: As ``poisson_scale_range``, of the second noise.
        gray_noise_prob2: As ``gray_noise_prob``, of the second noise.
        jpeg_range2: As ``jpeg_range``, of the second compression.
        seed: Of all draws; different ranks of a distributed run need different ones.

    Raises:
        ValueError: An argument is out of its range.
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
        if not isinstance(gt_size, int) or gt_size < 1 or gt_size % scale:
            raise ValueError(f'gt_size: found {gt_size!r}, possible: multiples of the scale, {scale}')
        self.gt_size, self.scale, self.seed = gt_size, scale, seed
        self.options = {
            'scale': scale,
            'gt_size': gt_size,
            'resize_prob': _three('resize_prob', resize_prob),
            'resize_range': _around_one('resize_range', resize_range),
            'gaussian_noise_prob': _probability('gaussian_noise_prob', gaussian_noise_prob),
            'noise_range': checked_range('noise_range', noise_range),
            'poisson_scale_range': checked_range('poisson_scale_range', poisson_scale_range),
            'gray_noise_prob': _probability('gray_noise_prob', gray_noise_prob),
            'jpeg_range': _quality('jpeg_range', jpeg_range),
            'second_blur_prob': _probability('second_blur_prob', second_blur_prob),
            'resize_prob2': _three('resize_prob2', resize_prob2),
            'resize_range2': _around_one('resize_range2', resize_range2),
            'gaussian_noise_prob2': _probability('gaussian_noise_prob2', gaussian_noise_prob2),
            'noise_range2': checked_range('noise_range2', noise_range2),
            'poisson_scale_range2': checked_range('poisson_scale_range2', poisson_scale_range2),
            'gray_noise_prob2': _probability('gray_noise_prob2', gray_noise_prob2),
            'jpeg_range2': _quality('jpeg_range2', jpeg_range2),
        }
        self._jpeg = deepcopy(DiffJPEG(differentiable=False))  # all instances share two tables, whatever their device

    def __call__(self, batch: Mapping[str, Tensor], iteration: int) -> dict[str, Tensor]:
        """Degrades one batch, image by image.

        Args:
            batch: ``gt``, HR images (N, 3, H, W) in [0, 1], H and W at least ``gt_size``; ``kernel1``, ``kernel2`` and
                ``sinc_kernel``, (N, k, k) each, k odd.
            iteration: Number of the batch, from 0 or 1 on.

        Returns:
            ``lq``, LR patches (N, 3, gt_size / scale, gt_size / scale), multiples of 1/255 in [0, 1], and ``gt``, the
            HR patches (N, 3, gt_size, gt_size) that they show.

        Raises:
            OptionsError: The batch is not one of ``RealESRGANDataset``, or its images are too small.
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
        seeds = random_stream(self.seed, iteration).integers(2**63, size=len(images))
        pairs = []
        for index, seed in enumerate(seeds.tolist()):
            with seeded(seed, images.device):
                pairs.append(synthesis.pair({name: part[index : index + 1] for name, part in parts.items()}))
        lq, gt = (torch.cat(parts) for parts in zip(*pairs))
        return {'lq': lq, 'gt': gt}

    def _check_size(self, images: Tensor, reach: int) -> None:
        """Refuses images that a resizing may make smaller than a kernel's reach, where borders are mirrored."""
        channels, *sides = images.shape[1:]
        smallest = int(min(sides) * min(self.options['resize_range'][0], 1 / self.scale))
        if channels != 3 or min(sides) < self.gt_size or smallest <= reach:
            raise OptionsError(
                f'train.degradation: SecondOrderDegradation cannot use images of shape {tuple(images.shape[1:])}: they '
                f'need 3 channels, sides of at least gt_size, {self.gt_size}, and more than {reach} pixels after '
                f'resizing by {self.options["resize_range"][0]} or 1/{self.scale}.'
            )


class _Synthesis(RealESRGANModel):
    """Of BasicSR's model the making of LR images alone: no network, no loss, no sharpening, no pool of pairs.

    For one image at a time: on a CPU a batch of several leaves ``DiffJPEG`` in a layout that ``filter2D`` cannot view.

    Args:
        options: What ``feed_data`` reads.
        jpeg: JPEG compression as a network.
        device: Where images are.
    """

    def __init__(self, options: Mapping, jpeg: DiffJPEG, device: torch.device) -> None:
        self.opt, self.device, self.is_train = options, device, True
        self.jpeger = jpeg.to(device)

    def pair(self, data: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """LR and HR patch of one image."""
        self.feed_data(data)
        return self.lq, self.gt

    def usm_sharpener(self, images: Tensor) -> Tensor:
        """Sharpens nothing."""
        return images

    def _dequeue_and_enqueue(self) -> None:
        """Mixes nothing."""


def _probability(name: str, value: object) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f'{name}: found {value!r}, possible: 0 to 1')
    return value


def _three(name: str, value: Sequence[float]) -> list[float]:
    if len(value) != 3 or min(value) < 0 or sum(value) <= 0:
        raise ValueError(f'{name}: found {value!r}, possible: three weights, to enlarge, to shrink, to keep the size')
    return list(value)


def _around_one(name: str, value: Sequence[float]) -> tuple[float, float]:
    low, high = checked_range(name, value)
    if not 0 < low <= 1 <= high:
        raise ValueError(f'{name}: found {value!r}, possible: a factor of at most 1 and one of at least 1')
    return low, high


def _quality(name: str, value: Sequence[float]) -> tuple[float, float]:
    low, high = checked_range(name, value)
    if not 1 <= low <= high <= 99:  # at 100 BasicSR's DiffJPEG divides by zero
        raise ValueError(f'{name}: found {value!r}, possible: qualities of 1 to 99')
    return low, high
