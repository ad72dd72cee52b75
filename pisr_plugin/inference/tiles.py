"""Upscales images of any size in tiles that overlap, so that memory depends on the tile and not on the image.

Everything is done tile by tile, rounding to whole levels included. A tile's middle gets the values that the whole image
would give it, because the tile is cut out with all the context that the network and bicubic interpolation see.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pisr_plugin.inference.predict import find_tile_pad, optimized, upscale_rgb
from pisr_plugin.utils.devices import precision
from pisr_plugin.utils.errors import OptionsError
from pisr_plugin.utils.malloc import return_freed_memory
from pisr_plugin.utils.resize import bicubic_upsample

if TYPE_CHECKING:
    from pisr_plugin.data.storage.photo_files import Photo
    from pisr_plugin.inference.descriptor import ModelDescriptor

# Of a tile, in pixels of the LR image: at most this many, unless a network sees very far. Smaller tiles take less
# memory, for FSRCNN about 50 MB, and less time outside of the overlap, because they fit into the processor's caches.
SIDE = 512
_SIDE_IN_PADS = 21  # the overlap then costs 20 % of the time
_BICUBIC_PAD = 2  # pixels of the LR image that the cubic kernel reaches to either side
_GRAY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Tile:
    """A part of an image, in its rows and columns.

    Attributes:
        rows: Rows that the tile gives.
        columns: Columns that the tile gives.
        pad: Pixels of context around them, as far as the image has them.
    """

    rows: range
    columns: range
    pad: int = 0

    @property
    def context(self) -> tuple[slice, slice]:
        """Rows and columns to cut out of the image; a slice may end beyond it."""
        first = max(self.rows.start - self.pad, 0), max(self.columns.start - self.pad, 0)
        return slice(first[0], self.rows.stop + self.pad), slice(first[1], self.columns.stop + self.pad)

    def place(self, scale: int) -> tuple[slice, slice]:
        """Returns the tile's rows and columns in the upscaled image."""
        return _scaled(self.rows, 0, scale), _scaled(self.columns, 0, scale)

    def inside(self, scale: int) -> tuple[slice, slice]:
        """Returns the tile's rows and columns in its upscaled context."""
        return tuple(_scaled(part, cut.start, scale) for part, cut in zip((self.rows, self.columns), self.context))  # type: ignore[return-value]  # two of them


def split(model: ModelDescriptor, height: int, width: int, strips: int | None = None) -> list[Tile]:
    """Splits an image into tiles; a small image, or one whose parts all depend on each other, is one tile.

    Args:
        model: The network.
        height: Rows of the LR image.
        width: Columns of the LR image.
        strips: Rows of a tile, which then is as wide as the image; None: at most about :data:`SIDE` rows and columns.

    Raises:
        OptionsError: ``strips`` for a network whose output depends on the whole image.
    """
    if strips is None and height * width <= 2 * SIDE**2:
        return [Tile(range(height), range(width))]
    if strips is not None:
        check_strips(model)
    if model.tile_pad is None:
        return [Tile(range(height), range(width))]
    pad = _ceil(max(model.tile_pad, _BICUBIC_PAD), model.window)
    side = _ceil(max(SIDE // 4, min(_SIDE_IN_PADS * pad, SIDE), 4 * pad), model.window)
    rows = _parts(height, side, model.window) if strips is None else _steps(height, _ceil(strips, model.window))
    columns = _parts(width, side, model.window) if strips is None else [range(width)]
    return [Tile(row, column, pad) for row in rows for column in columns]


def check_strips(model: ModelDescriptor) -> None:
    """Raises an OptionsError that says why, if a network cannot compute an image in parts."""
    if model.tile_pad is None:
        assert model.net is not None
        find_tile_pad(model.net, torch.zeros(1, model.channels, 1, 1, device=model.device), model.window)


def upscale_tile(model: ModelDescriptor, pixels: np.ndarray, tile: Tile) -> np.ndarray:
    """Upscales one tile.

    Args:
        model: The network.
        pixels: The tile's context (h, w, C), uint8 or uint16. One channel is gray, three are RGB; one more, the last,
            is transparency, which is interpolated bicubically.
        tile: The tile.

    Returns:
        Pixels of the tile (scale * rows, scale * columns, C) of the same type.
    """
    levels = int(np.iinfo(pixels.dtype).max)
    image = torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32)).to(model.device) / levels
    colors, alpha = image.tensor_split([image.shape[1] - 1 + image.shape[1] % 2], dim=1)
    gray = colors.shape[1] == 1
    sr = _upscale_colors(model, colors.expand(-1, 3, -1, -1) if gray else colors)
    if gray:
        sr = (sr * sr.new_tensor(_GRAY).view(3, 1, 1)).sum(dim=1, keepdim=True)
    if alpha.shape[1]:
        sr = torch.cat((sr, bicubic_upsample(alpha, model.scale).clamp(0, 1)), dim=1)
    rows, columns = tile.inside(model.scale)
    rounded = (sr[0, :, rows, columns] * levels).round_().permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(rounded, dtype=pixels.dtype)


