"""Run a network on whole images: fast, in little memory, with the values of a plain forward pass.

.. code-block:: python

    net = optimized(load_model(options, 'net_g_latest.pth').net)
    sr = upscale(net, lq)                    # (N, C, H, W) in [0, 1]
    sr = upscale(net, lq, tile_rows=64)      # the same image, in a fraction of the memory
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.nn import functional as F

from pisr_plugin.utils.color import luminance
from pisr_plugin.utils.devices import precision
from pisr_plugin.utils.errors import OptionsError
from pisr_plugin.utils.resize import bicubic_upsample

_PROBES = 64, 256  # heights in pixels of the trial images
_PHASES = 16  # rows to mark in turn: the reach may depend on a row's position in a block, a window or a stride


def optimized(net: nn.Module, *, compile: bool = False, example: Tensor | None = None) -> nn.Module:
    """Prepares a network for inference; its values stay those of fp32.

    Args:
        net: The network. It is changed in place: evaluation mode, and the channels_last layout, in which convolutions
            are fastest.
        compile: Whether to use torch.compile. Compiling takes up to minutes for a deep network, at the first image.
        example: An image (N, C, H, W). The network is compiled now, for this size only. The result is a little faster
            and does not see later changes of the weights. Without it one compilation serves all sizes.

    Returns:
        The network, or a compiled network that shares its weights. Call it under :func:`torch.no_grad`.

    Raises:
        RuntimeError: the network compiled for one size gives another image (torch 2.13 does so for some weights that
            are views).
    """
    net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's overloads
    if not compile:
        return net
    if example is None:
        return cast(nn.Module, torch.compile(net, dynamic=True))
    compiled = cast(nn.Module, torch.compile(net, dynamic=False))
    # Freezing only here: with free sizes it fails in torch 2.13 (assert_size_stride).
    with torch.no_grad(), inductor.patch(freezing=True):
        found = compiled(example)
    with torch.no_grad():
        expected = net(example)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()):
        raise RuntimeError(
            f'{type(net).__name__}, compiled for one size, gives another image. Compile it without example.'
        )
    return compiled


@torch.no_grad()
def upscale(
    net: nn.Module, lq: Tensor, *, window: int = 1, tile_rows: int | None = None, tile_pad: int | None = None
) -> Tensor:
    """Super-resolves images of any size.

    Args:
        net: A network in evaluation mode, see :func:`optimized`.
        lq: Images (N, C, H, W) on the network's device.
        window: Side of the network's attention windows in pixels. The image is mirrored at its right and lower border
            until its sides are multiples of this.
        tile_rows: Height in rows of ``lq`` of the tiles that are computed one by one; None computes all at once. The
            values are the same to rounding.
        tile_pad: Rows of context above and below a tile. By default :func:`find_tile_pad` finds it, which takes a
            moment.

    Returns:
        Images (N, C', scale * H, scale * W), not clipped.

    Raises:
        OptionsError: ``tile_rows`` for a network whose output depends on the whole image.
    """
    height, width = lq.shape[-2:]
    whole = pad_to_window(lq, window)
    if tile_rows is None:
        out = net(whole)
    else:
        if tile_pad is None:
            tile_pad = find_tile_pad(net, lq, window)
        out = _by_tiles(net, whole, _ceil(tile_rows, window), _ceil(tile_pad, window))
    scale = out.shape[-1] // whole.shape[-1]
    return out[..., : height * scale, : width * scale]


def upscale_rgb(net: nn.Module, rgb: Tensor, on_y: bool, **options) -> Tensor:
    """Super-resolves RGB images. For a luminance network the colours are interpolated bicubically.

    Args:
        net: As for :func:`upscale`.
        rgb: Images (N, 3, h, w) in [0, 1] on the network's device.
        on_y: Whether ``net`` works on BT.601 luminance.
        **options: Options of :func:`upscale`.

    Returns:
        Images (N, 3, scale * h, scale * w) in [0, 1].
    """
    if not on_y:
        return upscale(net, rgb, **options).clamp(0, 1)
    return add_chroma(upscale(net, luminance(rgb), **options), rgb)


def add_chroma(y: Tensor, rgb: Tensor) -> Tensor:
    """Combines an upscaled luminance with the colours of its LR image, upscaled bicubically.

    Args:
        y: Luminance (..., 1, scale * h, scale * w); it is clipped to [0, 1].
        rgb: LR image (..., 3, h, w) in [0, 1].

    Returns:
        Image (..., 3, scale * h, scale * w) in [0, 1].
    """
    # Unlike imresize, whose weights are rounded by a pixel's position, this gives each part of an image its values.
    blurred = bicubic_upsample(rgb, y.shape[-1] // rgb.shape[-1]).clamp(0, 1)
    # With the same Cb and Cr, a change of Y changes red, green and blue alike.
    return (blurred + 255 / 219 * (y.clamp(0, 1) - luminance(blurred))).clamp(0, 1)


def pad_to_window(image: Tensor, window: int) -> Tensor:
    """Mirrors the right and lower borders of images (N, C, H, W) until their sides are multiples of ``window``."""
    below, right = (-side % window for side in image.shape[-2:])
    if not (below or right):
        return image
    mirrored = below < image.shape[-2] and right < image.shape[-1]  # a smaller image cannot be mirrored
    return F.pad(image, (0, right, 0, below), 'reflect' if mirrored else 'replicate')


@torch.no_grad()
def find_tile_pad(net: nn.Module, lq: Tensor, window: int = 1) -> int:
    """Finds the context, on every side, with which tiles give the values of the whole image.

    First it marks a row with NaN: every output row that depends on it is NaN too, whatever the weights are. Then it
    computes noise whole and in tiles and compares, because attention over a downsampled map, for one, depends on a
    row's position in the image. It does the same for columns.

    Args:
        net: A network in evaluation mode.
        lq: An image (N, C, H, W); only its channels, device and dtype count.
        window: Side of the network's attention windows in pixels.

    Returns:
        Number of rows and columns of ``lq``.

    Raises:
        OptionsError: the output depends on the whole image, or on more rows than the trial images have.
    """
    net = getattr(net, '_orig_mod', net)  # a compiled network would be compiled again for the trial images
    return max(_find_rows(net, net, lq, window), _find_rows(net, lambda x: net(x.mT).mT, lq, window))


def _find_rows(net: nn.Module, forward: Callable[[Tensor], Tensor], lq: Tensor, window: int) -> int:
    """Finds the rows of context that tiles of rows need; ``forward`` calls ``net``."""
    columns = _ceil(8, window)  # narrow, to take little time; columns do not influence the reach in rows
    with precision(tf32=False):
        for rows in _PROBES:
            tile_pad = _reach(forward, lq.new_zeros(1, lq.shape[1], _ceil(rows, window), columns))
            if tile_pad is not None:
                break
        else:
            raise OptionsError(
                f'strips: the output of {type(net).__name__} depends on the whole image (global pooling, as in '
                f'contrast attention) or on more than {_PROBES[-1] // 2} rows around. Compute the image at once.'
            )
        tile, tile_pad = _ceil(8, window), _ceil(tile_pad, window)
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(1, lq.shape[1], 2 * (tile_pad + tile) + tile, columns, generator=generator).to(lq)
        whole = forward(noise)
        difference = (whole - _by_tiles(forward, noise, tile, tile_pad)).abs().max()
    if difference > max(1e-5, 8 * torch.finfo(whole.dtype).eps) * whole.abs().max():
        raise OptionsError(
            f'strips: {type(net).__name__} gives another image in strips (its attention pools over the whole image, or '
            f'its windows differ from {window}). Compute the image at once.'
        )
    return tile_pad


def _reach(forward: Callable[[Tensor], Tensor], blank: Tensor) -> int | None:
    """Returns over how many rows a row spreads at most; None where it reaches the image's border.

    Args:
        forward: Computes the network's output.
        blank: An image (1, C, H, W) of zeros.
    """
    height, middle = blank.shape[2], blank.shape[2] // 2
    reach = 0
    for row in range(middle, middle + _PHASES):
        marked = blank.clone()
        marked[:, :, row] = torch.nan
        out = forward(marked)
        seen = out.isnan().any(dim=3).any(dim=1)[0].unflatten(0, (height, -1)).any(dim=1).nonzero()
        first, last = seen.min().item(), seen.max().item()
        if first == 0 or last == height - 1:
            return None
        reach = max(reach, row - first, last - row)
    return reach


def _by_tiles(net: Callable[[Tensor], Tensor], lq: Tensor, tile_rows: int, tile_pad: int) -> Tensor:
    """Returns the output, computed for ``tile_rows`` rows after the other with ``tile_pad`` rows on either side."""
    height, out = lq.shape[2], None
    for top in range(0, height, tile_rows):
        first, bottom = max(top - tile_pad, 0), min(top + tile_rows, height)
        part = net(lq[:, :, first : bottom + tile_pad])
        scale = part.shape[-1] // lq.shape[-1]
        if out is None:
            out = part.new_empty(*part.shape[:2], height * scale, part.shape[3])
        out[:, :, top * scale : bottom * scale] = part[:, :, (top - first) * scale : (bottom - first) * scale]
    assert out is not None  # an image has a row
    return out


def _ceil(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
