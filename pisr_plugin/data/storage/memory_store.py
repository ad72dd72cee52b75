"""Decoded images side by side in one tensor, in memory or on a device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from pisr_plugin.utils.errors import DataError


class MemoryStore:
    """Images of various sizes in one flat tensor.

    Args:
        keys: Names of the images.
        sizes: Heights and widths, (N, 2), int64.
        images: The images in the order of the keys, each (H, W, 3), uint8.

    Attributes:
        pixels: All values, one image after the other, (sum of H * W * 3,), uint8.
        offsets: Where each image begins in ``pixels``, (N,), int64.

    Raises:
        DataError: the images need more memory than there is.
    """

    def __init__(self, keys: Sequence[str], sizes: np.ndarray, images: Iterable[np.ndarray]) -> None:
        self.keys = list(keys)
        self.sizes = sizes
        lengths = sizes.prod(1) * 3
        self.offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        total = int(lengths.sum())
        try:
            self.pixels = torch.empty(total, dtype=torch.uint8)
        except RuntimeError:
            raise DataError(f'{total / 1e9:.1f} GB of images do not fit into memory. Expected store: lmdb.') from None
        flat = self.pixels.numpy()
        for offset, length, img in zip(self.offsets, lengths, images):
            flat[offset : offset + length] = img.reshape(-1)

    def __len__(self) -> int:
        return len(self.keys)

    def views(self, indices: Iterable[int]) -> list[np.ndarray]:
        """Returns images of shape (H, W, 3), uint8; the pixels must be in the host's memory."""
        flat = self.pixels.numpy()
        found = []
        for index in indices:
            height, width = self.sizes[index].tolist()
            offset = int(self.offsets[index])
            found.append(flat[offset : offset + height * width * 3].reshape(height, width, 3))
        return found

    def to(self, device: torch.device) -> None:
        """Moves the pixels to a device.

        Raises:
            DataError: the pixels do not fit into the device's memory.
        """
        try:
            self.pixels = self.pixels.to(device)
        except torch.OutOfMemoryError:
            raise DataError(
                f'{self.pixels.numel() / 1e9:.1f} GB of images do not fit into the memory of {device}. '
                'Expected store: lmdb or store: memory.'
            ) from None