def upscale_bands(model: ModelDescriptor, photo: Photo, tiles: Iterable[Tile]) -> Iterator[np.ndarray]:
    """Upscales a photo tile by tile.

    Args:
        model: The network.
        photo: The photo.
        tiles: What :func:`split` returns for its size.

    Yields:
        The rows of the upscaled photo from top to bottom, those of one row of tiles at a time, (h, W, C).
    """
    for _, row in itertools.groupby(tiles, lambda tile: tile.rows):
        band: np.ndarray | None = None
        for tile in row:
            pixels = upscale_tile(model, photo[tile.context], tile)
            if band is None:
                band = np.empty((len(pixels), photo.size[1] * model.scale, pixels.shape[2]), pixels.dtype)
            band[:, tile.place(model.scale)[1]] = pixels
        assert band is not None  # a group has a tile
        return_freed_memory()  # of the tiles, before the encoder needs some
        yield band


def upscale_pixels(model: ModelDescriptor, pixels: np.ndarray) -> np.ndarray:
    """Upscales pixels (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or (H, W, 4), uint8 or uint16.

    Raises:
        ValueError: another shape or type.
    """
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim not in (2, 3) or (pixels.shape[2:] or (3,))[0] > 4:
        raise ValueError(f'Expected pixels (H, W, 3), uint8 or uint16, but got {pixels.shape}, {pixels.dtype}')
    image = pixels if pixels.ndim == 3 else pixels[..., None]
    out = np.empty((pixels.shape[0] * model.scale, pixels.shape[1] * model.scale, image.shape[2]), pixels.dtype)
    for tile in split(model, *pixels.shape[:2]):
        out[tile.place(model.scale)] = upscale_tile(model, image[tile.context], tile)
    return out if pixels.ndim == 3 else out[..., 0]


def upscale_tensor(model: ModelDescriptor, images: Tensor) -> Tensor:
    """Upscales images (3, H, W) or (N, 3, H, W) in [0, 1]; the values are clipped.

    Raises:
        ValueError: another shape or type.
    """
    if images.dim() not in (3, 4) or images.shape[-3] != 3 or not images.is_floating_point():
        raise ValueError(f'Expected images (N, 3, H, W) in [0, 1], but got {tuple(images.shape)}, {images.dtype}')
    height, width = images.shape[-2:]
    out = images.new_empty(*images.shape[:-2], height * model.scale, width * model.scale)
    for tile in split(model, height, width):
        (rows, columns), (top, left), (inner, middle) = tile.context, tile.place(model.scale), tile.inside(model.scale)
        part = images[..., rows, columns].to(model.device, torch.float32)
        sr = _upscale_colors(model, part if images.dim() == 4 else part[None])
        out[..., top, left] = sr[..., inner, middle]
    return out


@torch.no_grad()
def _upscale_colors(model: ModelDescriptor, rgb: Tensor) -> Tensor:
    """Upscales images (N, 3, h, w) in [0, 1] on the model's device."""
    assert model.net is not None and not model.sees_gt
    with precision(tf32=False):
        sr = upscale_rgb(optimized(model.net), rgb, on_y=model.channels == 1, window=model.window)
    if sr.shape[-2:] != (rgb.shape[-2] * model.scale, rgb.shape[-1] * model.scale):
        raise OptionsError(f'{model.name}: enlarges by {sr.shape[-1] / rgb.shape[-1]:g}. Expected {model.scale}.')
    return sr


def _steps(length: int, step: int) -> list[range]:
    return [range(first, min(first + step, length)) for first in range(0, length, step)]


def _parts(length: int, most: int, multiple: int) -> list[range]:
    """Cuts a length into equal parts of at most ``most``, which start at multiples of ``multiple``."""
    return _steps(length, _ceil(-(-length // -(-length // most)), multiple))


def _scaled(part: range, origin: int, scale: int) -> slice:
    return slice((part.start - origin) * scale, (part.stop - origin) * scale)


def _ceil(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
