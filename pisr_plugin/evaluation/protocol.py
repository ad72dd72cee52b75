"""Named protocols: what LR is made of, which values are compared, and where they are rounded.

Bicubic interpolation at x2 on Set5 scores 33.64 to 33.69 dB by protocol, so a figure names its protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from basicsr.utils.color_util import rgb2ycbcr

from pisr_plugin.utils.errors import OptionsError, did_you_mean
from pisr_plugin.utils.resize import imresize, imresize_uint8


@dataclass(frozen=True)
class Protocol:
    """One way to measure. Images are arrays (H, W, C) of float32 in [0, 1] unless said otherwise.

    Attributes:
        name: Name in options.
        used_by: Whose tables or code measure in this way.
        on_plane: LR is made of the luminance plane and not rounded. Otherwise LR is made of the 8-bit RGB image.
        rgb: All three channels are compared. Otherwise BT.601 luminance (16 to 235) is.
        round_sr: Luminance that a network returns is rounded to 8 bit. RGB output always is; its luminance never.
        round_gt: The ground truth's luminance is rounded to 8 bit where a network returns luminance.
        keeps_grey: A one-channel file is its own luminance plane (0 to 255) for networks that work on luminance.
            Otherwise the file becomes RGB first, which squeezes its luminance to 16 to 235.
    """

    name: str
    used_by: str = ''
    on_plane: bool = False
    rgb: bool = False
    round_sr: bool = True
    round_gt: bool = True
    keeps_grey: bool = False

    def text(self, channels: int = 1) -> str:
        """Says what is compared, for tables.

        Args:
            channels: Of the networks' output: 1 for luminance, 3 for RGB.
        """
        if self.rgb:
            compared = 'SR rounded to 8 bit'
        elif channels == 3:
            compared = 'RGB output rounded to 8 bit, its luminance not'
        else:
            compared = {
                (True, True): 'both luminances rounded to 8 bit',
                (True, False): 'SR rounded to 8 bit, ground truth not',
                (False, False): 'luminances not rounded',
            }[self.round_sr, self.round_gt]
        made = 'LR and SR made on the plane' if self.on_plane else 'LR of the 8-bit RGB image'
        used_by = f', as {self.used_by}' if self.used_by else ''
        return f'{"RGB" if self.rgb else "luminance"}: {made}, {compared}{used_by}'

    def degrade(self, gt: np.ndarray, scale: int, channels: int) -> np.ndarray:
        """Makes a network's LR image by MATLAB's bicubic.

        Args:
            gt: HR image, (H, W, 3) RGB or (H, W) grey, uint8, cut to a multiple of the scale.
            scale: Upscaling factor.
            channels: Of the network's input: 1 for luminance, 3 for RGB.

        Raises:
            OptionsError: the network takes RGB, and this protocol degrades luminance only.
        """
        if not self.on_plane:
            small = imresize_uint8(np.ascontiguousarray(as_rgb(gt)), 1 / scale)
            return self.as_input(small, channels, grey=gt.ndim == 2)
        if channels != 1:
            raise OptionsError(
                f'protocol: {self.name} makes LR images of luminance only (found an RGB network). '
                f'Possible: {", ".join(name for name, one in PROTOCOLS.items() if not one.on_plane)}'
            )
        plane = torch.from_numpy(np.rint(self._plane(gt))[None])
        return (imresize(plane, 1 / scale)[0].numpy() / 255).astype(np.float32)[..., None]

    def as_input(self, image: np.ndarray, channels: int, grey: bool) -> np.ndarray:
        """Converts an 8-bit image to a network's input.

        Args:
            image: (H, W, 3) RGB or (H, W) grey, uint8.
            channels: Of the network's input: 1 for luminance, which is not rounded, 3 for RGB.
            grey: Whether the image is of a one-channel file, so that its channels are equal.
        """
        if grey and channels == 1 and self.keeps_grey:
            return as_rgb(image)[..., :1].astype(np.float32) / 255
        return as_input(as_rgb(image), channels)

    def compared(self, sr: np.ndarray, gt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns what is compared: two float64 arrays (H, W, C) in 0..255.

        Args:
            sr: The reconstruction, luminance or RGB.
            gt: HR image, (H, W, 3) RGB or (H, W) grey, uint8, cut to a multiple of the scale.

        Raises:
            OptionsError: the reconstruction is luminance, and this protocol compares RGB.
        """
        sr = sr.astype(np.float64) * 255
        if self.rgb:
            if sr.shape[2] != 3:
                raise OptionsError(
                    f'protocol: {self.name} compares RGB (found a network that returns {sr.shape[2]} channel). '
                    f'Possible: {", ".join(name for name, one in PROTOCOLS.items() if not one.rgb)}'
                )
            return np.rint(sr.clip(0, 255)), as_rgb(gt).astype(np.float64)
        if sr.shape[2] == 3:
            return _luminance(np.rint(sr.clip(0, 255)))[..., None], _luminance(as_rgb(gt))[..., None]
        sr, truth = sr.clip(0, 255), self._plane(gt)[..., None]
        return np.rint(sr) if self.round_sr else sr, np.rint(truth) if self.round_gt else truth

    def _plane(self, gt: np.ndarray) -> np.ndarray:
        """The luminance of an image, (H, W), float64, in 0..255."""
        return gt.astype(np.float64) if self.keeps_grey and gt.ndim == 2 else _luminance(as_rgb(gt))


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol('y_plane', 'for FSRCNN, VDSR and IDN', on_plane=True, keeps_grey=True),
        Protocol('rgb8', 'for IMDN and RFDN', round_sr=False, round_gt=False),
        Protocol('pisr', 'in the PISR code', round_gt=False, keeps_grey=True),
        Protocol('basicsr'),
        Protocol('rgb', rgb=True),
    )
}


def protocol_of(options: Mapping[str, Any], wanted: str | None = None) -> Protocol:
    """Chooses the protocol.

    Args:
        options: Options with ``datasets`` and ``val``. ``val.protocol`` names a protocol. Without it the choice is what
            BasicSR measures: ``basicsr`` if datasets or metrics ask for luminance, otherwise ``rgb``.
        wanted: Name of a protocol that overrides the options.

    Raises:
        OptionsError: there is no protocol of that name.
    """
    val = options.get('val') or {}
    wanted = wanted or val.get('protocol')
    if wanted is None:
        on_y = any(data.get('color') == 'y' for data in options['datasets'].values())
        all_y = all(block.get('test_y_channel') for block in (val.get('metrics') or {}).values())
        wanted = 'basicsr' if on_y or all_y else 'rgb'
    if wanted not in PROTOCOLS:
        raise OptionsError(f'protocol: unknown (found {wanted!r}). {did_you_mean(wanted, PROTOCOLS)}')
    return PROTOCOLS[wanted]


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Converts a grey image (H, W) to RGB (H, W, 3); returns RGB as it is."""
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def as_input(rgb: np.ndarray, channels: int) -> np.ndarray:
    """Converts an 8-bit RGB image to (H, W, C), float32, in [0, 1]; with one channel to luminance, not rounded."""
    image = rgb.astype(np.float32) / 255
    return rgb2ycbcr(image, y_only=True)[..., None] if channels == 1 else image


def _luminance(rgb: np.ndarray) -> np.ndarray:
    """BT.601 luminance in 16..235 of RGB in 0..255, in float64."""
    return 16 + rgb.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255
