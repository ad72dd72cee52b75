"""The estimators between a student's feature and a loss."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch.nn import functional as F

import pisr_plugin.archs  # noqa: F401  (registers)
from pisr_plugin.distill.estimators import Adapter, LocationFreeScale, LocationScale
from pisr_plugin.losses.vid_loss import VIDGaussianLoss, VIDLaplaceLoss

SCALE_SHAPES = {None: (2, 5, 6, 7), 'C': (2, 5, 1, 1), 'HW': (2, 1, 6, 7), 'CHW': (2, 1, 1, 1)}


@pytest.mark.parametrize(('channels', 'params'), [(48, 9_410), (50, 10_202), (56, 12_770), (64, 16_642)])
def test_number_of_parameters_is_as_published(channels, params):
    assert sum(p.numel() for p in LocationScale(in_ch=channels, out_ch=channels).parameters()) == params


@pytest.mark.parametrize(('homoscedastic', 'last'), [(None, 56), ('C', 56), ('HW', 1), ('CHW', 1)])
def test_keys_and_shapes_are_those_of_the_authors(homoscedastic, last):
    expected = {}
    for branch, out in (('mean', 56), ('var', last)):
        expected |= {f'{branch}.0.weight': (56, 56, 1, 1), f'{branch}.0.bias': (56,), f'{branch}.1.weight': (1,)}
        expected |= {f'{branch}.2.weight': (out, 56, 1, 1), f'{branch}.2.bias': (out,)}
    state = LocationScale(in_ch=56, out_ch=56, homoscedastic=homoscedastic).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == expected


@pytest.mark.parametrize(('homoscedastic', 'shape'), SCALE_SHAPES.items())
def test_scale_is_shared_as_asked_and_made_positive_last(homoscedastic, shape):
    torch.manual_seed(0)
    net, x = LocationScale(in_ch=3, out_ch=5, homoscedastic=homoscedastic).double(), torch.randn(2, 3, 6, 7).double()
    location, scale = net(x)
    assert torch.equal(location, net.mean(x))
    assert scale.shape == shape
    raw = net.var(x)
    if homoscedastic in ('C', 'CHW'):
        raw = F.adaptive_avg_pool2d(raw, 1)
    assert torch.allclose(scale, torch.log1p(raw.exp()))
    (location.sum() + scale.sum()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_branches_are_two_convolutions_with_one_slope():
    torch.manual_seed(0)
    net, x = LocationScale(in_ch=3, out_ch=5), torch.randn(2, 3, 4, 4)
    first, slope, second = net.mean[0], net.mean[1].weight, net.mean[2]
    hidden = torch.einsum('oi,nihw->nohw', first.weight[:, :, 0, 0], x) + first.bias[:, None, None]
    hidden = torch.where(hidden > 0, hidden, slope * hidden)
    expected = torch.einsum('oi,nihw->nohw', second.weight[:, :, 0, 0], hidden) + second.bias[:, None, None]
    assert torch.allclose(net(x).location, expected, atol=1e-6)


def test_unknown_sharing_is_refused():
    with pytest.raises(ValueError, match="homoscedastic: .*found 'WH'.*Expected one of None, 'C', 'HW', 'CHW'"):
        LocationScale(in_ch=3, out_ch=3, homoscedastic='WH')


@pytest.mark.parametrize('homoscedastic, channels', [('C', 5), ('CHW', 1)])
def test_a_free_scale_is_shared_by_all_images_and_starts_where_asked(homoscedastic, channels):
    torch.manual_seed(0)
    net = LocationFreeScale(in_ch=3, out_ch=5, homoscedastic=homoscedastic, initial=0.25).double()
    x = torch.randn(2, 3, 6, 7).double()
    location, scale = net(x)
    assert torch.equal(location, net.mean(x))
    assert scale.shape == (2, channels, 1, 1)
    torch.testing.assert_close(scale, torch.full_like(scale, 0.25), rtol=1e-6, atol=0)
    (location.sum() + scale.sum()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_free_scale_takes_the_location_branch_of_location_scale():
    free, full = LocationFreeScale(in_ch=3, out_ch=5).state_dict(), LocationScale(in_ch=3, out_ch=5).state_dict()
    assert free.pop('raw_scale').shape == (1, 5, 1, 1)
    assert {key: value.shape for key, value in free.items()} == {
        key: value.shape for key, value in full.items() if key.startswith('mean.')
    }


@pytest.mark.parametrize('loss, power', [(VIDGaussianLoss, 2), (VIDLaplaceLoss, 1)])
@pytest.mark.parametrize('homoscedastic, shared', [('C', (0, 2, 3)), ('CHW', (0, 1, 2, 3))])
def test_the_best_free_scale_is_the_mean_residual(loss, power, homoscedastic, shared):
    torch.manual_seed(0)
    net = LocationFreeScale(in_ch=3, out_ch=5, homoscedastic=homoscedastic).double()
    x, target = torch.randn(2, 3, 6, 7).double(), torch.randn(2, 5, 6, 7).double()
    best = (net(x).location - target).detach().abs().pow(power).mean(shared, keepdim=True)
    net.raw_scale.data = best.expm1().log()  # the inverse of softplus
    loss(scale_factor=1.0, eps=0.0)(net(x), target).backward()
    assert net.raw_scale.grad.abs().max() < 1e-15


@pytest.mark.parametrize('options', [{'homoscedastic': 'HW'}, {'homoscedastic': None}, {'initial': 0.0}])
def test_impossible_free_scales_are_refused(options):
    with pytest.raises(ValueError, match=f'{next(iter(options))}: .*found'):
        LocationFreeScale(in_ch=3, out_ch=3, **options)


def test_adapter_changes_channels_by_one_convolution():
    net = Adapter(in_ch=3, out_ch=5)
    assert {key: tuple(value.shape) for key, value in net.state_dict().items()} == {
        'conv.weight': (5, 3, 1, 1),
        'conv.bias': (5,),
    }
    assert net(torch.rand(2, 3, 6, 7)).shape == (2, 5, 6, 7)


def test_recipes_can_name_them():
    assert ARCH_REGISTRY.get('LocationScale') is LocationScale
    assert ARCH_REGISTRY.get('Adapter') is Adapter


def test_taps_estimators_and_links_are_plain_torch():
    files = sorted(Path(sys.modules[LocationScale.__module__].__file__).parent.glob('*.py'))
    assert len(files) > 3 and not [file.name for file in files if '\nfrom basicsr' in file.read_text()]
