"""Losses against closed forms in float64, and the laws they state."""

from __future__ import annotations

import math

import pytest
import torch
from basicsr.utils.registry import LOSS_REGISTRY

from pisr_plugin.losses.feature_loss import FeatureMAELoss
from pisr_plugin.losses.vid_loss import VIDGaussianLoss, VIDLaplaceLoss

SHAPE = (2, 3, 4, 5)
SCALE_SHAPES = [SHAPE, (2, 3, 1, 1), (2, 1, 4, 5), (2, 1, 1, 1)]
VID = {'laplace': VIDLaplaceLoss, 'gaussian': VIDGaussianLoss}
PLAIN = {'scale_factor': 1.0, 'eps': 0.0, 'official_constant': False}


def draw(scale_shape: tuple[int, ...] = SHAPE) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Location, scale and target in float64; location and scale want gradients."""
    generator = torch.Generator().manual_seed(0)
    location = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    scale = 0.1 + torch.rand(scale_shape, generator=generator, dtype=torch.float64)
    target = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    return location.requires_grad_(), scale.requires_grad_(), target


def elementwise(kind: str, m: float, s: float, t: float, factor: float, eps: float) -> tuple[float, float, float]:
    """Value and derivatives by location and scale at one element, from the textbook and without a constant."""
    b, d = factor * s + eps, m - t
    if kind == 'laplace':
        return math.log(b) + abs(d) / b, math.copysign(1, d) / b, factor * (1 / b - abs(d) / b**2)
    return math.log(b) / 2 + d * d / (2 * b), d / b, factor * (1 / (2 * b) - d * d / (2 * b**2))


@pytest.mark.parametrize('scale_shape', SCALE_SHAPES, ids=str)
@pytest.mark.parametrize(
    ('kind', 'factor'), [('laplace', 0.1), ('gaussian', 0.001), ('laplace', 1.0), ('gaussian', 1.0)]
)
def test_vid_value_and_gradients_are_the_closed_form(kind, factor, scale_shape):
    location, scale, target = draw(scale_shape)
    loss = VID[kind](loss_weight=3.0, scale_factor=factor)((location, scale), target)
    loss.backward()

    constant = 3 * math.log(2 * math.pi) / 2 + (math.log(2) if kind == 'laplace' else 0)
    value, by_location, by_scale = 0.0, torch.zeros(SHAPE).double(), torch.zeros(SHAPE).double()
    whole_scale = scale.detach().expand(SHAPE)
    for at in torch.cartesian_prod(*map(torch.arange, SHAPE)).tolist():
        at = tuple(at)
        v, by_location[at], by_scale[at] = elementwise(
            kind, location[at].item(), whole_scale[at].item(), target[at].item(), factor, 1e-8
        )
        value += v + constant
    weight = 3.0 / location.numel()
    assert loss.item() == pytest.approx(weight * value, rel=1e-12)
    assert torch.allclose(location.grad, weight * by_location, rtol=1e-12)
    assert torch.allclose(scale.grad, (weight * by_scale).sum_to_size(scale_shape), rtol=1e-10)


@pytest.mark.parametrize('kind', VID)
def test_vid_passes_gradcheck(kind):
    location, scale, target = draw((2, 3, 1, 1))
    loss = VID[kind](scale_factor=1.0)
    assert torch.autograd.gradcheck(lambda m, s: loss((m, s), target), (location, scale))


def test_plain_laplace_is_equation_10_of_the_paper():
    location, b, target = draw()
    expected = (torch.log(b) + (target - location).abs() / b).mean()
    assert torch.equal(VIDLaplaceLoss(**PLAIN)((location, b), target), expected)


def test_laplace_with_unit_scale_is_the_mean_absolute_error():
    location, _, target = draw()
    ones = torch.ones(2, 1, 1, 1).double()
    mae = FeatureMAELoss()(location, target).item()
    assert VIDLaplaceLoss(**PLAIN)((location, ones), target).item() == pytest.approx(mae, rel=1e-14)
    loss = VIDLaplaceLoss(scale_factor=1.0, eps=0.0)((location, ones), target)
    assert loss.item() == pytest.approx(mae + math.log(2) + 1.5 * math.log(2 * math.pi), rel=1e-14)


def test_gaussian_with_unit_scale_is_half_the_mean_squared_error():
    location, _, target = draw()
    loss = VIDGaussianLoss(**PLAIN)((location, torch.ones(2, 1, 1, 1).double()), target)
    assert loss.item() == pytest.approx((location - target).square().mean().item() / 2, rel=1e-14)


@pytest.mark.parametrize(('kind', 'power'), [('laplace', 1), ('gaussian', 2)])
def test_vid_is_smallest_where_the_scale_is_the_residual(kind, power):
    location, _, target = draw()
    best = (location - target).detach().abs().pow(power).requires_grad_()
    loss = VID[kind](**PLAIN, reduction='none')
    at_best = loss((location, best), target)
    (gradient,) = torch.autograd.grad(at_best.sum(), best)
    assert gradient.abs().max() * best.max() < 1e-9
    for factor in (0.5, 0.99, 1.01, 2.0):
        assert (loss((location, factor * best), target) > at_best).all()


@pytest.mark.parametrize(('kind', 'constant'), [('laplace', 52.15), ('gaussian', 51.46)])
def test_official_constant_at_56_channels_moves_the_value_only(kind, constant):
    grads, values = [], []
    for official in (True, False):
        location = torch.linspace(-1, 1, 56).double().reshape(1, 56, 1, 1).requires_grad_()
        loss = VID[kind](official_constant=official)((location, torch.ones_like(location)), torch.zeros_like(location))
        loss.backward()
        grads.append(location.grad)
        values.append(loss.item())
    assert values[0] - values[1] == pytest.approx(constant, abs=5e-3)
    assert torch.equal(*grads)


def test_defaults_are_the_scales_of_the_official_code():
    """At the initial softplus(0) = log 2 and a perfect location only the scale and the constant are left."""
    zero, scale = torch.zeros(1, 1, 1, 1).double(), torch.tensor([[[[math.log(2)]]]], dtype=torch.float64)
    laplace = math.log(0.1 * math.log(2) + 1e-8) + 0.5 * math.log(2 * math.pi) + math.log(2)
    gaussian = 0.5 * math.log(0.001 * math.log(2) + 1e-8) + 0.5 * math.log(2 * math.pi)
    assert VIDLaplaceLoss()((zero, scale), zero).item() == pytest.approx(laplace, rel=1e-14)
    assert VIDGaussianLoss()((zero, scale), zero).item() == pytest.approx(gaussian, rel=1e-14)


@pytest.mark.parametrize('kind', VID)
def test_vid_stays_finite_when_half_precision_scales_vanish(kind):
    location, target = torch.ones(SHAPE, dtype=torch.float16), torch.zeros(SHAPE, dtype=torch.float16)
    loss = VID[kind]()((location, torch.zeros_like(location)), target)
    assert loss.dtype == torch.float32
    assert loss.isfinite()


@pytest.mark.parametrize('kind', [*VID, 'mae'])
def test_reductions_agree_and_no_gradient_reaches_the_target(kind):
    location, scale, target = draw()
    target.requires_grad_()
    pred, loss = (location, FeatureMAELoss) if kind == 'mae' else ((location, scale), VID[kind])
    whole = loss(loss_weight=0.5, reduction='none')(pred, target)
    assert whole.shape == SHAPE
    assert torch.allclose(loss(loss_weight=0.5, reduction='sum')(pred, target), whole.sum())
    assert torch.allclose(loss(loss_weight=0.5)(pred, target), whole.mean())
    whole.sum().backward()
    assert target.grad is None
    assert location.grad.abs().sum() > 0


def test_feature_mae_is_the_mean_absolute_difference():
    pred = torch.tensor([[[[1.0, -2.0], [0.5, 4.0]]]], requires_grad=True)
    loss = FeatureMAELoss(loss_weight=2.0)(pred, torch.tensor([[[[0.0, 0.0], [1.0, 4.5]]]]))
    loss.backward()
    assert loss.item() == 2.0 * (1 + 2 + 0.5 + 0.5) / 4
    assert pred.grad.tolist() == [[[[0.5, -0.5], [-0.5, -0.5]]]]


@pytest.mark.parametrize('loss', [VIDLaplaceLoss, VIDGaussianLoss, FeatureMAELoss])
def test_losses_are_registered_and_refuse_an_unknown_reduction_when_built(loss):
    assert LOSS_REGISTRY.get(loss.__name__) is loss
    with pytest.raises(
        ValueError, match=r"reduction: unknown value \(found 'avg'\). Expected one of 'none', 'mean', 'sum'"
    ):
        loss(reduction='avg')


@pytest.mark.parametrize('options', [{'scale_factor': 0.0}, {'scale_factor': -1.0}, {'eps': -1e-8}])
@pytest.mark.parametrize('kind', VID)
def test_vid_refuses_impossible_arguments(kind, options):
    with pytest.raises(ValueError, match=f'{next(iter(options))}: out of range'):
        VID[kind](**options)


@pytest.mark.parametrize('kind', VID)
@pytest.mark.parametrize(
    ('location', 'scale', 'target', 'named'),
    [
        ((2, 3, 4, 5), (2, 3, 4, 5), (2, 1, 4, 5), ['estimate has shape (2, 3, 4, 5)', 'target (2, 1, 4, 5)']),
        ((2, 3, 4, 5), (2, 3, 4, 4), (2, 3, 4, 5), ['scale has shape (2, 3, 4, 4)', 'target (2, 3, 4, 5)']),
        ((2, 3, 4, 5), (1, 3, 4, 5), (2, 3, 4, 5), ['scale has shape (1, 3, 4, 5)', 'target (2, 3, 4, 5)']),
        ((2, 3, 4, 5), (3, 1, 1), (2, 3, 4, 5), ['scale has shape (3, 1, 1)', 'target (2, 3, 4, 5)']),
    ],
)
def test_vid_names_the_shapes_that_do_not_fit(kind, location, scale, target, named):
    with pytest.raises(ValueError) as error:
        VID[kind]()((torch.ones(location), torch.ones(scale)), torch.ones(target))
    for part in named:
        assert part in str(error.value)


def test_feature_mae_refuses_to_broadcast():
    with pytest.raises(ValueError) as error:
        FeatureMAELoss()(torch.ones(2, 3, 4, 5), torch.ones(2, 1, 4, 5))
    assert '(2, 3, 4, 5)' in str(error.value)
    assert '(2, 1, 4, 5)' in str(error.value)


@pytest.mark.parametrize('pred', [torch.ones(2, 3, 4, 5), (torch.ones(2, 3, 4, 5),), None])
@pytest.mark.parametrize('kind', VID)
def test_vid_says_which_estimator_gives_its_pair(kind, pred):
    with pytest.raises(TypeError, match='pair .location, scale.*LocationScale'):
        VID[kind]()(pred, torch.ones(2, 3, 4, 5))
