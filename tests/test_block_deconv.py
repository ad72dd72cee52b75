"""The transposed convolution by blocks is the transposed convolution."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from pisr_plugin.archs.fast_deconv import BlockConvTranspose2d, block_conv_transpose2d

GEOMETRIES = {  # kernel, padding, output padding by stride
    'FSRCNN': lambda s: (9, 4, s - 1),
    'IDN': lambda s: (17, 9 - s, 0),
    'IDN centred': lambda s: (17, 8, s - 1),
    'gaps': lambda s: (1, 0, s - 1),
}


def pair(stride: int = 2, bias: bool = True, out_ch: int = 1, dtype: torch.dtype = torch.float32):
    """A stock layer of FSRCNN's geometry and one by blocks, with the same weights."""
    torch.manual_seed(0)
    options = {'stride': stride, 'padding': 4, 'output_padding': stride - 1, 'bias': bias}
    stock = nn.ConvTranspose2d(6, out_ch, 9, **options).to(dtype)
    blocks = BlockConvTranspose2d(6, out_ch, 9, **options).to(dtype)
    blocks.load_state_dict(stock.state_dict(), strict=True)
    return stock, blocks


def image(height: int = 17, width: int = 19, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(2, 6, height, width, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('geometry', GEOMETRIES)
@pytest.mark.parametrize('stride', [2, 3, 4])
@pytest.mark.parametrize('block', [1, 2, 3])
def test_every_geometry_block_and_size(geometry, stride, block):
    kernel, padding, output_padding = GEOMETRIES[geometry](stride)
    torch.manual_seed(0)
    stock = nn.ConvTranspose2d(3, 2, kernel, stride, padding, output_padding).double()
    for size in ((6, 6), (7, 10), (1, 2)):
        x = torch.rand(2, 3, *size).double()
        found = block_conv_transpose2d(x, stock.weight, stock.bias, stride, padding, output_padding, block)
        torch.testing.assert_close(found, stock(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize('stride', [2, 3, 4])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('out_ch', [1, 3])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_layer_and_gradients_are_those_of_the_stock_layer(stride, bias, out_ch, layout):
    results = []
    for layer in pair(stride, bias, out_ch):
        x = image().contiguous(memory_format=layout).requires_grad_()
        out = layer.to(memory_format=layout)(x)
        (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
        results.append([out, x.grad, *(p.grad for p in layer.parameters())])
    for stock, blocks in zip(*results, strict=True):
        torch.testing.assert_close(blocks, stock, rtol=1e-5, atol=1e-6)


def test_gradients_of_both_orders_are_exact():
    _, layer = pair(stride=2, dtype=torch.float64)
    x = image(17, 16, torch.float64)[:1].requires_grad_()
    weight, bias = (p.detach().requires_grad_() for p in (layer.weight, layer.bias))

    def call(x, weight, bias):
        return torch.func.functional_call(layer, {'weight': weight, 'bias': bias}, (x,))

    assert torch.autograd.gradcheck(call, (x, weight, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, weight, bias), fast_mode=True)


def test_frozen_weights_get_no_gradient_and_pass_it_on():
    stock, blocks = pair()
    grads = []
    for layer in (stock.requires_grad_(False), blocks.requires_grad_(False)):
        x = image().requires_grad_()
        layer(x).square().sum().backward()
        grads.append(x.grad)
        assert layer.weight.grad is None and layer.bias.grad is None
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_autocast_gives_what_stock_gives_to_bfloat16():
    results = []
    for layer in pair():
        x = image().requires_grad_()
        with torch.autocast('cpu', torch.bfloat16):
            out = layer(x)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
        results.append([out, x.grad, layer.weight.grad, layer.bias.grad])
    for stock, blocks in zip(*results, strict=True):
        assert blocks.dtype == stock.dtype
        torch.testing.assert_close(blocks, stock, rtol=0.02, atol=0.02 * stock.abs().max().item())


def test_it_is_a_transposed_convolution_to_all_who_ask():
    stock, blocks = pair()
    assert isinstance(blocks, nn.ConvTranspose2d) and repr(blocks)[5:] == repr(stock)
    assert {k: v.shape for k, v in blocks.state_dict().items()} == {k: v.shape for k, v in stock.state_dict().items()}
    torch.manual_seed(3)
    fresh = nn.ConvTranspose2d(6, 1, 9, stride=2)
    torch.manual_seed(3)
    assert torch.equal(BlockConvTranspose2d(6, 1, 9, stride=2).weight, fresh.weight)
    copy = deepcopy(blocks)
    assert torch.equal(copy(image()), blocks(image()))
    seen = []
    copy.register_forward_hook(lambda module, args, out: seen.append(out))
    out = copy(image())
    assert seen[0] is out


def test_other_calls_of_the_stock_layer_still_work():
    stock, blocks = pair()
    assert torch.equal(blocks(image()[0]), stock(image()[0]))  # one image without a batch
    assert torch.equal(blocks(image(), output_size=(33, 37)), stock(image(), output_size=(33, 37)))
    assert blocks.to('meta')(image().to('meta')).shape == stock(image()).shape


def test_compiled_as_one_graph_with_its_backward():
    _, layer = pair()
    x = image()
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True)
    layer(x).square().sum().backward()
    expected, layer.weight.grad = layer.weight.grad, None
    out = compiled(x)
    torch.testing.assert_close(out, layer(x))
    out.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, expected)


def test_exported_and_traced_it_is_the_stock_operator():
    _, layer = pair()
    exported = torch.export.export(layer, (image(),))
    assert any('conv_transpose2d' in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(image()), layer(image()))
    assert 'pixel_shuffle' not in str(torch.jit.trace(layer, (image(),), check_trace=False).inlined_graph)
