"""Which patches a batch is made of, and two ways to cut them: one by one on the host, all at once on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from .luma import Luma, luma_tensor
from .memory_images import MemoryImages
from .sampling import Draws

Make = Callable[[Tensor, bool, bool, np.ndarray], None]  # image, whether to mirror and to transpose it, result


class Patches(NamedTuple):
    """Square patches of B images.

    Attributes:
        indices: Of which image each is, (B,), int64.
        corners: Row and column where it begins, (B, 2), int64.
        symmetries: Whether it is mirrored left-right, then top-bottom, then transposed, (B, 3), bool; BasicSR's
            ``augment`` does it in this order.
    """

    indices: np.ndarray
    corners: np.ndarray
    symmetries: np.ndarray

    def enlarged(self, scale: int) -> Patches:
        """The same patches in images of ``scale`` times the size."""
        return self._replace(corners=self.corners * scale)


def draw_patches(draws: Draws, sizes: np.ndarray, side: int, use_hflip: bool, use_rot: bool) -> Patches:
    """Places patches at random, every place and every symmetry that is allowed equally likely.

    Args:
        draws: Images and random numbers.
        sizes: Heights and widths of all images, (N, 2), none less than ``side``.
        side: Height and width of the patches.
        use_hflip: Mirror half of them left-right.
        use_rot: Mirror half of them top-bottom, and transpose half of them.
    """
    places = sizes[draws.indices] - (side - 1)
    corners = (draws.uniform[:, :2] * places).astype(np.int64)
    eighths = (draws.uniform[:, 2] * 8).astype(np.int64)
    symmetries = (eighths[:, None] & np.array([1, 2, 4])) > 0
    return Patches(draws.indices, corners, symmetries & np.array([use_hflip, use_rot, use_rot]))


def cut_on_host(patches: Sequence[np.ndarray], symmetries: np.ndarray, is_y: bool) -> Tensor:
    """Makes a batch of patches that are still views of their images.

    Args:
        patches: B arrays of shape (H, W, 3), uint8, RGB; square where they are transposed.
        symmetries: As in :class:`Patches`.
        is_y: Luminance, or the three channels.

    Returns:
        Tensor of shape (B, 1 or 3, H, W), float32, from 0 to 1.
    """
    height, width, _ = patches[0].shape
    batch = torch.empty(len(patches), 1 if is_y else 3, height, width)
    make = _luma_maker(height, width) if is_y else _rgb_maker(height, width)
    # A patch is gathered from its rows first: what follows runs on contiguous memory that stays in the cache.
    whole = torch.empty(height, width, 3, dtype=torch.uint8)
    array = whole.numpy()
    for patch, (hflip, vflip, transpose), out in zip(patches, symmetries.tolist(), batch.numpy()):
        np.copyto(array, patch[::-1] if vflip else patch)
        make(whole, hflip, transpose, out)
    return batch


def _luma_maker(height: int, width: int) -> Make:
    luma = Luma(height, width)
    plane = torch.empty(height, width)
    array = plane.numpy()
    half_way = np.empty((height, width), np.float32)

    def make(img: Tensor, hflip: bool, transpose: bool, out: np.ndarray) -> None:
        luma(img, plane)
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
        img = img.numpy()
        cv2.split(_turn(img, hflip, transpose, half_way, turned) if hflip or transpose else img, channels)
        floats.copy_(planes)
        np.divide(array, np.float32(255), out=out)

    return make


def _turn(img: np.ndarray, hflip: bool, transpose: bool, half_way: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Mirrors left-right, transposes, or both; returns ``out``."""
    if hflip:
        img = cv2.flip(img, 1, half_way if transpose else out)
    return cv2.transpose(img, out) if transpose else img


def plan_on_device(patches: Patches, images: MemoryImages, side: int) -> np.ndarray:
    """Where each patch finds its pixels in :attr:`MemoryImages.pixels`.

    Returns:
        The place of the first pixel and the steps to the next row and to the next column, (B, 3), int64.
    """
    row = images.sizes[patches.indices, 1] * 3
    column = np.full_like(row, 3)
    first = images.offsets[patches.indices] + patches.corners[:, 0] * row + patches.corners[:, 1] * column
    hflip, vflip, transpose = patches.symmetries.T
    first = first + hflip * (side - 1) * column + vflip * (side - 1) * row
    column, row = np.where(hflip, -column, column), np.where(vflip, -row, row)
    return np.stack([first, np.where(transpose, column, row), np.where(transpose, row, column)], 1)


def cut_on_device(pixels: Tensor, plan: Tensor, side: int, is_y: bool) -> Tensor:
    """Makes a whole batch with one gather; nothing depends on values, so that it can be captured in a CUDA graph.

    Args:
        pixels: :attr:`MemoryImages.pixels`.
        plan: What :func:`plan_on_device` gives, on the device of ``pixels``.
        side: Height and width of the patches.
        is_y: Luminance, or the three channels.

    Returns:
        Tensor of shape (B, 1 or 3, side, side), float32, from 0 to 1.
    """
    steps = torch.arange(side, device=pixels.device)
    channels = torch.arange(3, device=pixels.device).view(1, 3, 1, 1)
    first, row, column = (part.view(-1, 1, 1, 1) for part in plan.unbind(1))
    batch = pixels[first + channels + row * steps.view(1, 1, -1, 1) + column * steps]
    return luma_tensor(batch) if is_y else batch.float().div_(255)
