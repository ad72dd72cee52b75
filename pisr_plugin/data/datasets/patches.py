"""Draws the patches of a batch, and makes them in two ways: one by one on the host, all at once on a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from pisr_plugin.data.storage.memory_store import MemoryStore
from pisr_plugin.utils.color import RGBToY, rgb_to_y
from pisr_plugin.utils.resize import imresize_uint8

Make = Callable[[Tensor, bool, bool, np.ndarray], None]  # patch, whether to mirror and to transpose it, result

_REACH = 2  # LR pixels: MATLAB's cubic kernel, stretched for downscaling, reaches less than two to each side


class SampleDraws(NamedTuple):
    """The random choices of a batch of B samples.

    Attributes:
        indices: Index of each sample's image, (B,), int64.
        uniform: Three numbers in [0, 1) per sample, which decide its place and symmetry, (B, 3), float64.
        seeds: Seed of each sample, for datasets that draw their own random numbers, (B,), int64, not negative.
    """

    indices: np.ndarray
    uniform: np.ndarray
    seeds: np.ndarray


class Patches(NamedTuple):
    """Square patches of B images.

    Attributes:
        indices: Index of each patch's image, (B,), int64.
        corners: Row and column of the top left pixel, (B, 2), int64.
        symmetries: Whether the patch is mirrored left-right, then top-bottom, then transposed, (B, 3), bool; this is
            the order of BasicSR's ``augment``.
    """

    indices: np.ndarray
    corners: np.ndarray
    symmetries: np.ndarray

    def upscaled(self, scale: int) -> Patches:
        """Returns the same patches in images of ``scale`` times the size."""
        return self._replace(corners=self.corners * scale)


def draw_patches(draws: SampleDraws, sizes: np.ndarray, side: int, use_hflip: bool, use_rot: bool) -> Patches:
    """Places patches at random; every place and every allowed symmetry is equally likely.

    Args:
        draws: The images' indices and random numbers.
        sizes: Heights and widths of all images, (N, 2), each at least ``side``.
        side: Height and width of the patches in pixels.
        use_hflip: Whether to mirror half of the patches left-right.
        use_rot: Whether to mirror half of the patches top-bottom, and to transpose half of them.
    """
    places = sizes[draws.indices] - (side - 1)
    corners = (draws.uniform[:, :2] * places).astype(np.int64)
    eighths = (draws.uniform[:, 2] * 8).astype(np.int64)
    symmetries = (eighths[:, None] & np.array([1, 2, 4])) > 0
    return Patches(draws.indices, corners, symmetries & np.array([use_hflip, use_rot, use_rot]))


def make_on_host(patches: Sequence[np.ndarray], symmetries: np.ndarray, is_y: bool) -> Tensor:
    """Makes a batch of views of images.

    Args:
        patches: B arrays of shape (H, W, 3), uint8, RGB; square where they are transposed.
        symmetries: As in :class:`Patches`.
        is_y: Whether to make the Y channel instead of three channels.

    Returns:
        Tensor of shape (B, 1 or 3, H, W), float32, from 0 to 1.
    """
    height, width, _ = patches[0].shape
    batch = torch.empty(len(patches), 1 if is_y else 3, height, width)
    make = _y_maker(height, width) if is_y else _rgb_maker(height, width)
    # Copying the rows of a patch first lets all that follows run on contiguous memory that stays in the cache.
    whole = torch.empty(height, width, 3, dtype=torch.uint8)
    array = whole.numpy()
    for patch, (hflip, vflip, transpose), out in zip(patches, symmetries.tolist(), batch.numpy()):
        np.copyto(array, patch[::-1] if vflip else patch)
        make(whole, hflip, transpose, out)
    return batch


def _y_maker(height: int, width: int) -> Make:
    to_y = RGBToY(height, width)
    plane = torch.empty(height, width)
    array = plane.numpy()
    half_way = np.empty((height, width), np.float32)

    def make(img: Tensor, hflip: bool, transpose: bool, out: np.ndarray) -> None:
        to_y(img, plane)
        if hflip or transpose:  # cheaper on one plane of floats than on three channels
            _turn(array, hflip, transpose, half_way, out[0])
        else:
            np.copyto(out[0], array)

    return make


def _rgb_maker(height: int, width: int) -> Make:
    half_way, turned = np.empty((2, height, width, 3), np.uint8)
    planes = torch.empty(3, height, width, dtype=torch.uint8)
    channels = list(planes.numpy())
    floats = torch.empty(3, height, width)
    array = floats.numpy()

    def make(img: Tensor, hflip: bool, transpose: bool, out: np.ndarray) -> None:
        rgb = img.numpy()
        cv2.split(_turn(rgb, hflip, transpose, half_way, turned) if hflip or transpose else rgb, channels)
        floats.copy_(planes)
        np.divide(array, np.float32(255), out=out)

    return make


def _turn(img: np.ndarray, hflip: bool, transpose: bool, half_way: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Mirrors left-right, transposes, or both; returns ``out``."""
    if hflip:
        img = cv2.flip(img, 1, half_way if transpose else out)
    return cv2.transpose(img, out) if transpose else img


