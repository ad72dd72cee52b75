"""Running a network on whole images changes speed and memory, not the image."""

from __future__ import annotations

import pytest
import torch
from basicsr.archs import build_network

from pisr_plugin.inference.descriptor import load_model
from pisr_plugin.inference.predict import find_tile_pad, optimized, pad_to_window, upscale, upscale_rgb
from pisr_plugin.utils.errors import CheckpointError, OptionsError
from pisr_plugin.utils.resize import imresize

FSRCNN = {'type': 'FSRCNN', 'upscale': 2}
SWINIR = {'type': 'SwinIR', 'upscale': 2, 'window_size': 8, 'img_size': 24, 'depths': [2], 'num_heads': [2]}
SWINIR |= {'embed_dim': 12, 'upsampler': 'pixelshuffledirect'}


def network(**options) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(options).eval()


def image(channels: int = 1, height: int = 53, width: int = 41) -> torch.Tensor:
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(1))


def test_optimized_gives_the_same_image():
    net = network(**FSRCNN)
    with torch.no_grad():
        exact = network(**FSRCNN).double()(image().double())
    fast = optimized(net.train())
    assert (
        fast is net and not net.training and net.expanding[0][0].weight.is_contiguous(memory_format=torch.channels_last)
    )
    assert (upscale(fast, image()) - exact).abs().max() < 2e-6


@pytest.mark.parametrize('example', [None, image()], ids=['any size', 'one size'])
def test_a_compiled_network_gives_the_same_image_at_every_size(example):
    net = network(**FSRCNN, d=8, s=4, m=1)
    compiled = optimized(net, compile=True, example=example)
    for lq in (image(), image(1, 30, 36), image(1, 44, 31)):
        with torch.no_grad():
            torch.testing.assert_close(upscale(compiled, lq), net(lq), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    'options, channels, halo',
    [
        (FSRCNN, 1, 8),  # 2 for the 5x5 layer, 4 for the mapping, 2 for the 9x9 one at HR
        ({**FSRCNN, 'upscale': 3}, 1, 8),
        ({'type': 'VDSR', 'upscale': 2, 'num_block': 3, 'num_feat': 4}, 1, 4),
        ({'type': 'IDN', 'upscale': 2, 'num_feat': 16, 'num_block': 1}, 1, 12),
        ({'type': 'EDSR', 'upscale': 4, 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 2}, 3, 8),
        ({'type': 'Bicubic', 'upscale': 4}, 3, 2),
    ],
)
def test_strips_give_the_same_image(options, channels, halo):
    net = network(**options)
    lq = image(channels)
    found = find_tile_pad(net, lq)
    assert halo <= found <= halo + 2  # zeros in a block's kernel count too
    with torch.no_grad():
        expected = net(lq)
    for rows, context in ((1, found), (13, found), (200, found), (13, None)):
        found_image = upscale(net, lq, tile_rows=rows, tile_pad=context)
        assert (found_image - expected).abs().max() <= 2e-6 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize('network_type', ['RFDN', 'ERFDN', 'IMDN'])
def test_strips_are_refused_where_the_whole_image_counts(network_type):
    net = network(type=network_type, upscale=2, num_feat=16, num_block=1)
    with pytest.raises(OptionsError, match=f'strips: .*{network_type}.* at once'):
        upscale(net, image(3), tile_rows=20)


def test_strips_are_refused_where_the_place_in_the_image_counts():
    """As in attention over a map whose grid depends on the image's size; its reach is short all the same."""

    class Pooled(torch.nn.Module):
        def forward(self, x):
            small = torch.nn.functional.max_pool2d(x, 3, 3)
            return x * torch.nn.functional.interpolate(small, x.shape[2:], mode='bilinear')

    with pytest.raises(OptionsError, match='strips: Pooled gives another image'):
        find_tile_pad(Pooled(), image())


def test_tiles_are_compared_without_tf32():
    """Where TF32 is on, as it is on GPUs by default, a network's rounding depends on the image's size."""

    class Rounding(torch.nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * (1 + 1e-4 * x.shape[2] * torch.backends.cudnn.allow_tf32)

    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        assert find_tile_pad(Rounding(1, 1, 3, padding=1), image()) == 1
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_window_attention_takes_any_size_whole_and_in_strips():
    net = network(**SWINIR)
    lq = image(3, 19, 29)
    with torch.no_grad():
        expected = net(pad_to_window(lq, 8))[..., :38, :58]
    assert torch.equal(upscale(net, lq, window=8), expected)
    torch.testing.assert_close(upscale(net, lq, window=8, tile_rows=5), expected, rtol=0, atol=2e-6)
    assert upscale(net, image(3, 2, 3), window=8).shape == (1, 3, 4, 6)


class Enlarged(torch.nn.Module):
    """Stands for a network whose answer is known."""

    def forward(self, x):
        return imresize(x, 2)


def test_a_luminance_network_keeps_bicubic_colours():
    rgb = torch.rand(1, 3, 12, 14) * 0.6 + 0.2
    expected = imresize(rgb, 2).clamp(0, 1)
    torch.testing.assert_close(upscale_rgb(Enlarged(), rgb, on_y=True), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(upscale_rgb(Enlarged(), rgb, on_y=False, tile_rows=4), expected)


def test_load_refuses_what_cannot_upscale(tmp_path):
    torch.save(network(**FSRCNN).state_dict(), tmp_path / 'net.pth')
    model = load_model(FSRCNN, tmp_path / 'net.pth')
    assert not model.net.training and (model.name, model.channels, model.scale) == ('FSRCNN', 1, 2)
    with pytest.raises(OptionsError, match='PITeacher sees the HR image'):
        load_model({'type': 'PITeacher', 'upscale': 2, 'decoder': FSRCNN}, tmp_path / 'net.pth')
    with pytest.raises(OptionsError, match='upscale: .*found 1'):
        load_model({'type': 'FSRCNN', 'upscale': 1}, tmp_path / 'net.pth')
    with pytest.raises(CheckpointError, match='another network'):
        load_model({'type': 'FSRCNN', 'upscale': 2, 'm': 3}, tmp_path / 'net.pth')
