"""Each network's forward pass once more, as formulas over its state dict; written from the papers' descriptions.

Deliberately without modules, so that a slip in a network (a lost skip, an activation too many) shows as a difference.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pisr_plugin.utils.resize import imresize


class Weights:
    """Layers by key."""

    def __init__(self, state: dict[str, Tensor], prefix: str = '') -> None:
        self.state, self.prefix = state, prefix

    def under(self, prefix: str) -> Weights:
        return Weights(self.state, f'{self.prefix}{prefix}.')

    def conv(self, name: str, x: Tensor, pad: int | None = None, **options) -> Tensor:
        weight = self.state[f'{self.prefix}{name}.weight']
        bias = self.state.get(f'{self.prefix}{name}.bias')
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2 if pad is None else pad, **options)

    def deconv(self, name: str, x: Tensor, **options) -> Tensor:
        weight, bias = self.state[f'{self.prefix}{name}.weight'], self.state[f'{self.prefix}{name}.bias']
        return F.conv_transpose2d(x, weight, bias, **options)

    def prelu(self, name: str, x: Tensor) -> Tensor:
        slope = self.state[f'{self.prefix}{name}.weight'].reshape(-1, 1, 1)
        return torch.where(x > 0, x, slope * x)


def lrelu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.05 * x)


def shuffle(x: Tensor, scale: int) -> Tensor:
    """Channel c * s * s + a * s + b goes to channel c at row offset a, column offset b."""
    n, _, h, w = x.shape
    x = x.reshape(n, -1, scale, scale, h, w)
    return x.permute(0, 1, 4, 2, 5, 3).reshape(n, -1, h * scale, w * scale)


def fsrcnn(p: Weights, x: Tensor, scale: int, last: str = 'deconv') -> Tensor:
    for block in ('feature_extraction.0', 'shrinking.0', *(f'mapping.{i}' for i in range(4)), 'expanding.0'):
        x = p.prelu(f'{block}.1', p.conv(f'{block}.0', x))
    if last == 'conv':
        return p.conv('last_layer.0.0', x)
    return p.deconv('last_layer.0.0', x, stride=scale, padding=4, output_padding=scale - 1)


def hrfsrcnn(p: Weights, x: Tensor, scale: int) -> Tensor:
    return fsrcnn(p, x, scale, last='conv')


def vdsr(p: Weights, x: Tensor, scale: int) -> Tensor:
    bicubic = imresize(x, scale)
    x = F.relu(p.conv('input', bicubic))
    for i in range(18):
        x = F.relu(p.conv(f'residual_layer.{i}.conv', x))
    return bicubic + p.conv('output', x)


def idn(p: Weights, x: Tensor, scale: int, upsampler: str = 'deconv') -> Tensor:
    n, _, height, width = x.shape
    bicubic = imresize(x, scale)
    x = lrelu(p.conv('conv2', lrelu(p.conv('conv1', x))))
    for b in (1, 2, 3, 4):
        part1 = lrelu(p.conv(f'conv{b + 2}_1', x))
        part1 = lrelu(p.conv(f'conv{b + 2}_2', part1, groups=4))
        part1 = lrelu(p.conv(f'conv{b + 2}_3', part1))
        part2 = lrelu(p.conv(f'conv{b + 2}_4', part1[:, 16:]))
        part2 = lrelu(p.conv(f'conv{b + 2}_5', part2, groups=4))
        part2 = lrelu(p.conv(f'conv{b + 2}_6', part2))
        total = part2 + torch.cat([x, part1[:, :16]], 1)
        x = lrelu(p.conv(f'down{b}', total))
    if upsampler == 'pixelshuffle':
        return shuffle(p.conv('upsample.1', p.conv('upsample.0', x)), scale) + bicubic
    # Caffe: no output padding, (h - 1) * s + 1 rows.
    large = p.deconv('upsample', x, stride=scale, padding=8)
    if upsampler == 'deconv_centred':
        inner = bicubic[..., : (height - 1) * scale + 1, : (width - 1) * scale + 1]
    else:
        inner = bicubic[..., scale - 1 :, scale - 1 :]  # as in the authors' test code
    return large + inner


def cca(p: Weights, x: Tensor) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    contrast = ((x - mean) ** 2).mean((2, 3), keepdim=True).sqrt()
    return x * p.conv('conv_du.2', F.relu(p.conv('conv_du.0', contrast + mean))).sigmoid()


def imdb(p: Weights, x: Tensor) -> Tensor:
    out1 = lrelu(p.conv('c1', x))
    out2 = lrelu(p.conv('c2', out1[:, 16:]))
    out3 = lrelu(p.conv('c3', out2[:, 16:]))
    out4 = p.conv('c4', out3[:, 16:])
    out = torch.cat([out1[:, :16], out2[:, :16], out3[:, :16], out4], 1)
    return p.conv('c5', cca(p.under('cca'), out)) + x


def rfdb(p: Weights, x: Tensor) -> Tensor:
    d1, r1 = lrelu(p.conv('c1_d', x)), lrelu(p.conv('c1_r', x) + x)
    d2, r2 = lrelu(p.conv('c2_d', r1)), lrelu(p.conv('c2_r', r1) + r1)
    d3, r3 = lrelu(p.conv('c3_d', r2)), lrelu(p.conv('c3_r', r2) + r2)
    return p.conv('c5', torch.cat([d1, d2, d3, lrelu(p.conv('c4', r3))], 1))


def esa(p: Weights, x: Tensor) -> Tensor:
    a = p.conv('conv1', x)
    b = F.max_pool2d(p.conv('conv2', a, stride=2, pad=0), 7, 3)
    b = p.conv('conv3_', F.relu(p.conv('conv3', F.relu(p.conv('conv_max', b)))))
    b = F.interpolate(b, x.shape[2:], mode='bilinear', align_corners=False)
    return x * p.conv('conv4', b + p.conv('conv_f', a)).sigmoid()


def distillation(p: Weights, x: Tensor, scale: int, blocks: list[str], block) -> Tensor:
    f = p.conv('fea_conv', x)
    outs = [f]
    for name in blocks:
        outs.append(block(p.under(name), outs[-1]))
    b = p.conv('LR_conv', lrelu(p.conv('c.0', torch.cat(outs[1:], 1))))
    return shuffle(p.conv('upsampler.0', b + f), scale)


def imdn(p: Weights, x: Tensor, scale: int) -> Tensor:
    return distillation(p, x, scale, [f'IMDB{i}' for i in range(1, 7)], imdb)


def rfdn(p: Weights, x: Tensor, scale: int) -> Tensor:
    return distillation(p, x, scale, [f'B{i}' for i in range(1, 7)], lambda q, y: cca(q.under('cca'), rfdb(q, y)) + y)


def erfdn(p: Weights, x: Tensor, scale: int) -> Tensor:
    blocks = [f'B{i}' for i in range(1, 5)]
    return distillation(p, 255 * x, scale, blocks, lambda q, y: esa(q.under('esa'), rfdb(q, y))) / 255


def carn(p: Weights, x: Tensor, scale: int) -> Tensor:
    def unit(q: Weights, y: Tensor) -> Tensor:
        return F.relu(q.conv('body.2', F.relu(q.conv('body.0', y))) + y)

    return cascading(p, x, scale, unit, ['b1', 'b2', 'b3'], groups=1)


def carnm(p: Weights, x: Tensor, scale: int) -> Tensor:
    def unit(q: Weights, y: Tensor) -> Tensor:
        out = F.relu(q.conv('body.0', y, groups=4))
        out = F.relu(q.conv('body.2', out, groups=4))
        return F.relu(q.conv('body.4', out) + y)

    return cascading(p, x, scale, unit, ['b1', 'b1', 'b1'], groups=4)


def cascading(p: Weights, x: Tensor, scale: int, unit, units: list[str], groups: int) -> Tensor:
    def block(q: Weights, x: Tensor) -> Tensor:
        b1 = unit(q.under(units[0]), x)
        o1 = F.relu(q.conv('c1.body.0', torch.cat([x, b1], 1)))
        b2 = unit(q.under(units[1]), o1)
        o2 = F.relu(q.conv('c2.body.0', torch.cat([x, b1, b2], 1)))
        b3 = unit(q.under(units[2]), o2)
        return F.relu(q.conv('c3.body.0', torch.cat([x, b1, b2, b3], 1)))

    mean = torch.tensor([0.4488, 0.4371, 0.4040]).to(x).reshape(3, 1, 1)
    x = p.conv('entry', x - mean)
    b1 = block(p.under('b1'), x)
    o1 = F.relu(p.conv('c1.body.0', torch.cat([x, b1], 1)))
    b2 = block(p.under('b2'), o1)
    o2 = F.relu(p.conv('c2.body.0', torch.cat([x, b1, b2], 1)))
    b3 = block(p.under('b3'), o2)
    o3 = F.relu(p.conv('c3.body.0', torch.cat([x, b1, b2, b3], 1)))
    for index, factor in {2: [(0, 2)], 3: [(0, 3)], 4: [(0, 2), (3, 2)]}[scale]:
        o3 = shuffle(F.relu(p.conv(f'upsample.up.body.{index}', o3, groups=groups)), factor)
    return p.conv('exit', o3) + mean


def pi_encoder(p: Weights, x: Tensor, scale: int) -> Tensor:
    x = p.prelu('0.1', p.conv('0.0', x))
    x = p.prelu('0.3', p.conv('0.2', x, stride=scale))
    x = p.prelu('0.5', p.conv('0.4', x))
    return p.conv('0.6', x)
