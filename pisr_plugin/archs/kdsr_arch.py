"""KDSR: blind super-resolution by a degradation representation that a teacher reads from LR and HR together."""

from __future__ import annotations

import torch
from basicsr.archs.arch_util import default_init_weights
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from pisr_plugin.archs.blocks import MEAN, MeanShift, conv
from pisr_plugin.utils.checks import check_choice, check_int, check_ints


class DynamicConv(nn.Module):
    """3x3 depthwise convolution whose kernels, one set per image, follow from a degradation representation.

    Keys ``kernel.0.weight``, ``kernel.2.weight``; no biases. The batch is folded into the channels, so that all images
    take one grouped convolution.

    Args:
        num_feat: Channels of feature and representation.

    Shape:
        Feature (N, num_feat, H, W) and representation (N, num_feat) to (N, num_feat, H, W).
    """

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.kernel = nn.Sequential(
            nn.Linear(num_feat, num_feat, bias=False),
            nn.LeakyReLU(0.1),
            nn.Linear(num_feat, num_feat * 3 * 3, bias=False),
        )

    def forward(self, x: Tensor, representation: Tensor) -> Tensor:
        n, c, height, width = x.shape
        # -1 for n * c: a traced ONNX export has to know the shape of a kernel, and n and c are no constants to it.
        kernel = self.kernel(representation).reshape(-1, 1, 3, 3)
        folded = F.conv2d(x.reshape(1, n * c, height, width), kernel, padding=1, groups=n * c)
        return folded.reshape(n, c, height, width)


class DynamicBlock(nn.Module):
    """IDR-DCRB, the residual block around a dynamic convolution (KDSR, ICLR 2023, section 3.3).

    Args:
        num_feat: Channels of feature and representation.

    Shape:
        Feature (N, num_feat, H, W) and representation (N, num_feat) to (N, num_feat, H, W).
    """

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.da_conv1 = DynamicConv(num_feat)
        self.act = nn.LeakyReLU(0.1)
        self.conv1 = conv(num_feat, num_feat, 3)

    def forward(self, x: Tensor, representation: Tensor) -> Tensor:
        return self.conv1(self.act(self.da_conv1(x, representation))) + x


class DynamicBlocks(nn.Module):
    """Blocks in series that share one representation: keys ``body.<i>``."""

    def __init__(self, num_feat: int, num_block: int) -> None:
        super().__init__()
        self.body = nn.ModuleList(DynamicBlock(num_feat) for _ in range(num_block))

    def forward(self, x: Tensor, representation: Tensor) -> Tensor:
        for block in self.body:
            x = block(x, representation)
        return x


class DynamicSRNet(nn.Module):
    """The SR network G: reconstructs an image as its degradation representation tells.

    Args:
        num_in_ch: Channels of the input, 1 or 3.
        num_out_ch: Channels of the output, 1 or 3.
        num_feat: Width, also of the representation.
        num_block: Number of blocks.
        upscale: 2, 3 or 4.

    Shape:
        LR image (N, num_in_ch, H, W) in [0, 1] and representation (N, num_feat) to
        (N, num_out_ch, upscale * H, upscale * W).
    """

    def __init__(self, num_in_ch: int, num_out_ch: int, num_feat: int, num_block: int, upscale: int) -> None:
        super().__init__()
        self.sub_mean = MeanShift(num_in_ch, -1)
        self.head = nn.Sequential(conv(num_in_ch, num_feat, 3))
        self.body = nn.ModuleList([DynamicBlocks(num_feat, num_block), conv(num_feat, num_feat, 3)])
        upsampler = []
        for factor in {2: (2,), 3: (3,), 4: (2, 2)}[upscale]:
            upsampler += [conv(num_feat, num_feat * factor**2, 3), nn.PixelShuffle(factor)]
        self.tail = nn.Sequential(nn.Sequential(*upsampler), conv(num_feat, num_out_ch, 3))
        self.add_mean = MeanShift(num_out_ch, 1)

    def forward(self, lq: Tensor, representation: Tensor) -> Tensor:
        shallow = self.head(self.sub_mean(lq))
        blocks, last = self.body
        return self.add_mean(self.tail(last(blocks(shallow, representation)) + shallow))


