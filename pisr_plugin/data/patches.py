"""Which patches a batch is made of, and two ways to cut them: one by one on the host, all at once on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from .luma import luma, luma_tensor
from .memory_images import MemoryImages
from .sampling import Draws


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
    if is_y:
        batch = torch.empty(len(patches), 1, height, width)
        plane, turned, *_ = space = np.empty((6, height, width), np.float32)
        for patch, symmetry, out in zip(patches, symmetries.tolist(), batch.numpy()):
            if any(symmetry):  # cheaper on one plane of floats than on three channels
                luma(patch, plane, space[2:])
                _transform(plane, symmetry, turned, out[0])
            else:
                luma(patch, out[0], space[2:])
        return batch
    planes = np.empty((len(patches), 3, height, width), np.uint8)
    turned, transposed = np.empty((2, height, width, 3), np.uint8)
    for patch, symmetry, out in zip(patches, symmetries.tolist(), planes):
        whole = np.ascontiguousarray(patch)
        cv2.split(_transform(whole, symmetry, turned, transposed) if any(symmetry) else whole, list(out))
    return torch.from_numpy(planes).float().div_(255)


def _transform(img: np.ndarray, symmetry: list[bool], turned: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Applies a symmetry that is not the identity; returns ``out``, with ``turned`` as space in between."""
    hflip, vflip, transpose = symmetry
    if hflip or vflip:
        img = cv2.flip(img, -1 if hflip and vflip else int(hflip), turned if transpose else out)
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
