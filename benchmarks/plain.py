"""What the benchmarks compare with: the networks as their papers draw them, trained by loops as one first writes them.

Nothing here comes from the package: stock layers in NCHW, stock losses and optimiser. That is the point; do not make
it faster.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FSRCNN(nn.Module):
    """FSRCNN (56, 12, 4) with one PReLU slope per layer and a transposed convolution at the end."""

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        widths = [(channels, 56, 5), (56, 12, 1), *[(12, 12, 3)] * 4, (12, 56, 1)]
        convs = [nn.Sequential(nn.Conv2d(i, o, k, padding=k // 2), nn.PReLU()) for i, o, k in widths]
        self.features = nn.Sequential(*convs)
        self.upsampling = nn.ConvTranspose2d(56, channels, 9, stride=scale, padding=4, output_padding=scale - 1)

    def forward(self, lq: Tensor) -> Tensor:
        return self.upsampling(self.features(lq))


class ChannelAttention(nn.Module):
    """IMDN's contrast-aware attention: standard deviation plus mean, as its paper writes them."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width, width // reduction, 1)
        self.excite = nn.Conv2d(width // reduction, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        contrast = ((x - mean) ** 2).mean((2, 3), keepdim=True).sqrt() + mean
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(contrast))))


class RFDNBlock(nn.Module):
    """RFDN's block with attention and a skip around it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.steps = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(width, half, 1), nn.Conv2d(width, width, 3, padding=1)]) for _ in range(3)
        )
        self.last = nn.Conv2d(width, half, 3, padding=1)
        self.fusion = nn.Conv2d(4 * half, width, 1)
        self.attention = ChannelAttention(width, reduction=4)
        self.act = nn.LeakyReLU(0.05)

    def forward(self, x: Tensor) -> Tensor:
        block_input, kept = x, []
        for distil, refine in self.steps:
            kept.append(self.act(distil(x)))
            x = self.act(refine(x) + x)
        kept.append(self.act(self.last(x)))
        return self.attention(self.fusion(torch.cat(kept, 1))) + block_input


class RFDN(nn.Module):
    """RFDN: six blocks of 48 channels, fused before one pixel shuffle."""

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.shallow = nn.Conv2d(channels, 48, 3, padding=1)
        self.blocks = nn.ModuleList(RFDNBlock(48) for _ in range(6))
        self.fusion = nn.Sequential(nn.Conv2d(6 * 48, 48, 1), nn.LeakyReLU(0.05))
        self.smoothing = nn.Conv2d(48, 48, 3, padding=1)
        self.upsampling = nn.Sequential(nn.Conv2d(48, channels * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def features(self, lq: Tensor) -> Tensor:
        x = shallow = self.shallow(lq)
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return self.smoothing(self.fusion(torch.cat(outputs, 1))) + shallow

    def forward(self, lq: Tensor) -> Tensor:
        return self.upsampling(self.features(lq))


NETWORKS = {'FSRCNN': FSRCNN, 'RFDN': RFDN}


class Teacher(nn.Module):
    """PISR's teacher: an encoder from HR to LR size, and a decoder of the student's kind."""

    def __init__(self, decoder: nn.Module, channels: int, scale: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, 56, 5, padding=2),
            nn.PReLU(),
            nn.Conv2d(56, 56, 5, stride=scale, padding=2),
            nn.PReLU(),
            nn.Conv2d(56, 12, 3, padding=1),
            nn.PReLU(),
            nn.Conv2d(12, channels, 3, padding=1),
        )
        self.decoder = decoder

    def forward(self, gt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the reconstruction, the compact feature and the feature to distil."""
        compact = self.encoder(gt)
        feature = self.decoder.features(compact)
        return self.decoder.upsampling(feature), compact, feature


class Estimator(nn.Module):
    """Location and scale of the teacher's feature, each from two 1x1 convolutions of the student's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.location, self.scale = (
            nn.Sequential(nn.Conv2d(width, width, 1), nn.PReLU(), nn.Conv2d(width, width, 1)) for _ in range(2)
        )

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        return self.location(feature), F.softplus(self.scale(feature))


def laplace_nll(location: Tensor, scale: Tensor, target: Tensor) -> Tensor:
    """VID's loss with a Laplace distribution, as the PISR authors scale it."""
    b = 0.1 * scale + 1e-8
    constant = target.shape[1] * math.log(2 * math.pi) / 2
    return (constant + torch.log(2 * b) + (target - location).abs() / b).mean()


class Loop:
    """What the loops share: modules, their optimiser, a step that subclasses give the loss of.

    Args:
        modules: What is trained, by name.
        optim: Arguments of Adam.
        channels_last: Stores maps channels last, the one lever this loop may have.
    """

    def __init__(self, modules: Mapping[str, nn.Module], optim: Mapping, channels_last: bool = False) -> None:
        self.modules = dict(modules)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        for module in self.modules.values():
            module.to(memory_format=self.format)
        self.optimizer = torch.optim.Adam(self.parameters(), **optim)

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for module in self.modules.values() for parameter in module.parameters()]

    def loss(self, lq: Tensor, gt: Tensor) -> Tensor:
        raise NotImplementedError

    def step(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Trains on one batch and returns its loss."""
        device = self.parameters()[0].device
        lq, gt = (batch[key].to(device).contiguous(memory_format=self.format) for key in ('lq', 'gt'))
        self.optimizer.zero_grad()
        loss = self.loss(lq, gt)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class PlainTraining(Loop):
    """A network alone."""

    def loss(self, lq: Tensor, gt: Tensor) -> Tensor:
        return F.l1_loss(self.modules['student'](lq), gt)


class TeacherStage(Loop):
    """PISR's first stage: the teacher reconstructs, and its compact feature imitates the LR image."""

    def loss(self, lq: Tensor, gt: Tensor) -> Tensor:
        sr, compact, _ = self.modules['teacher'](gt)
        return F.l1_loss(sr, gt) + 1e-4 * F.l1_loss(compact, lq)


class StudentStage(Loop):
    """PISR's second stage: the student reconstructs, and its feature explains the frozen teacher's.

    Args:
        teacher: The frozen teacher.
        to_tap: Runs the teacher no further than the feature; by default to its end, as its forward is written.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        optim: Mapping,
        teacher: Teacher,
        channels_last: bool = False,
        to_tap: bool = False,
    ) -> None:
        super().__init__(modules, optim, channels_last)
        self.teacher = teacher.eval().to(memory_format=self.format)
        self.to_tap = to_tap

    def loss(self, lq: Tensor, gt: Tensor) -> Tensor:
        with torch.no_grad():
            target = self._target(gt)
        student = self.modules['student']
        feature = student.features(lq)
        sr = student.upsampling(feature)
        return F.l1_loss(sr, gt) + 1e-6 * laplace_nll(*self.modules['estimator'](feature), target)

    def _target(self, gt: Tensor) -> Tensor:
        if self.to_tap:
            return self.teacher.decoder.features(self.teacher.encoder(gt))
        return self.teacher(gt)[2]


def load_by_position(target: nn.Module, source: nn.Module) -> nn.Module:
    """Copies weights between two ways to write one network: the same tensors in the same order, other names.

    Raises:
        RuntimeError: a tensor has another shape.
        ValueError: one network has more tensors than the other.
    """
    values: Iterable[Tensor] = source.state_dict().values()
    target.load_state_dict(dict(zip(target.state_dict(), values, strict=True)))
    return target