class EstimatorBlock(nn.Module):
    """Two 3x3 convolutions and a skip: keys ``body.0``, ``body.2``."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(num_feat, num_feat, 3), nn.LeakyReLU(0.1), conv(num_feat, num_feat, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x


class DegradationEstimator(nn.Module):
    """KD-IDE, the implicit degradation estimator (KDSR, ICLR 2023, section 3.2).

    Everything works at LR size. The output of ``mlp`` (after its activation) is the representation D' that a student
    learns from its teacher; ``compress`` makes of it the D that drives the SR network.

    Args:
        in_ch: Channels of the input.
        num_feat: Width, also of D; D' has four times as many entries.
        num_block: Number of residual blocks.
        kaiming_init: He's normal initialisation for all layers, in place of torch's default.

    Shape:
        (N, in_ch, H, W) to D (N, num_feat).
    """

    def __init__(self, in_ch: int, num_feat: int, num_block: int, kaiming_init: bool = False) -> None:
        super().__init__()
        layers = [conv(in_ch, num_feat, 3), nn.LeakyReLU(0.1)]
        layers += [EstimatorBlock(num_feat) for _ in range(num_block)]
        for inner, outer in ((1, 2), (2, 2), (2, 4)):
            layers += [conv(inner * num_feat, outer * num_feat, 3), nn.LeakyReLU(0.1)]
        self.E = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        wide = 4 * num_feat
        self.mlp = nn.Sequential(nn.Linear(wide, wide), nn.LeakyReLU(0.1), nn.Linear(wide, wide), nn.LeakyReLU(0.1))
        self.compress = nn.Sequential(nn.Linear(wide, num_feat), nn.LeakyReLU(0.1))
        if kaiming_init:
            default_init_weights(self, a=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.compress(self.mlp(self.E(x).flatten(1)))


class KDSRNet(nn.Module):
    """The common structure of student and teacher: an SR network ``G``, and the estimator that drives it.

    Attributes:
        estimator: Name of the estimator.
    """

    estimator: str

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 53,
        num_estimator_block: int = 9,
        kaiming_init: bool = False,
        upscale: int,
    ) -> None:
        super().__init__()
        check_choice('num_in_ch', num_in_ch, MEAN)
        check_choice('num_out_ch', num_out_ch, MEAN)
        check_ints(num_feat=num_feat, num_block=num_block)
        check_int('num_estimator_block', num_estimator_block, minimum=0)
        check_choice('upscale', upscale, [2, 3, 4])
        self.upscale = upscale
        self.G = DynamicSRNet(num_in_ch, num_out_ch, num_feat, num_block, upscale)
        seen = self._seen_channels(num_in_ch, num_out_ch)
        self.add_module(self.estimator, DegradationEstimator(seen, num_feat, num_estimator_block, kaiming_init))

    def _seen_channels(self, num_in_ch: int, num_out_ch: int) -> int:
        """Returns the channels of what the estimator sees."""
        return num_in_ch


@ARCH_REGISTRY.register()
class KDSRStudent(KDSRNet):
    """Knowledge Distillation based Degradation Estimation for Blind Super-Resolution (ICLR 2023): the student.

    An estimator ``E_st`` reads the degradation from the LR image and ``G`` reconstructs accordingly. Sizes, by
    ``num_feat``, ``num_block``, ``num_estimator_block``, with the parameters at x4 / x2:

    - KDSR-M (64, 53, 9), the default: 5,795,099 / 5,647,387
    - KDSR-L (128, 28, 5): 14,191,003 / 13,600,667
    - KDSR-GAN (128, 42, 6): 18,846,107 / 18,255,771

    24 of them are the frozen colour means. Keys are those of the authors. In training mode, too, it returns the image
    alone; the representation to distil is the tap ``E_st.mlp``, a vector of ``4 * num_feat``.

    Args:
        num_in_ch: Channels of the input: 3 for RGB, 1 for Y (our addition; its mean is the luminance of RGB's).
        num_out_ch: Channels of the output, 1 or 3.
        num_feat: Width of both parts.
        num_block: Number of dynamic blocks.
        num_estimator_block: Number of residual blocks in the estimator.
        kaiming_init: The estimator starts with He's normal initialisation. Ours: with torch's default, the authors'
            choice, all images have nearly the same representation at first, and it takes much longer to mean something.
        upscale: 2, 3 or 4.

    Shape:
        (N, num_in_ch, H, W) in [0, 1] to (N, num_out_ch, upscale * H, upscale * W).

    Raises:
        ValueError: An argument is out of its range.
    """

    default_tap = 'E_st.mlp'
    estimator = 'E_st'
    E_st: DegradationEstimator

    def forward(self, lq: Tensor) -> Tensor:
        return self.G(lq, self.E_st(lq))


@ARCH_REGISTRY.register()
class KDSRTeacher(KDSRNet):
    """The teacher of KDSR (ICLR 2023): as KDSRStudent, but its estimator ``E`` sees the HR image beside the LR one.

    What the estimator sees is LR and, behind it in the channels, HR folded to LR size (pixel unshuffle). Parameters
    at x4: 5,822,747 (M) / 14,246,299 (L) / 18,901,403 (GAN). Keys are those of the authors; ``G`` has the student's.

    The authors' classic networks take that stack ready-made and those for real photos take both images; here it is
    both images always, in the order LR, HR.

    Args:
        num_in_ch: Channels of the LR image: 3 for RGB, 1 for Y.
        num_out_ch: Channels of the HR image and of the output, 1 or 3.
        num_feat: Width of both parts.
        num_block: Number of dynamic blocks.
        num_estimator_block: Number of residual blocks in the estimator.
        kaiming_init: The estimator starts with He's normal initialisation. Ours: with torch's default, the authors'
            choice, all images have nearly the same representation at first, and it takes much longer to mean something.
        upscale: 2, 3 or 4.

    Shape:
        (N, num_in_ch, H, W) and (N, num_out_ch, upscale * H, upscale * W), both in [0, 1], to the latter's shape.

    Raises:
        ValueError: An argument is out of its range (when built); HR is not ``upscale`` times LR (when called).
    """

    inputs = ('lq', 'gt')
    default_tap = 'E.mlp'
    estimator = 'E'
    E: DegradationEstimator

    def _seen_channels(self, num_in_ch: int, num_out_ch: int) -> int:
        return num_in_ch + num_out_ch * self.upscale**2

    def forward(self, lq: Tensor, gt: Tensor) -> Tensor:
        height, width = (self.upscale * side for side in lq.shape[-2:])
        if gt.shape[-2:] != (height, width):
            raise ValueError(
                f'KDSRTeacher: gt is {gt.shape[-2]}x{gt.shape[-1]}, with upscale {self.upscale} it must be '
                f'{height}x{width}'
            )
        return self.G(lq, self.E(torch.cat((lq, F.pixel_unshuffle(gt, self.upscale)), dim=1)))
