"""E-RFDN, the competition form of RFDN."""

from __future__ import annotations

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from torch.nn import functional as F

from pisr_plugin.archs.blocks import RFDB, DistillationNet, conv


class ESA(nn.Module):
    """Enhanced spatial attention: a mask from a strongly downsampled copy of the feature.

    Args:
        num_feat: Channels in and out; inside there are ``num_feat // 4``.

    Shape:
        (N, num_feat, H, W) to the same, H and W at least 3. Below 15 pixels the authors' code fails; here the window
        of the max pooling shrinks with the map.
    """

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        hidden = num_feat // 4
        self.conv1 = conv(num_feat, hidden, 1)
        self.conv_f = conv(hidden, hidden, 1)
        self.conv_max = conv(hidden, hidden, 3)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride=2)
        self.conv3 = conv(hidden, hidden, 3)
        self.conv3_ = conv(hidden, hidden, 3)
        self.conv4 = conv(hidden, num_feat, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        narrow = self.conv1(x)
        small = self.conv2(narrow)
        small = F.max_pool2d(small, (min(7, small.shape[2]), min(7, small.shape[3])), stride=3)
        small = F.relu(self.conv_max(small))
        small = self.conv3_(F.relu(self.conv3(small)))
        large = F.interpolate(small, size=x.shape[2:], mode='bilinear', align_corners=False)
        return x * torch.sigmoid(self.conv4(large + self.conv_f(narrow)))


class AttentiveRFDB(RFDB):
    """RFDB with spatial attention on the fused feature and, unlike the paper's, no skip around the block."""

    def __init__(self, num_feat: int) -> None:
        super().__init__(num_feat)
        self.esa = ESA(num_feat)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.esa(super().forward(x))


@ARCH_REGISTRY.register()
class ERFDN(DistillationNet):
    """E-RFDN, winner of the AIM 2020 challenge on efficient SR: the model whose weights RFDN's authors released.

    Four blocks of width 50, spatial attention, no block skips; 433,448 parameters at x4, the only scale released.
    Keys are those of RFDN_AIM.pth: ``fea_conv``, ``B<i>.c1_d``, ``B<i>.esa.conv1``, ``c.0``, ``LR_conv``,
    ``upsampler.0``. Those weights work on images in 0..255, so the input is multiplied by 255 inside, and the
    output divided. The form of the paper's tables is RFDN.

    Args:
        num_in_ch: Channels of the input.
        num_out_ch: Channels of the output.
        num_feat: Width, 4 or more.
        num_block: Number of blocks.
        upscale: Scale factor, 2 or more.

    Shape:
        (N, num_in_ch, H, W) in [0, 1], H and W at least 3, to (N, num_out_ch, upscale * H, upscale * W).

    Raises:
        ValueError: An argument is out of its range.
    """

    block, prefix, min_feat = AttentiveRFDB, 'B', 4

    def __init__(
        self, *, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 50, num_block: int = 4, upscale: int
    ) -> None:
        super().__init__(num_in_ch, num_out_ch, num_feat, num_block, upscale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * 255) / 255
