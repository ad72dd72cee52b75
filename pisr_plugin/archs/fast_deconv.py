"""Transposed convolution by blocks: the same values, several times as fast on a CPU where output channels are few."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pisr_plugin.utils.devices import is_exporting

# Measured on one AVX-512 core: a block pays until its pixels fill more than half of a vector of 16 floats, and from
# about 16x16 input pixels on.
ENOUGH_CHANNELS = 9
ENOUGH_PIXELS = 256


class BlockConvTranspose2d(nn.ConvTranspose2d):
    """A :class:`torch.nn.ConvTranspose2d` with a square kernel that is computed by blocks on a CPU.

    Keys, shapes, initial weights, values (to rounding) and gradients (to the bit) are those of its base class, whose
    operator also does the work on other devices, for small images, and in what is exported or traced: other runtimes
    have their own fast way.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; the fewer, the greater the gain.
        kernel_size: Side of the kernel.
        stride, padding, output_padding: The same on both sides.
        bias: Whether a bias is added.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, H', W') with
        ``H' = (H - 1) * stride - 2 * padding + kernel_size + output_padding``; W' alike.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int,
        padding: int = 0,
        output_padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, output_padding, bias=bias)
        self.block = 1
        while out_channels * (self.block * stride) ** 2 < ENOUGH_CHANNELS:
            self.block += 1

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None or not _by_blocks(input):
            return super().forward(input, output_size)
        geometry = (self.stride[0], self.padding[0], self.output_padding[0])
        return _BlockConvTranspose2d.apply(input, self.weight, self.bias, geometry, self.block)


def _by_blocks(x: Tensor) -> bool:
    if is_exporting():
        return False
    return x.device.type == 'cpu' and x.dim() == 4 and x.shape[0] * x.shape[2] * x.shape[3] >= ENOUGH_PIXELS


class _BlockConvTranspose2d(torch.autograd.Function):
    """Forward by blocks; backward as stock, whose kernels have fewer zeros to multiply with and are faster there."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[int, int, int], block: int) -> Tensor:
        return block_conv_transpose2d(x, weight, bias, *geometry, block)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        x, weight, bias, ctx.geometry, _ = inputs
        ctx.save_for_backward(x, weight)
        ctx.bias_sizes = None if bias is None else list(bias.shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = (saved.to(grad.dtype) for saved in ctx.saved_tensors)  # they differ under autocast
        stride, padding, output_padding = ([side, side] for side in ctx.geometry)
        grads = torch.ops.aten.convolution_backward(
            grad,
            x,
            weight,
            ctx.bias_sizes,
            stride,
            padding,
            [1, 1],  # dilation
            True,  # transposed
            output_padding,
            1,  # groups
            ctx.needs_input_grad[:3],
        )
        return *grads, None, None


def block_conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, output_padding: int, block: int
) -> Tensor:
    """Transposed convolution with a square kernel as one ordinary convolution and a pixel shuffle.

    All output pixels that ``block x block`` input pixels give rise to, ``size x size`` with ``size = block * stride``,
    become the output channels of a convolution that moves on by ``block``. With one output channel a transposed
    convolution leaves most of a vector unit idle; the block's pixels fill it.

    Along one side output pixel ``o`` is the sum of ``weight[t] * x[i]`` over all ``t = o + padding - stride * i`` that
    lie in the kernel. So the kernels for the pixels of one block are windows onto the zero-padded ``weight``, ``size``
    wide and ``stride`` apart, the last window first because ``t`` falls while ``i`` rises.

    Args:
        x: (N, C, H, W).
        weight: (C, O, k, k), as of :class:`torch.nn.ConvTranspose2d`.
        bias: (O,) or None.
        stride, padding, output_padding: As of :class:`torch.nn.ConvTranspose2d`, the same on both sides.
        block: Side of a block in input pixels.

    Returns:
        (N, O, H', W') with ``H' = (H - 1) * stride - 2 * padding + k + output_padding``; W' alike.
    """
    kernel, size = weight.shape[-1], block * stride
    first = -((kernel - 1 - padding) // stride)  # the first input pixel that the block's first pixel depends on
    last = (size - 1 + padding) // stride  # the last one that the block's last pixel depends on
    taps = last - first + 1
    before = stride * last - padding
    after = stride * (taps - 1) + size - kernel - before
    windows = F.pad(weight, (before, after, before, after)).unfold(2, size, stride).unfold(3, size, stride)
    # (C, O, taps, taps, size, size) to (O * size * size, C, taps, taps)
    kernels = windows.flip(2, 3).permute(1, 4, 5, 0, 2, 3).reshape(-1, weight.shape[0], taps, taps)
    if bias is not None:
        # A copy: as a view (with one channel it could be one) Inductor's freezing reads past its end in torch 2.13.
        bias = bias.repeat_interleave(size * size)

    height, width = ((side - 1) * stride - 2 * padding + kernel + output_padding for side in x.shape[-2:])
    rows, columns = -(-height // size), -(-width // size)
    below = (rows - 1) * block + taps + first - x.shape[-2]  # zeros for whole blocks; negative: pixels nobody needs
    right = (columns - 1) * block + taps + first - x.shape[-1]
    # The convolution's own padding saves a copy of x, where it is enough; surplus blocks are cut off below. A compiler
    # fuses the copy into what comes before, and is spared a program of its own for odd sides.
    if not torch.compiler.is_compiling() and max(below, right, 0) <= -first:
        y = F.conv2d(x, kernels, bias, stride=block, padding=-first)
    else:
        y = F.conv2d(F.pad(x, (-first, right, -first, below)), kernels, bias, stride=block)
    return F.pixel_shuffle(y, size)[..., :height, :width]
