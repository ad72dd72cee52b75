"""Run a network on whole images: fast, in little memory, with the values of a plain forward pass.

.. code-block:: python

    net = optimized(load(options, 'net_g_latest.pth'))
    sr = upscale(net, lq)                    # (N, C, H, W) in [0, 1]
    sr = upscale(net, lq, strips=64)         # the same image, in a fraction of the memory
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from basicsr.archs import build_network
from basicsr.utils.color_util import rgb2ycbcr, ycbcr2rgb
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.nn import functional as F

from pisr_plugin import checkpoint
from pisr_plugin.archs.traits import input_names
from pisr_plugin.errors import OptionsError
from pisr_plugin.resize import imresize

_PROBES = 64, 256  # rows of the images on which the reach of a network is looked for
_PHASES = 16  # rows tried in turn: a reach may depend on the place in a block, a window, a stride


def build(options: Mapping) -> nn.Module:
    """Builds a registered network.

    Args:
        options: Its options, with ``type``.

    Returns:
        The network in evaluation mode.

    Raises:
        OptionsError: it cannot be built.
    """
    try:
        return build_network(dict(options)).eval()
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise OptionsError(f'{options.get("type")} cannot be built: {error}') from None


def load(
    options: Mapping, weights: str | os.PathLike, param_key: str | None = 'params', *, sees_gt: bool = False
) -> nn.Module:
    """Builds a registered network and loads its weights.

    Args:
        options: Its options, with ``type``.
        weights: A checkpoint, see :func:`pisr_plugin.checkpoint.load_weights`.
        param_key: The container in it that is wanted.
        sees_gt: Whether a network that sees the ground truth, as a teacher does, is of use.

    Returns:
        The network in evaluation mode.

    Raises:
        OptionsError: the network cannot be built, or sees the ground truth and must not.
        CheckpointError: the file is missing, damaged or belongs to another network.
    """
    net = build(options)
    if not sees_gt and 'gt' in input_names(net):
        raise OptionsError(f'{options["type"]} sees the HR image, so it cannot make one.')
    checkpoint.load_network(net, weights, param_key)
    return net


def optimized(net: nn.Module, *, compile: bool = False, example: Tensor | None = None) -> nn.Module:
    """Prepares a network for inference; its values stay those of fp32.

    Args:
        net: Changed in place: evaluation mode and channels_last, the layout that convolutions are fastest in.
        compile: Whether torch.compile is used too. The first image waits for it, up to minutes for a deep network.
        example: (N, C, H, W), an image of the one size to compile for, at once. That is a little faster, because the
            weights are built in, later changes of which are not seen. Without it all sizes share one compilation.

    Returns:
        The network, or a compiled one that shares its weights. Call it under :func:`torch.no_grad`.

    Raises:
        RuntimeError: compiled for one size it gives another image, as torch 2.13 does for some stretched weights.
    """
    net.eval().to(memory_format=torch.channels_last)
    if not compile:
        return net
    if example is None:
        return torch.compile(net, dynamic=True)
    compiled = torch.compile(net, dynamic=False)
    # Freezing is for this compilation only: with free sizes it fails in torch 2.13 (assert_size_stride).
    with torch.no_grad(), inductor.patch(freezing=True):
        found = compiled(example)
    with torch.no_grad():
        expected = net(example)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()):
        raise RuntimeError(f'{type(net).__name__}, compiled for one size, gives another image; compile without example')
    return compiled


@torch.no_grad()
def upscale(
    net: nn.Module, lq: Tensor, *, window: int = 1, strips: int | None = None, halo: int | None = None
) -> Tensor:
    """Super-resolves images of any size.

    Args:
        net: A network in evaluation mode, see :func:`optimized`.
        lq: (N, C, H, W) on the network's device.
        window: Side of the windows that the network works in, see :func:`~pisr_plugin.archs.traits.window_size`; the
            image is mirrored at its right and lower border until whole windows fill it.
        strips: Rows of ``lq`` to compute at a time; all at once by default. The values are the same to rounding.
        halo: Rows of context above and below a strip; found by :func:`strip_halo` by default, which takes a moment.

    Returns:
        (N, C', scale * H, scale * W), not clipped.

    Raises:
        OptionsError: ``strips`` for a network whose output depends on the whole image.
    """
    height, width = lq.shape[-2:]
    whole = whole_windows(lq, window)
    if strips is None:
        out = net(whole)
    else:
        if halo is None:
            halo = strip_halo(net, lq, window)
        out = _by_strips(net, whole, _ceil(strips, window), _ceil(halo, window))
    scale = out.shape[-1] // whole.shape[-1]
    return out[..., : height * scale, : width * scale]


def upscale_rgb(net: nn.Module, rgb: Tensor, on_y: bool, **options) -> Tensor:
    """Super-resolves one RGB image; a luminance network gets its colours from bicubic interpolation.

    Args:
        net: As for :func:`upscale`.
        rgb: (3, h, w) in [0, 1].
        on_y: Whether ``net`` works on BT.601 luminance.
        **options: Of :func:`upscale`.

    Returns:
        (3, scale * h, scale * w) in [0, 1], on the CPU.
    """
    device = next((p.device for p in net.parameters()), rgb.device)
    if not on_y:
        return upscale(net, rgb[None].to(device), **options)[0].clamp(0, 1).cpu()
    y = torch.from_numpy(rgb2ycbcr(rgb.permute(1, 2, 0).numpy(), y_only=True))[None, None]
    return coloured(upscale(net, y.to(device), **options)[0, 0].cpu(), rgb)


def coloured(y: Tensor, rgb: Tensor) -> Tensor:
    """Gives an upscaled luminance the colours of its LR image, upscaled bicubically.

    Args:
        y: (scale * h, scale * w) in [0, 1], clipped to that.
        rgb: (3, h, w) in [0, 1].

    Returns:
        (3, scale * h, scale * w) in [0, 1].
    """
    ycbcr = rgb2ycbcr(imresize(rgb, y.shape[-1] // rgb.shape[-1]).clamp(0, 1).permute(1, 2, 0).numpy())
    ycbcr[..., 0] = y.clamp(0, 1).numpy()
    return torch.from_numpy(ycbcr2rgb(ycbcr)).permute(2, 0, 1).clamp(0, 1)


def whole_windows(image: Tensor, window: int) -> Tensor:
    """Mirrors the right and lower borders of images (N, C, H, W) until their sides are multiples of ``window``."""
    below, right = (-side % window for side in image.shape[-2:])
    if not (below or right):
        return image
    mirrored = below < image.shape[-2] and right < image.shape[-1]  # else the image is too small for a mirror
    return F.pad(image, (0, right, 0, below), 'reflect' if mirrored else 'replicate')


@torch.no_grad()
def strip_halo(net: nn.Module, lq: Tensor, window: int = 1) -> int:
    """Rows of context that a strip needs on either side for the values of the whole image.

    A row of NaN marks all that depends on it, whatever the weights. That finds the reach; noise computed both ways
    then proves that strips give the same image, which attention over a downsampled map, for one, would not.

    Args:
        net: A network in evaluation mode.
        lq: (N, C, H, W), for its channels, device and dtype.
        window: Side of the windows that the network works in.

    Returns:
        Number of rows of ``lq``.

    Raises:
        OptionsError: the output depends on the whole image, or on more of it than the probe shows.
    """
    net = getattr(net, '_orig_mod', net)  # a compiled one would be compiled anew for the probes
    # The weights' spread in images of this kind does not matter, their sides do: whole windows, nothing to wait for.
    columns = _ceil(8, window)
    for rows in _PROBES:
        halo = _reach(net, lq.new_zeros(1, lq.shape[1], _ceil(rows, window), columns))
        if halo is not None:
            break
    else:
        raise OptionsError(
            f'strips: the output of {type(net).__name__} depends on the whole image (global pooling, as in contrast '
            f'attention) or on more than {_PROBES[-1] // 2} rows around; compute it at once.'
        )
    strip, halo = _ceil(8, window), _ceil(halo, window)
    noise = torch.rand(1, lq.shape[1], 2 * (halo + strip) + strip, columns, generator=torch.Generator().manual_seed(0))
    noise = noise.to(lq)
    whole = net(noise)
    if (whole - _by_strips(net, noise, strip, halo)).abs().max() > 1e-5 * whole.abs().max():
        raise OptionsError(
            f'strips: {type(net).__name__} gives another image in strips (its attention pools over the whole image, or '
            f'windows differ from {window}); compute it at once.'
        )
    return halo


def _reach(net: nn.Module, blank: Tensor) -> int | None:
    """Rows by which the trace of one row exceeds it, at most; None where it fills the image (1, C, H, W)."""
    height, middle = blank.shape[2], blank.shape[2] // 2
    reach = 0
    for row in range(middle, middle + _PHASES):
        marked = blank.clone()
        marked[:, :, row] = torch.nan
        out = net(marked)
        seen = out.isnan().any(dim=3).any(dim=1)[0].unflatten(0, (height, -1)).any(dim=1).nonzero()
        first, last = seen.min().item(), seen.max().item()
        if first == 0 or last == height - 1:
            return None
        reach = max(reach, row - first, last - row)
    return reach


def _by_strips(net: nn.Module, lq: Tensor, strip: int, halo: int) -> Tensor:
    """The output for ``strip`` rows after the other, each computed with ``halo`` rows on either side."""
    height, out = lq.shape[2], None
    for top in range(0, height, strip):
        first, bottom = max(top - halo, 0), min(top + strip, height)
        part = net(lq[:, :, first : bottom + halo])
        scale = part.shape[-1] // lq.shape[-1]
        if out is None:
            out = part.new_empty(*part.shape[:2], height * scale, part.shape[3])
        out[:, :, top * scale : bottom * scale] = part[:, :, (top - first) * scale : (bottom - first) * scale]
    return out


def _ceil(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
