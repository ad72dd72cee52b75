"""The privileged teacher of PISR: an encoder that sees the HR image, and any network as decoder."""

from __future__ import annotations

from typing import NamedTuple

import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from pisr_plugin.archs.bicubic_start import start_as_bicubic
from pisr_plugin.archs.network_info import argument, input_channels
from pisr_plugin.utils.checks import check_choice, check_int, check_ints


class TeacherOutput(NamedTuple):
    """What a privileged teacher gives: the reconstruction ``sr`` and the ``compact`` feature of LR size."""

    sr: torch.Tensor
    compact: torch.Tensor


@ARCH_REGISTRY.register()
class PIEncoder(nn.Sequential):
    """Encodes an HR image into a compact feature that has the LR image's size and channels.

    Four convolutions, 5x5, 5x5 with stride ``upscale``, 3x3, 3x3, each but the last followed by a PReLU with one
    slope: Learning with Privileged Information for Efficient Image SR (ECCV 2020), section 3.1. 86,084 parameters
    for one channel, 89,102 for three.

    The paper has a PReLU after the last convolution too, the authors' code has none; this follows the code, because
    the output imitates an image. Keys are ``0.{0..6}``, in the authors' files under ``backbone.network.encoder.``.

    Args:
        num_in_ch: Channels of the HR image and of the compact feature.
        upscale: Scale factor, 2 or more.
        d: Channels of the first two layers (the authors take FSRCNN's).
        s: Channels of the third layer (the authors take FSRCNN's).
        last_activation: Adds the fourth PReLU of the paper (one more parameter, key ``0.7.weight``).
        start: ``random``: PyTorch's default initialisation. ``bicubic``: the compact feature begins as the bicubic LR
            image, so that a decoder has something to learn from in the first iteration.

    Shape:
        (N, num_in_ch, H, W) in [0, 1] to (N, num_in_ch, ceil(H / upscale), ceil(W / upscale)).

    Raises:
        ValueError: An argument is out of its range.
    """

    inputs = ('gt',)

    def __init__(
        self,
        *,
        num_in_ch: int,
        upscale: int,
        d: int = 56,
        s: int = 12,
        last_activation: bool = False,
        start: str = 'random',
    ) -> None:
        check_ints(num_in_ch=num_in_ch, d=d, s=s)
        check_int('upscale', upscale, minimum=2)
        check_choice('start', start, ['random', 'bicubic'])
        layers: list[nn.Module] = [
            nn.Conv2d(num_in_ch, d, 5, padding=2),
            nn.PReLU(),
            nn.Conv2d(d, d, 5, stride=upscale, padding=2),
            nn.PReLU(),
            nn.Conv2d(d, s, 3, padding=1),
            nn.PReLU(),
            nn.Conv2d(s, num_in_ch, 3, padding=1),
        ]
        if last_activation:
            layers.append(nn.PReLU())
        if start == 'bicubic':
            convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
            start_as_bicubic(convs, [0.25] * 3, upscale)
        super().__init__(nn.Sequential(*layers))  # nested for the authors' keys


@ARCH_REGISTRY.register()
class PITeacher(nn.Module):
    """Hourglass teacher: HR image, ``encoder``, compact feature, ``decoder``, reconstructed HR image.

    Learning with Privileged Information for Efficient Image SR (ECCV 2020), section 3.1. The decoder is the student
    network unchanged. With FSRCNN on Y the whole has 98,728 parameters.

    .. code-block:: yaml

        network_t:
          type: PITeacher
          upscale: 2
          decoder: {type: FSRCNN, num_in_ch: 1, num_out_ch: 1, upscale: 2}

    Args:
        upscale: Scale factor, the same as the decoder's.
        decoder: Options of any registered network.
        encoder: Options of the encoder. By default a PIEncoder with the decoder's input channels; what is given here
            is merged into that, unless ``type`` names another network, whose options are then taken as they are.

    Shape:
        (N, C, H, W) in [0, 1], H and W multiples of ``upscale``, to ``sr`` of the same size and ``compact`` of size
        (N, C, H / upscale, W / upscale).

    Raises:
        ValueError: An argument is out of its range, or the decoder has another scale (when built); the image does not
            divide by the scale (when called).
    """

    inputs = ('gt',)

    def __init__(self, *, upscale: int, decoder: dict, encoder: dict | None = None) -> None:
        super().__init__()
        check_int('upscale', upscale, minimum=2)
        if not isinstance(decoder, dict) or 'type' not in decoder:
            raise ValueError(f'decoder: wrong value (found {decoder!r}). Expected options with its type.')
        if not isinstance(encoder, (dict, type(None))):
            raise ValueError(f'encoder: wrong value (found {encoder!r}). Expected options, or nothing.')
        decoder_scale = argument(decoder, 'upscale', 'scale', default=upscale)
        if decoder_scale != upscale:
            raise ValueError(f'decoder.upscale: wrong value (found {decoder_scale!r}). Expected {upscale}.')
        encoder = dict(encoder or {})
        if encoder.setdefault('type', 'PIEncoder') == 'PIEncoder':
            encoder.setdefault('num_in_ch', input_channels(decoder))
            encoder.setdefault('upscale', upscale)

        self.upscale = upscale
        self.encoder = build_network(encoder)
        self.decoder = build_network(decoder)
        if hasattr(self.decoder, 'default_tap'):
            self.default_tap = f'decoder.{self.decoder.default_tap}'

    def forward(self, gt: torch.Tensor) -> TeacherOutput:
        height, width = gt.shape[-2:]
        if height % self.upscale or width % self.upscale:
            raise ValueError(
                f'PITeacher: gt is {height}x{width}, its sides must be multiples of upscale {self.upscale}'
            )
        compact = self.encoder(gt)
        return TeacherOutput(sr=self.decoder(compact), compact=compact)

    def convert_released(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Takes encoder and decoder out of the PISR authors' teacher files, where both lie under one prefix.

        A file of the decoder alone, a student's, is taken for the decoder; the encoder keeps its weights then.

        Args:
            state_dict: Weights as released, in the decoder's keys, or in this network's own, which come back as they
                are.

        Returns:
            Weights in this network's own keys.
        """
        if state_dict.keys() == self.decoder.state_dict().keys():
            encoder = {f'encoder.{key}': value for key, value in self.encoder.state_dict().items()}
            return encoder | {f'decoder.{key}': value for key, value in state_dict.items()}
        prefix = 'backbone.network.'
        if not any(key.startswith(prefix) for key in state_dict):
            return dict(state_dict)
        plain = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        return {k if k.startswith('encoder.') else f'decoder.{k}': v for k, v in plain.items()}
