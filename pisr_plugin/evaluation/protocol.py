"""Named protocols: what LR is made of, which values are compared, and where they are rounded.

A figure without its protocol says little: at x2 on Set5 the same images give 33.64 to 33.69 dB for bicubic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from basicsr.utils.color_util import rgb2ycbcr

from pisr_plugin.errors import OptionsError, choice
from pisr_plugin.resize import imresize, imresize_uint8


@dataclass(frozen=True)
class Protocol:
    """One way to measure. Images are arrays (H, W, C) of float32 in [0, 1] unless said otherwise.

    Attributes:
        name: What options call it.
        text: What stands beside figures.
        on_plane: LR is the downscaled luminance plane, not rounded, instead of that of the downscaled 8-bit RGB image.
        rgb: All three channels are compared instead of BT.601 luminance (16 to 235).
        round_sr: Luminance that a network gives is rounded to 8 bit. RGB output always is, its luminance never.
        round_gt: The true luminance that it is compared with is rounded to 8 bit.
    """

    name: str
    text: str
    on_plane: bool = False
    rgb: bool = False
    round_sr: bool = True
    round_gt: bool = True

    def ground_truth(self, hr: np.ndarray, scale: int) -> np.ndarray:
        """Cuts an HR image to a multiple of the scale.

        Args:
            hr: (H, W, 3) RGB or (H, W) grey, uint8.
            scale: Upscaling factor.
        """
        height, width = (side - side % scale for side in hr.shape[:2])
        return hr[:height, :width]

    def degrade(self, gt: np.ndarray, scale: int, channels: int) -> np.ndarray:
        """Makes the LR image that a network of so many channels gets, by MATLAB's bicubic.

        Args:
            gt: As :meth:`ground_truth` gives it.
            scale: Upscaling factor.
            channels: 1: luminance, 3: RGB.

        Raises:
            OptionsError: an RGB network, and this protocol degrades luminance alone.
        """
        if not self.on_plane:
            return as_input(imresize_uint8(np.ascontiguousarray(as_rgb(gt)), 1 / scale), channels)
        if channels != 1:
            raise OptionsError(
                f'protocol {self.name}: it makes LR images of luminance alone, which an RGB network cannot use. '
                f'Possible: {", ".join(name for name, one in PROTOCOLS.items() if not one.on_plane)}'
            )
        plane = torch.from_numpy(np.rint(self._plane(gt))[None])
        return (imresize(plane, 1 / scale)[0].numpy() / 255).astype(np.float32)[..., None]

    def compared(self, sr: np.ndarray, gt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is compared: two float64 arrays (H, W, C) in 0..255.

        Args:
            sr: The reconstruction, luminance or RGB.
            gt: As :meth:`ground_truth` gives it.

        Raises:
            OptionsError: luminance, and this protocol compares RGB.
        """
        sr = sr.astype(np.float64) * 255
        if self.rgb:
            if sr.shape[2] != 3:
                raise OptionsError(
                    f'protocol {self.name}: it compares RGB, but the network gives {sr.shape[2]} channel.'
                )
            return np.rint(sr.clip(0, 255)), as_rgb(gt).astype(np.float64)
        if sr.shape[2] == 3:
            return _luminance(np.rint(sr.clip(0, 255)))[..., None], _luminance(as_rgb(gt))[..., None]
        sr, truth = sr.clip(0, 255), self._plane(gt)[..., None]
        return np.rint(sr) if self.round_sr else sr, np.rint(truth) if self.round_gt else truth

    def _plane(self, gt: np.ndarray) -> np.ndarray:
        """An image's luminance in 0..255; with ``on_plane``, a grey image is its own."""
        return gt.astype(np.float64) if self.on_plane and gt.ndim == 2 else _luminance(as_rgb(gt))


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            'y_plane',
            'luminance: LR and SR made on the plane, both luminances rounded to 8 bit, as for FSRCNN, VDSR and IDN',
            on_plane=True,
        ),
        Protocol(
            'rgb8',
            'luminance: LR of the 8-bit RGB image, RGB output rounded to 8 bit, luminance not, as for IMDN and RFDN',
            round_sr=False,
            round_gt=False,
        ),
        Protocol(
            'pisr',
            'luminance: LR of the 8-bit RGB image, SR rounded to 8 bit, ground truth not, as in the PISR code',
            round_gt=False,
        ),
        Protocol('basicsr', 'luminance: LR of the 8-bit RGB image, both luminances rounded to 8 bit'),
        Protocol('rgb', 'RGB: LR of the 8-bit RGB image, SR rounded to 8 bit', rgb=True),
    )
}


def protocol_of(options: Mapping[str, Any], wanted: str | None = None) -> Protocol:
    """The protocol that is asked for, else the one that BasicSR options stand for.

    Args:
        options: Options with ``datasets`` and ``val``; ``val.protocol`` names one, else it is what BasicSR measures:
            luminance as ``basicsr`` if datasets or metrics ask for it, otherwise RGB.
        wanted: A name that goes before.

    Raises:
        OptionsError: there is none of that name.
    """
    val = options.get('val') or {}
    wanted = wanted or val.get('protocol')
    if wanted is None:
        on_y = any(data.get('color') == 'y' for data in options['datasets'].values())
        all_y = all(block.get('test_y_channel') for block in (val.get('metrics') or {}).values())
        wanted = 'basicsr' if on_y or all_y else 'rgb'
    if wanted not in PROTOCOLS:
        raise OptionsError(f'protocol: {wanted!r} is not known. {choice(wanted, PROTOCOLS)}')
    return PROTOCOLS[wanted]


def as_rgb(image: np.ndarray) -> np.ndarray:
    """A grey image (H, W) as RGB (H, W, 3)."""
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def as_input(rgb: np.ndarray, channels: int) -> np.ndarray:
    """An 8-bit RGB image as a network of so many channels gets it: float32 in [0, 1], luminance not rounded."""
    image = rgb.astype(np.float32) / 255
    return rgb2ycbcr(image, y_only=True)[..., None] if channels == 1 else image


def _luminance(rgb: np.ndarray) -> np.ndarray:
    """BT.601 luminance in 16..235 of RGB in 0..255, in float64."""
    return 16 + rgb.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255