def gather_indices(patches: Patches, images: MemoryStore, side: int) -> np.ndarray:
    """Finds the pixels of each patch in :attr:`MemoryStore.pixels`.

    Args:
        patches: B patches.
        images: The images that they are cut from.
        side: Height and width of the patches in pixels.

    Returns:
        Index of the first value of each patch, and the distances to the next row and column, (B, 3), int64.
    """
    row = images.sizes[patches.indices, 1] * 3
    column = np.full_like(row, 3)
    first = images.offsets[patches.indices] + patches.corners[:, 0] * row + patches.corners[:, 1] * column
    hflip, vflip, transpose = patches.symmetries.T
    first = first + hflip * (side - 1) * column + vflip * (side - 1) * row
    column, row = np.where(hflip, -column, column), np.where(vflip, -row, row)
    return np.stack([first, np.where(transpose, column, row), np.where(transpose, row, column)], 1)


def gather(pixels: Tensor, indices: Tensor, side: int, is_y: bool) -> Tensor:
    """Makes a whole batch with one gather operation, which a CUDA graph can capture.

    Args:
        pixels: :attr:`MemoryStore.pixels`.
        indices: Result of :func:`gather_indices`, on the device of ``pixels``.
        side: Height and width of the patches in pixels.
        is_y: Whether to make the Y channel instead of three channels.

    Returns:
        Tensor of shape (B, 1 or 3, side, side), float32, from 0 to 1.
    """
    steps = torch.arange(side, device=pixels.device)
    channels = torch.arange(3, device=pixels.device).view(1, 3, 1, 1)
    first, row, column = (part.view(-1, 1, 1, 1) for part in indices.unbind(1))
    batch = pixels[first + channels + row * steps.view(1, 1, -1, 1) + column * steps]
    return rgb_to_y(batch) if is_y else batch.float().div_(255)


def lr_patch(hr: np.ndarray, top: int, left: int, side: int, scale: int) -> np.ndarray:
    """Makes a patch of the bicubic LR image, equal bit for bit to one cut from the whole LR image.

    Args:
        hr: The whole HR image, (H, W, 3), uint8; the sides are multiples of ``scale``.
        top: First row of the patch in the LR image.
        left: First column of the patch in the LR image.
        side: Height and width of the patch in LR pixels.
        scale: Upscaling factor.

    Returns:
        Array of shape (side, side, 3), uint8.
    """
    # Where a slice reaches over the border, imresize_uint8 mirrors it in the same place as the whole image.
    rows, columns = (slice(max(0, first - _REACH) * scale, (first + side + _REACH) * scale) for first in (top, left))
    small = imresize_uint8(hr[rows, columns], 1 / scale)
    top, left = min(top, _REACH), min(left, _REACH)
    return small[top : top + side, left : left + side]


def noise_batch(opt: Mapping[str, Any], count: int) -> dict[str, Tensor]:
    """Makes a batch of noise shaped like a stage's training patches, the same at every call, to try a model out.

    Args:
        opt: Options of the stage.
        count: Number of image pairs.
    """
    data_opt, scale = opt['datasets']['train'], opt['scale']
    channels = 1 if data_opt.get('color') == 'y' else 3
    size = data_opt.get('gt_size') or 32 * scale
    generator = torch.Generator().manual_seed(0)
    sides = {'lq': size // scale, 'gt': size}
    return {name: torch.rand(count, channels, side, side, generator=generator) for name, side in sides.items()}
