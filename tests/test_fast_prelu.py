"""The PReLU with a fast gradient is torch's PReLU."""

import pytest
import torch
from basicsr.models import build_model
from torch import nn

from pisr_plugin.models.fast_prelu import FastPReLU, use_fast_prelu
from tests.test_model import options


@pytest.mark.parametrize('slopes', [1, 6])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_values_and_gradients_are_those_of_torch(slopes, layout, dtype):
    results = []
    for layer in (nn.PReLU(slopes), FastPReLU(slopes)):
        x = torch.randn(2, 6, 5, 7, generator=torch.Generator().manual_seed(0))
        x[0, :, 0] = 0  # the slope counts at 0 too
        x = x.to(dtype, memory_format=layout).requires_grad_()
        out = layer.to(dtype)(x)
        (out * torch.linspace(-1, 1, out.numel(), dtype=dtype).reshape(out.shape)).sum().backward()
        results.append((out, x.grad, layer.weight.grad))
    (out, grad, slope), (fast_out, fast_grad, fast_slope) = results
    assert torch.equal(fast_out, out) and torch.equal(fast_grad, grad)
    torch.testing.assert_close(fast_slope, slope, rtol=5e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
    assert fast_slope.shape == slope.shape


@pytest.mark.gpu
@pytest.mark.parametrize('slopes', [1, 6])
def test_on_a_gpu_one_kernel_gives_the_gradients_of_torch(slopes):
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.PReLU(slopes)).cuda()
    x = torch.randn(8, 3, 66, 66, device='cuda')
    results = []
    for _ in range(2):
        net.zero_grad()
        net(x).square().sum().backward()
        results.append([parameter.grad.clone() for parameter in net.parameters()])
        use_fast_prelu(net, x.device, pytest.fail)
    assert type(net[1]) is FastPReLU
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-2)


def test_where_it_cannot_be_compiled_torchs_own_stays_and_one_line_says_so(monkeypatch):
    monkeypatch.setattr('pisr_plugin.models.fast_prelu._compiled_gradients', lambda: 1 / 0)
    told, net = [], nn.Sequential(nn.PReLU())
    use_fast_prelu(net, torch.device('meta'), told.append)
    assert type(net[0]) is nn.PReLU
    assert told == ["PReLU's gradient cannot be compiled here, so torch's own is used: division by zero"]


def test_it_takes_no_gradient_that_nobody_needs():
    layer = FastPReLU()
    layer(torch.randn(2, 3, 4, 4)).sum().backward()  # an image needs none
    assert layer.weight.grad is not None
    frozen = FastPReLU().requires_grad_(False)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    frozen(x).sum().backward()
    assert x.grad is not None and frozen.weight.grad is None


def test_gradients_follow_autocast():
    layer, x = FastPReLU(), torch.randn(2, 3, 4, 4, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        layer(x.bfloat16()).float().sum().backward()
    assert layer.weight.grad.dtype == x.grad.dtype == torch.float32


def test_what_is_compiled_or_traced_holds_the_stock_operator():
    layer, x = FastPReLU(), torch.randn(1, 3, 4, 4)
    assert 'prelu' in str(torch.jit.trace(layer, x).inlined_graph)
    torch.testing.assert_close(torch.compile(layer, backend='eager', fullgraph=True)(x), layer(x))


def test_network_and_estimators_of_a_stage_use_it(batch):
    model = build_model(options())
    slopes = [module for module in model.linked.modules() if isinstance(module, nn.PReLU)]
    assert len(slopes) == 6 and all(type(module) is FastPReLU for module in slopes)
