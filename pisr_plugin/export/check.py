"""Runs an export on photos of odd sizes and compares it with PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from pisr_plugin.data.storage.image_files import list_images, read_rgb
from pisr_plugin.inference.card import Card
from pisr_plugin.inference.predict import pad_to_window
from pisr_plugin.utils.color import rgb_to_y
from pisr_plugin.utils.errors import DataError
from pisr_plugin.utils.resize import imresize_uint8

LARGEST = 255  # side in pixels of an LR image; of larger photos the middle is taken
SYNTHETIC = ((47, 61), (95, 33), (129, 111))  # heights and widths in LR pixels
RUNS = 5  # each runtime's shortest time counts


@dataclass(frozen=True)
class Sample:
    """An image pair.

    Attributes:
        lq: LR image (1, C, h, w) in [0, 1], its sides odd.
        gt: Ground truth (1, C, scale * h, scale * w).
    """

    lq: Tensor
    gt: Tensor


@dataclass(frozen=True)
class Comparison:
    """An export beside PyTorch, which computes in float32.

    Attributes:
        difference: Largest difference of two pixels in levels of 255, before clipping.
        psnr: Mean PSNR of the export in dB, on what the network works on, without a border as wide as the scale.
        psnr_torch: That of PyTorch.
        seconds: The export's time for the largest image.
        seconds_torch: PyTorch's time for it.
    """

    difference: float
    psnr: float
    psnr_torch: float
    seconds: float
    seconds_torch: float

    @property
    def loss(self) -> float:
        """PSNR that the export loses, in dB."""
        return self.psnr_torch - self.psnr

    @property
    def speed(self) -> float:
        """How many times as fast as PyTorch the export is."""
        return self.seconds_torch / self.seconds


def samples(folder: Path | None, card: Card, count: int = 8) -> list[Sample]:
    """Makes image pairs of odd LR sizes from photos, reduced as MATLAB does.

    Args:
        folder: A folder of photos; None: gradients, waves and noise are drawn.
        card: The model's card, for scale and colour.
        count: Number of photos to take at most.

    Raises:
        DataError: the folder has no photos, or one is too small.
    """
    if folder is None:
        generator = np.random.default_rng(0)
        images = [_draw(h * card.scale, w * card.scale, generator) for h, w in SYNTHETIC]
        return [_sample(image, card) for image in images]
    pairs = []
    for path in list_images(folder)[:count]:
        gt = read_rgb(path)
        height, width = (_odd(min(side // card.scale, LARGEST)) * card.scale for side in gt.shape[:2])
        if min(height, width) < 16 * card.scale:
            raise DataError(
                f'{path}: too small (found {gt.shape[1]}x{gt.shape[0]}). Expected {17 * card.scale} pixels.'
            )
        top, left = (gt.shape[0] - height) // 2, (gt.shape[1] - width) // 2
        pairs.append(_sample(gt[top : top + height, left : left + width], card))
    return pairs


def compare(
    export: Callable[[Tensor], Tensor], network: Callable[[Tensor], Tensor], pairs: Sequence[Sample], window: int
) -> Comparison:
    """Runs an export and a network on the same images.

    Args:
        export: What a format's ``load`` returns.
        network: The network in PyTorch.
        pairs: The images.
        window: Number of pixels that the sides of the input must be multiples of; images are mirrored up to it.
    """
    differences, psnr, psnr_torch = [], [], []
    for pair in pairs:
        lq = pad_to_window(pair.lq, window)
        sr, expected = export(lq), network(lq)
        differences.append(float((sr - expected).abs().max()))
        psnr.append(_psnr(sr, pair))
        psnr_torch.append(_psnr(expected, pair))
    lq = pad_to_window(max(pairs, key=lambda pair: pair.lq.numel()).lq, window)
    times = [(_seconds(export, lq), _seconds(network, lq)) for _ in range(RUNS)]  # in turn: the machine's load changes
    seconds, seconds_torch = (min(column) for column in zip(*times))
    # max() of Python drops NaN
    return Comparison(255 * float(np.max(differences)), fmean(psnr), fmean(psnr_torch), seconds, seconds_torch)


def _sample(gt: np.ndarray, card: Card) -> Sample:
    lq = imresize_uint8(gt, 1 / card.scale)
    return Sample(*(_planes(image, card.color) for image in (lq, gt)))


def _planes(image: np.ndarray, color: str) -> Tensor:
    rgb = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    return rgb_to_y(rgb) if color == 'y' else rgb.float() / 255


def _draw(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """A gradient with waves and some noise, (H, W, 3), uint8."""
    rows, columns = np.mgrid[:height, :width]
    waves = np.sin(rows[..., None] / (3 + np.arange(3))) * np.cos(columns[..., None] / 5)
    ramp = 255 * (rows / height + columns / width)[..., None] / 2
    image = ramp + 40 * waves + generator.normal(0, 4, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8)


def _odd(number: int) -> int:
    return number - 1 + number % 2


def _psnr(sr: Tensor, pair: Sample) -> float:
    scale = pair.gt.shape[-1] // pair.lq.shape[-1]
    height, width = pair.gt.shape[-2:]
    error = sr[..., :height, :width].clamp(0, 1) - pair.gt
    return float(-10 * (error[..., scale:-scale, scale:-scale] ** 2).mean().clamp(min=1e-10).log10())


def _seconds(run: Callable[[Tensor], Tensor], lq: Tensor) -> float:
    start = time.perf_counter()
    run(lq)
    return time.perf_counter() - start
