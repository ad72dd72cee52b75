"""Whole images on one thread: our networks against plain modules, in time, error and memory.

``python -m benchmarks inference``
"""

from __future__ import annotations

import ctypes
import multiprocessing
import platform
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from basicsr.archs import build_network
from torch import Tensor, nn

from benchmarks.compare_variants import allow_compiling
from benchmarks.harness import Action, Settings, Timings, measure
from benchmarks.machine import conv_peak, count_flops
from benchmarks.plain import NETWORKS, ChannelAttention
from benchmarks.report import Table
from pisr_plugin.inference.predict import find_tile_pad, optimized, upscale

PLAIN, PEAK = 'plain', 'convolution peak'
STRIPS = 40  # rows of the LR image


class IMDNBlock(nn.Module):
    """IMDN's block: three times a quarter of the channels is kept, the rest refined."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = kept, rest = width // 4, width - width // 4
        convs = [(width, width), (rest, width), (rest, width), (rest, kept)]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in convs)
        self.attention = ChannelAttention(width, 16)
        self.fusion = nn.Conv2d(width, width, 1)
        self.act = nn.LeakyReLU(0.05)

    def forward(self, x: Tensor) -> Tensor:
        parts, rest = [], x
        for conv in self.convs[:-1]:
            kept, rest = self.act(conv(rest)).split(self.sizes, 1)
            parts.append(kept)
        return self.fusion(self.attention(torch.cat([*parts, self.convs[-1](rest)], 1))) + x


class IMDN(nn.Module):
    """IMDN: six blocks of 64 channels, fused before one pixel shuffle."""

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.shallow = nn.Conv2d(channels, 64, 3, padding=1)
        self.blocks = nn.ModuleList(IMDNBlock(64) for _ in range(6))
        self.fusion = nn.Sequential(nn.Conv2d(6 * 64, 64, 1), nn.LeakyReLU(0.05))
        self.smoothing = nn.Conv2d(64, 64, 3, padding=1)
        self.upsampling = nn.Sequential(nn.Conv2d(64, channels * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, lq: Tensor) -> Tensor:
        x = shallow = self.shallow(lq)
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return self.upsampling(self.smoothing(self.fusion(torch.cat(outputs, 1))) + shallow)


class OriginalFSRCNN(nn.Module):
    """FSRCNN as the PISR authors' student works, at evaluation too.

    Its forward also makes the two maps for the loss, and returns all that its named layers put out.
    """

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.network = NETWORKS['FSRCNN'](channels, scale)
        self.location, self.scale = (
            nn.Sequential(nn.Conv2d(56, 56, 1), nn.PReLU(), nn.Conv2d(56, 56, 1)) for _ in range(2)
        )

    def forward(self, lq: Tensor) -> dict[str, Tensor]:
        outputs, x = {}, lq
        layers = self.network.features
        for name, part in {'extraction': [0], 'shrinking': [1], 'mapping': [2, 3, 4, 5], 'expanding': [6]}.items():
            for i in part:
                x = layers[i](x)
            outputs[name] = x
        outputs['location'] = self.location(x)
        outputs['scale'] = nn.functional.softplus(self.scale(x))
        outputs['hr'] = self.network.upsampling(x)
        return outputs


PLAIN_NETWORKS = {**NETWORKS, 'IMDN': IMDN}


@dataclass(frozen=True)
class Case:
    """A network and an image.

    Attributes:
        network: Its type.
        channels: Of the image.
        scale: Scale factor.
        size: Height and width of the LR image.
    """

    network: str
    channels: int
    scale: int
    size: tuple[int, int]

    @property
    def title(self) -> str:
        height, width = self.size
        return f'{self.network} x{self.scale}, {width}x{height} to {width * self.scale}x{height * self.scale}'

    def image(self) -> Tensor:
        return torch.rand(1, self.channels, *self.size, generator=torch.Generator().manual_seed(0))

    def ours(self) -> nn.Module:
        options = {'num_in_ch': self.channels, 'num_out_ch': self.channels, 'upscale': self.scale}
        torch.manual_seed(0)
        return build_network({'type': self.network, **options}).eval()

    def plain(self) -> nn.Module:
        """The network as first written, with the weights of ours, which come in the same order."""
        net, ours = PLAIN_NETWORKS[self.network](self.channels, self.scale).eval(), self.ours()
        weights = list(ours.state_dict().values())
        net.load_state_dict(dict(zip(net.state_dict(), weights, strict=True)))
        return net


def run(settings: Settings) -> list[Table]:
    """A table of times for each network, and one of peak memory."""
    allow_compiling(len(PLAIN_NETWORKS))
    factor = 8 if settings.quick else 1
    cases = [
        Case(network, channels, scale, (height // factor, width // factor))
        for network, channels, scale, height, width in (
            ('FSRCNN', 1, 2, 360, 640),
            ('RFDN', 3, 4, 180, 320),
            ('IMDN', 3, 4, 180, 320),
        )
    ]
    tables = [_times(case, settings) for case in cases]
    return [*tables, _memory(cases, settings)] if settings.device == 'cpu' else tables


@torch.no_grad()
def _times(case: Case, settings: Settings) -> Table:
    lq = case.image().to(settings.device)
    exact = case.plain().double()(case.image().double())
    nets: dict[str, Callable[[Tensor], Tensor]] = {
        PLAIN: case.plain().to(settings.device),
        'ours': optimized(case.ours().to(settings.device)),
    }
    if not settings.quick:
        nets['ours, compiled for one size'] = optimized(case.ours().to(settings.device), compile=True, example=lq)
        nets['ours, compiled for all sizes'] = optimized(case.ours().to(settings.device), compile=True)
    if case.network == 'FSRCNN':
        net, tile_pad = nets['ours'], find_tile_pad(nets['ours'], lq)
        nets[f'ours, strips of {STRIPS} rows'] = lambda x: upscale(net, x, tile_rows=STRIPS, tile_pad=tile_pad)
    peak = conv_peak(settings)
    actions: dict[str, Action] = {name: lambda net=net: net(lq) for name, net in nets.items()}
    flops = count_flops(actions[PLAIN])
    timings = measure({PEAK: peak.run, **actions}, settings)
    rows = [
        {
            'variant': name,
            'ms': 1000 * timings.median(name),
            'speedup': timings.speedup(name, PLAIN),
            'percent_of_peak': 100 * _share(timings, name, flops / peak.flops),
            'max_error': (net(lq).cpu().double() - exact).abs().max().item(),
        }
        for name, net in nets.items()
    ]
    notes = [
        f'Error against float64. {flops / 1e9:.2f} GFLOP as the plain module needs them; peak '
        f'{peak.flops / timings.median(PEAK) / 1e9:.0f} GFLOP/s.'
    ]
    return Table(case.title, rows, notes)


def _share(timings: Timings, name: str, share_of_flops: float) -> float:
    pairs = zip(timings.seconds[name], timings.seconds[PEAK], strict=True)
    return statistics.median(share_of_flops * at_peak / seconds for seconds, at_peak in pairs)


def _memory(cases: list[Case], settings: Settings) -> Table:
    """Peak memory of one image above that of the loaded network, each variant in a fresh process."""
    variants = [PLAIN, 'ours'] + ([] if settings.quick else ['ours, compiled for one size'])
    strips = [f'ours, strips of {rows} rows' for rows in (STRIPS, STRIPS // 2)]
    runs = [(cases[0], variant) for variant in ("the authors' forward", *strips)]
    runs += [(case, variant) for case in cases for variant in variants]
    rows = []
    for case, variant in runs:
        with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as process:
            megabytes = process.submit(_peak_megabytes, case, variant, settings.threads).result()
        rows.append({'network': case.title, 'variant': variant, 'MB': megabytes})
    original = rows[0]['MB']
    for row in rows:
        if original and row['network'] == rows[0]['network']:
            row['of_the_authors'] = row['MB'] / original
    note = 'Peak resident memory (VmHWM) above that before the image; the allocator as glibc has it by default.'
    return Table('Memory for one image', rows, [note])


@torch.no_grad()
def _peak_megabytes(case: Case, variant: str, threads: int) -> float | None:
    torch.set_num_threads(threads)
    status, clear = Path('/proc/self/status'), Path('/proc/self/clear_refs')
    if not clear.exists() or platform.libc_ver()[0] != 'glibc':
        return None
    net: nn.Module = optimized(case.ours())
    lq = case.image()
    if variant == PLAIN:
        net = case.plain()
    elif variant.startswith('the authors'):
        net = OriginalFSRCNN(case.channels, case.scale).eval()
    elif 'compiled' in variant:
        net = optimized(net, compile=True, example=lq)
    options: dict[str, int] = {}
    if 'strips' in variant:
        options = {'tile_rows': int(variant.split()[3]), 'tile_pad': find_tile_pad(net, lq)}
    if 'compiled' not in variant:
        net(lq[..., :32, :32])  # the first call loads libraries
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not pass for memory of the image
    clear.write_text('5')  # resets VmHWM
    before = _kilobytes(status, 'VmRSS')
    out = upscale(net, lq, **options) if options else net(lq)
    del out
    return (_kilobytes(status, 'VmHWM') - before) / 1024


def _kilobytes(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(f'{name}:'))
