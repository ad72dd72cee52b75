"""FSRCNN, the student of the PISR paper."""

from __future__ import annotations

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from pisr_plugin.archs.bicubic_start import start_as_bicubic_enlargement
from pisr_plugin.archs.blocks import conv_prelu
from pisr_plugin.archs.fast_deconv import BlockConvTranspose2d
from pisr_plugin.utils.checks import check_choice, check_int, check_ints


@ARCH_REGISTRY.register()
class FSRCNN(nn.Module):
    """Fast SR network: everything at LR size, then one transposed convolution.

    Accelerating the Super-Resolution Convolutional Neural Network (ECCV 2016), in the form of the PISR authors: one
    PReLU slope per layer, PyTorch's default initialisation, output exactly ``upscale`` times the input. The defaults
    have 12,644 parameters; FSRCNN-L of the PISR paper is ``d=56, s=56, m=4`` with 125,504.

    State-dict keys are those of the authors' plain network without its leading ``network.``:
    ``feature_extraction.0.{0,1}``, ``shrinking.0.{0,1}``, ``mapping.<i>.{0,1}``, ``expanding.0.{0,1}``,
    ``last_layer.0.0``.

    Args:
        num_in_ch: Channels of the input: 1 for Y (what the paper trains), 3 for RGB.
        num_out_ch: Channels of the output.
        upscale: Scale factor, 2 or more.
        d: Channels of feature extraction and expanding, where features are distilled.
        s: Channels of shrinking and mapping.
        m: Number of mapping layers.
        per_channel_prelu: One PReLU slope per channel, as in the FSRCNN paper's Caffe model (12,809 parameters).
        start: ``random``: PyTorch's default initialisation. ``bicubic``: the network begins as bicubic enlargement,
            from where it learns several times as fast.

    Shape:
        (N, num_in_ch, H, W) in [0, 1] to (N, num_out_ch, upscale * H, upscale * W).

    Raises:
        ValueError: An argument is out of its range.
    """

    default_tap = 'expanding'

    def __init__(
        self,
        *,
        num_in_ch: int = 1,
        num_out_ch: int = 1,
        upscale: int,
        d: int = 56,
        s: int = 12,
        m: int = 4,
        per_channel_prelu: bool = False,
        start: str = 'random',
    ) -> None:
        super().__init__()
        check_ints(num_in_ch=num_in_ch, num_out_ch=num_out_ch, d=d, s=s, m=m)
        check_int('upscale', upscale, minimum=2)
        check_choice('start', start, ['random', 'bicubic'])

        def block(in_ch: int, out_ch: int, kernel: int) -> nn.Sequential:
            return conv_prelu(in_ch, out_ch, kernel, slopes=out_ch if per_channel_prelu else 1)

        # The single-element containers look idle, but they make the keys those of the authors.
        self.feature_extraction = nn.Sequential(block(num_in_ch, d, 5))
        self.shrinking = nn.Sequential(block(d, s, 1))
        self.mapping = nn.Sequential(*(block(s, s, 3) for _ in range(m)))
        self.expanding = nn.Sequential(block(s, d, 1))
        deconv = BlockConvTranspose2d(d, num_out_ch, 9, stride=upscale, padding=4, output_padding=upscale - 1)
        self.last_layer = nn.Sequential(nn.Sequential(deconv))
        if start == 'bicubic':
            blocks = [self.feature_extraction[0], self.shrinking[0], *self.mapping, self.expanding[0]]
            start_as_bicubic_enlargement([block[0] for block in blocks], deconv, upscale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last_layer(self.features(x))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Everything before the last layer: (N, d, H, W)."""
        return self.expanding(self.mapping(self.shrinking(self.feature_extraction(x))))

    def convert_released(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Takes the network out of the PISR authors' files, where it lies under ``network.`` or ``backbone.network.``.

        Their student files hold an estimator beside it (``vid_module_dict.``), which is left out.

        Args:
            state_dict: Weights as released, or in this network's own keys, which come back as they are.

        Returns:
            Weights in this network's own keys.
        """
        for prefix in ('backbone.network.', 'network.'):
            if any(key.startswith(prefix) for key in state_dict):
                return {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        return dict(state_dict)
