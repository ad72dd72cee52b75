"""Initial weights with which a network reduces or enlarges an image as MATLAB's bicubic does."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import nn

from pisr_plugin.utils.resize import cubic


@torch.no_grad()
def start_as_bicubic(convs: list[nn.Conv2d], slopes: list[float], scale: int) -> None:
    """Lets a chain of convolutions begin as bicubic reduction.

    Two channels of each layer carry an image, once as it is and once negated: the difference of their PReLUs is linear.
    What the other channels find joins it as training goes on; their own weights stay random.

    Args:
        convs: Convolutions with bias and square kernels of odd size; the second has stride ``scale``, the others 1.
        slopes: Initial slope of the PReLU behind each but the last.
        scale: How many times smaller the image becomes.
    """
    kernels = _factors(tuple(conv.kernel_size[0] for conv in convs), scale)
    channels = convs[-1].out_channels
    if any(conv.out_channels < 2 * channels for conv in convs[:-1]):
        raise ValueError(f'start: bicubic needs at least {2 * channels} channels in each layer')
    for number, (conv, kernel) in enumerate(zip(convs, kernels)):
        assert conv.bias is not None
        plane = torch.from_numpy(np.outer(kernel, kernel)).to(conv.weight)
        last, gain = number == len(convs) - 1, 1.0 if number == 0 else 1 / (1 + slopes[number - 1])
        for channel in range(channels):
            for sign, row in ((1.0, 2 * channel), (-1.0, 2 * channel + 1)):
                if last and sign < 0:
                    continue
                row = channel if last else row
                conv.weight[row], conv.bias[row] = 0.0, 0.0
                if number == 0:
                    conv.weight[row, channel] = sign * plane
                else:
                    conv.weight[row, 2 * channel] = sign * gain * plane
                    conv.weight[row, 2 * channel + 1] = -sign * gain * plane


@torch.no_grad()
def start_as_bicubic_enlargement(convs: list[nn.Conv2d], deconv: nn.ConvTranspose2d, scale: int) -> None:
    """Lets convolutions at LR size and a transposed one begin as bicubic enlargement.

    Some channels of each layer carry the image, which is nowhere negative, so that PReLUs let it pass. Where the last
    kernel is too narrow for bicubic's four pixels, further channels carry the image shifted by a pixel.

    Args:
        convs: Convolutions with square kernels of odd size and stride 1, each followed by a PReLU.
        deconv: The transposed convolution that enlarges.
        scale: Its stride.

    Raises:
        ValueError: a layer has fewer channels than are needed.
    """
    shifts, kernels = _enlargement(deconv.kernel_size[0], int(deconv.padding[0]), scale)
    pairs = [(down, right) for down in range(len(shifts)) for right in range(len(shifts))]
    carried = [(channel, pair) for channel in range(deconv.out_channels) for pair in pairs]
    if any(conv.out_channels < len(carried) for conv in convs):
        raise ValueError(f'start: bicubic needs at least {len(carried)} channels in each layer')
    deconv.weight.zero_()  # what the random features add is learned
    assert deconv.bias is not None
    deconv.bias.zero_()
    for number, (channel, (down, right)) in enumerate(carried):
        for conv in convs:
            assert conv.bias is not None
            conv.weight[number], conv.bias[number] = 0.0, 0.0
            middle = conv.kernel_size[0] // 2
            if conv is convs[0]:
                conv.weight[number, channel, middle + shifts[down], middle + shifts[right]] = 1.0
            else:
                conv.weight[number, number, middle, middle] = 1.0
        deconv.weight[number, channel] = torch.from_numpy(np.outer(kernels[down], kernels[right])).to(deconv.weight)


def _enlargement(size: int, padding: int, scale: int) -> tuple[tuple[int, ...], np.ndarray]:
    """Shifts of the image, and for each a kernel, that together come nearest to bicubic enlargement along one side."""
    for shifts in ((0,), (0, -1), (0, -1, 1)):
        kernels, reached = np.zeros((len(shifts), size)), True
        for phase in range(scale):
            position = (phase + 0.5) / scale - 0.5
            taps = [
                (number, tap, (phase + padding - tap) // scale + shift)
                for number, shift in enumerate(shifts)
                for tap in range(size)
                if (phase + padding - tap) % scale == 0
            ]
            pixels = range(-4, 5)
            columns = np.array([[float(pixel == found) for _, _, found in taps] for pixel in pixels])
            wanted = np.array([cubic(position - pixel) for pixel in pixels])
            weights = np.linalg.lstsq(columns, wanted, rcond=1e-6)[0]
            reached &= {int(np.floor(position)), int(np.ceil(position))} <= {found for _, _, found in taps}
            for (number, tap, _), weight in zip(taps, weights / weights.sum()):
                kernels[number, tap] = weight
        if reached:  # at least both neighbours of each output pixel
            return shifts, kernels
    raise ValueError(f'start: bicubic needs a last kernel of more than {size} taps at scale {scale}')


@functools.cache
def _factors(sizes: tuple[int, ...], scale: int, rounds: int = 100) -> list[np.ndarray]:
    """One-dimensional kernels whose chain comes nearest to bicubic reduction, by alternating least squares."""
    target = _bicubic(scale)
    wide = scale * (sum(sizes[2:]) + len(sizes)) + sum(sizes[:2])
    positions = np.arange(-wide, wide + 1)
    wanted = np.array([target.get(position, 0.0) for position in positions.tolist()])
    kernels = [np.eye(size)[size // 2] for size in sizes]
    kernels[1] = np.exp(-0.5 * ((np.arange(sizes[1]) - sizes[1] // 2 - (scale - 1) / 2) / (scale / 2)) ** 2)
    for _ in range(rounds):
        for number, size in enumerate(sizes):
            columns = [_chain([*kernels[:number], tap, *kernels[number + 1 :]], scale, wide) for tap in np.eye(size)]
            kernels[number] = np.linalg.lstsq(np.stack(columns, 1), wanted, rcond=1e-6)[0]
    total = [kernel.sum() for kernel in kernels]
    even = np.prod(total) ** (1 / len(total))  # the same brightness in each layer, 1 in all
    return [kernel / share * even / np.prod(total) ** (1 / len(total)) for kernel, share in zip(kernels, total)]


def _chain(kernels: list[np.ndarray], scale: int, wide: int) -> np.ndarray:
    """What each HR pixel from ``-wide`` to ``wide`` counts in LR pixel 0; correlations, as convolutions of networks."""
    response = np.zeros(2 * wide + 1)
    response[wide] = 1.0
    for number, kernel in reversed(list(enumerate(kernels))):
        step = 1 if number < 2 else scale
        spread = np.zeros_like(response)
        for tap, weight in enumerate(kernel):
            spread += weight * np.roll(response, step * (tap - len(kernel) // 2))
        response = spread
    return response


def _bicubic(scale: int) -> dict[int, float]:
    """MATLAB's weights of HR pixels for LR pixel 0, with antialiasing, by position."""
    centre = (scale - 1) / 2
    weights = {}
    for position in range(int(centre - 2 * scale), int(centre + 2 * scale) + 2):
        weights[position] = cubic((position - centre) / scale)
    total = sum(weights.values())
    return {position: weight / total for position, weight in weights.items()}
