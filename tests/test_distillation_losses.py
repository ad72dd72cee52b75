"""Distillation losses against loops over Python numbers in float64, and the laws they state."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from basicsr.models import build_model
from basicsr.utils.registry import LOSS_REGISTRY

from pisr_plugin.distill.estimators import LocationFreeScale
from pisr_plugin.losses.affinity_loss import FeatureAffinityLoss
from pisr_plugin.losses.attention_loss import AttentionTransferLoss
from pisr_plugin.losses.base import FeatureLoss
from pisr_plugin.losses.frequency_loss import FocalFrequencyLoss, FrequencyLoss
from pisr_plugin.losses.hint_loss import HintLoss
from pisr_plugin.losses.representation_loss import RepresentationKLLoss
from pisr_plugin.losses.statistics_loss import StatisticalMapLoss
from pisr_plugin.losses.vid_loss import VIDGaussianLoss
from tests.test_model import options as stage_options

SHAPE, WIDER = (2, 2, 3, 4), (2, 3, 3, 4)
Array = np.ndarray


# -------------------------------------------------------------------------------------------------- references


def hint(x: Array, y: Array) -> float:
    return sum((x[at] - y[at]) ** 2 / 2 for at in np.ndindex(x.shape)) / x.size


def attention(x: Array, y: Array, p: float = 2) -> float:
    total = 0.0
    for image in range(len(x)):
        maps = []
        for feature in (x[image], y[image]):
            q = [sum(abs(channel[at]) ** p for channel in feature) for at in np.ndindex(feature.shape[1:])]
            length = math.sqrt(sum(value**2 for value in q))
            maps.append([value / length for value in q])
        total += sum((a - b) ** 2 for a, b in zip(*maps)) / len(maps[0])
    return total / len(x)


def affinity(x: Array, y: Array, channel: bool = False) -> float:
    def cosine(u: Array, v: Array) -> float:
        dot = sum(a * b for a, b in zip(u, v))
        return dot / math.sqrt(sum(a * a for a in u) * sum(b * b for b in v))

    differences = []
    for one, other in zip(x, y):
        one, other = (feature.reshape(len(feature), -1) for feature in (one, other))
        one, other = (feature if channel else feature.T for feature in (one, other))
        pairs = product(range(len(one)), repeat=2)
        differences += [abs(cosine(one[i], one[j]) - cosine(other[i], other[j])) for i, j in pairs]
    return sum(differences) / len(differences)


def pooled_affinity(x: Array, y: Array) -> float:
    """Windows of 2 x 2; the third row is left out."""

    def pool(feature: Array) -> Array:
        return np.array(
            [[[[c[0:2, j : j + 2].mean() for j in (0, 2)]] for c in image] for image in feature],
        )

    return affinity(pool(x), pool(y))


def statistic(x: Array, y: Array, of: Callable) -> float:
    n, _, height, width = x.shape
    total = 0.0
    for i, j, k in np.ndindex(n, height, width):
        total += (of(x[i, :, j, k].tolist()) - of(y[i, :, j, k].tolist())) ** 2
    return total / (n * height * width)


def spectrum(image: Array) -> Array:
    height, width = image.shape
    out = np.zeros((height, width), complex)
    for u, v in np.ndindex(height, width):
        for j, k in np.ndindex(height, width):
            out[u, v] += image[j, k] * cmath.exp(-2j * cmath.pi * (u * j / height + v * k / width))
    return out / math.sqrt(height * width)


def frequency(x: Array, y: Array, amplitude: bool = False) -> float:
    terms = []
    for at in np.ndindex(x.shape[:2]):
        half = x.shape[3] // 2 + 1
        for a, b in zip(spectrum(x[at])[:, :half].flat, spectrum(y[at])[:, :half].flat):
            terms.append(abs(abs(a) - abs(b)) if amplitude else (abs((a - b).real) + abs((a - b).imag)) / 2)
    return sum(terms) / len(terms)


def focal_frequency(x: Array, y: Array, weights_at: Array, alpha: float = 1) -> float:
    total = 0.0
    for at in np.ndindex(x.shape[:2]):
        difference, fixed = spectrum(x[at] - y[at]), np.abs(spectrum(weights_at[at] - y[at])) ** alpha
        for d, w in zip(difference.flat, (fixed / fixed.max()).flat):
            total += w * abs(d) ** 2
    return total / x.size


def representation(x: Array, y: Array, temperature: float = 0.15) -> float:
    total = 0.0
    for one, other in zip(x.reshape(len(x), -1), y.reshape(len(y), -1)):
        q, p = ([math.exp(value / temperature) for value in feature] for feature in (one, other))
        total += sum(b / sum(p) * math.log((b / sum(p)) / (a / sum(q))) for a, b in zip(q, p))
    return total / len(x)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def mean_square(values: list[float]) -> float:
    return sum(value * value for value in values) / len(values)


# name: type, options, shape of the target, reference(estimate, target, estimate at which weights are held)
CASES = {
    'hint': (HintLoss, {}, SHAPE, lambda x, y, _: hint(x, y)),
    'attention': (AttentionTransferLoss, {}, WIDER, lambda x, y, _: attention(x, y)),
    'attention, p 1': (AttentionTransferLoss, {'p': 1}, SHAPE, lambda x, y, _: attention(x, y, 1)),
    'affinity': (FeatureAffinityLoss, {}, WIDER, lambda x, y, _: affinity(x, y)),
    'affinity, pooled': (FeatureAffinityLoss, {'pool': 2}, WIDER, lambda x, y, _: pooled_affinity(x, y)),
    'affinity, channel': (FeatureAffinityLoss, {'kind': 'channel'}, SHAPE, lambda x, y, _: affinity(x, y, True)),
    'mean': (StatisticalMapLoss, {}, WIDER, lambda x, y, _: statistic(x, y, mean)),
    'mean square': (
        StatisticalMapLoss,
        {'statistic': 'mean_square'},
        WIDER,
        lambda x, y, _: statistic(x, y, mean_square),
    ),
    'max': (StatisticalMapLoss, {'statistic': 'max'}, WIDER, lambda x, y, _: statistic(x, y, max)),
    'min': (StatisticalMapLoss, {'statistic': 'min'}, WIDER, lambda x, y, _: statistic(x, y, min)),
    'frequency': (FrequencyLoss, {}, SHAPE, lambda x, y, _: frequency(x, y)),
    'amplitude': (FrequencyLoss, {'part': 'amplitude'}, SHAPE, lambda x, y, _: frequency(x, y, True)),
    'focal': (FocalFrequencyLoss, {}, SHAPE, focal_frequency),
    'focal, alpha 2': (FocalFrequencyLoss, {'alpha': 2}, SHAPE, lambda x, y, at: focal_frequency(x, y, at, 2)),
    'representation': (RepresentationKLLoss, {}, SHAPE, lambda x, y, _: representation(x, y)),
    'representation, T 1': (
        RepresentationKLLoss,
        {'temperature': 1},
        SHAPE,
        lambda x, y, _: representation(x, y, 1),
    ),
}


def build(name: str, weight: float = 1.0) -> torch.nn.Module:
    kind, options, *_ = CASES[name]
    return kind(loss_weight=weight, **options)


def draw(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -------------------------------------------------------------------------------------------------- every loss


@pytest.mark.parametrize('name', CASES)
def test_value_and_gradient_are_those_of_the_loops(name):
    *_, shape, reference = CASES[name]
    x, y = draw().requires_grad_(), draw(shape, 1).requires_grad_()
    value = build(name, 3.0)(x, y)
    value.backward()
    at, target, step = x.detach().numpy(), y.detach().numpy(), 1e-6
    assert value.item() == pytest.approx(3 * reference(at, target, at), rel=1e-12)

    slopes = np.zeros(at.shape)
    for index in np.ndindex(at.shape):
        move = np.zeros(at.shape)
        move[index] = step
        slopes[index] = (reference(at + move, target, at) - reference(at - move, target, at)) / (2 * step)
    torch.testing.assert_close(x.grad, 3 * torch.from_numpy(slopes), rtol=1e-6, atol=1e-7)
    assert y.grad is None


@pytest.mark.parametrize('name', CASES)
def test_equal_features_are_the_minimum_0_and_do_not_pull(name):
    x = draw().requires_grad_()
    value = build(name)(x, x.detach().clone())
    value.backward()
    assert value.abs() < 1e-15 and x.grad.abs().max() < 1e-12
    assert build(name)(draw(seed=2), draw(seed=3)) > 0


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_under_autocast_too(name, dtype):
    x, y = draw().to(dtype).requires_grad_(), draw(CASES[name][2], 1).to(dtype)
    value = build(name)(x, y)
    assert value.dtype == torch.float32
    assert torch.equal(value, build(name)(x.float(), y.float()))
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(value, build(name)(x, y))
    value.backward()
    assert x.grad.dtype == dtype and x.grad.isfinite().all()


@pytest.mark.parametrize('name', CASES)
def test_a_feature_of_zeros_keeps_value_and_gradient_finite(name):
    x = torch.zeros(SHAPE, requires_grad=True)
    value = build(name)(x, draw(seed=1).float())
    value.backward()
    assert value.isfinite() and x.grad.isfinite().all()
    assert build(name)(x, torch.zeros(SHAPE)) == 0


@pytest.mark.parametrize('name', CASES)
def test_what_does_not_fit_is_named(name):
    kind = CASES[name][0].__name__
    with pytest.raises(TypeError, match=f'{kind}: the estimate is a tuple of 2. Expected one tensor'):
        build(name)((draw(), draw()), draw())
    with pytest.raises(ValueError) as error:
        build(name)(draw(), draw((2, 2, 3, 5)))
    for part in (kind, str(SHAPE), '(2, 2, 3, 5)'):
        assert part in str(error.value)
    if not build(name).allow_channel_mismatch:
        with pytest.raises(ValueError, match='equal shapes. The estimator Adapter'):
            build(name)(draw(), draw(WIDER))
    if build(name).requires_4d:
        with pytest.raises(ValueError, match=r'Expected both \(N, C, H, W\)'):
            build(name)(draw((2, 3)), draw((2, 3)))


@pytest.mark.parametrize(
    'kind, options, message',
    [
        (AttentionTransferLoss, {'p': 0}, r'p: out of range \(found 0\). Expected a number above 0'),
        (FeatureAffinityLoss, {'pool': 0}, r'pool: out of range \(found 0\). Expected a whole number from 1 on'),
        (
            FeatureAffinityLoss,
            {'kind': 'batch'},
            r"kind: unknown value \(found 'batch'\). Expected one of 'spatial', 'channel'",
        ),
        (StatisticalMapLoss, {'statistic': 'mode'}, r"'mode'\). Expected one of 'mean', 'mean_square', 'max', 'min'"),
        (
            FrequencyLoss,
            {'part': 'phase'},
            r"part: unknown value \(found 'phase'\). Expected one of 'complex', 'amplitude'",
        ),
        (FocalFrequencyLoss, {'alpha': -1}, r'alpha: out of range \(found -1\). Expected a number above 0'),
        (RepresentationKLLoss, {'temperature': 0}, r'temperature: out of range \(found 0\). Expected a number above 0'),
    ],
)
def test_impossible_arguments_are_refused_when_built(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_every_loss_of_the_package_is_registered():
    kinds = [FeatureLoss]
    for kind in kinds:
        kinds += kind.__subclasses__()
        if not kind.__subclasses__():
            assert LOSS_REGISTRY.get(kind.__name__) is kind
    assert len(kinds) > len({kind for kind, *_ in CASES.values()})


# -------------------------------------------------------------------------------------------------- single laws


def test_hint_is_half_the_mean_squared_error_and_the_gaussian_nll_of_variance_1():
    x, y = draw(), draw(seed=1)
    gaussian = VIDGaussianLoss(scale_factor=1, eps=0, official_constant=False)
    assert HintLoss()(x, y).item() == pytest.approx((x - y).square().mean().item() / 2, rel=1e-14)
    assert HintLoss()(x, y).item() == pytest.approx(gaussian((x, torch.ones_like(x)), y).item(), rel=1e-14)


def test_attention_sees_neither_scale_nor_sign_nor_order_of_channels():
    x, y = draw(), draw(WIDER, 1)
    value = AttentionTransferLoss()(x, y)
    torch.testing.assert_close(AttentionTransferLoss()(-7 * x.flip(1), y), value)
    assert AttentionTransferLoss()(3 * y, y) < 1e-30


def test_affinity_sees_neither_rotations_of_channels_nor_the_scale_of_positions():
    x, y = draw((2, 4, 3, 4)), draw(WIDER, 1)
    rotation = torch.linalg.qr(draw((4, 4), 2))[0]
    turned = torch.einsum('oc,nchw->nohw', rotation, x) * draw((2, 1, 3, 4), 3).exp()
    torch.testing.assert_close(FeatureAffinityLoss()(turned, y), FeatureAffinityLoss()(x, y))
    assert FeatureAffinityLoss()(turned, x) < 1e-15


@pytest.mark.parametrize('of', ['mean', 'mean_square', 'max', 'min'])
def test_statistics_do_not_see_the_order_of_channels(of):
    x = draw()
    assert StatisticalMapLoss(statistic=of)(x.flip(1), x) < 1e-30


def test_amplitude_does_not_see_cyclic_shifts_and_complex_does():
    x = draw((1, 2, 6, 8))
    shifted = x.roll((2, 3), (2, 3))
    assert FrequencyLoss(part='amplitude')(shifted, x) < 1e-14
    assert FrequencyLoss()(shifted, x) > 0.1


def test_focal_frequency_is_at_most_the_mse_and_equal_for_a_single_frequency():
    x = draw((1, 2, 6, 8))
    zero = torch.zeros_like(x)
    assert FocalFrequencyLoss()(x, zero) < x.square().mean()
    # One frequency that is its own mirror image: signs in a chequerboard.
    signs = (-1.0) ** (torch.arange(6)[:, None] + torch.arange(8)).double().expand(1, 2, 6, 8)
    assert FocalFrequencyLoss()(signs, zero).item() == pytest.approx(1, rel=1e-12)


def test_representation_does_not_see_constants_and_stands_for_the_published_formula():
    student, teacher = draw((3, 5)), draw((3, 5), 1)
    loss = RepresentationKLLoss()
    torch.testing.assert_close(
        loss(student + torch.tensor([[1.0], [-2.0], [0.5]]).double(), teacher), loss(student, teacher)
    )
    p, q = (teacher / 0.15).softmax(1), (student / 0.15).softmax(1)
    assert loss(student, teacher).item() == pytest.approx((p * (p / q).log()).sum().item() / 3, rel=1e-12)


# -------------------------------------------------------------------------------------------------- over a link

FSRCNN = {'type': 'FSRCNN', 'd': 6, 's': 4, 'm': 1, 'upscale': 2}
WIDER_TEACHER = {'type': 'PITeacher', 'upscale': 2, 'decoder': {**FSRCNN, 'd': 8}}


def student_stage(link: dict) -> object:
    """A student of 6 channels that learns from a teacher of 8, by one link and nothing else."""
    torch.manual_seed(0)
    train = {'pixel_opt': None, 'distill_opt': {'body': link}}
    return build_model(stage_options(network_g=FSRCNN, network_t=WIDER_TEACHER, train=train))


def two_steps(model, batch: dict) -> list[float]:
    values = []
    for iteration in (1, 2):
        model.feed_data(batch)
        model.optimize_parameters(iteration)
        values.append(model.get_current_log()['l_distill_body'])
    return values


@pytest.mark.parametrize('name', CASES)
def test_two_iterations_over_a_link_lower_the_loss(name, batch):
    kind, options, *_ = CASES[name]
    link = {'loss': {'type': kind.__name__, **options}}
    if not build(name).allow_channel_mismatch:
        link['estimator'] = {'type': 'Adapter'}
    model = student_stage(link)
    before = [p.detach().clone() for p in model.net.feature_extraction.parameters()]
    first, second = two_steps(model, batch)
    assert 0 < second < first
    assert all(not torch.equal(p, old) for p, old in zip(model.net.feature_extraction.parameters(), before))


def test_soft_images_are_distilled_by_a_link_between_last_layers(batch):
    link = {'student': 'last_layer', 'teacher': 'decoder.last_layer', 'loss': {'type': 'FeatureMAELoss'}}
    model = student_stage(link)
    with torch.no_grad():
        expected = (model.net(batch['lq']) - model.teacher(batch['gt'])[0]).abs().mean()
    first, second = two_steps(model, batch)
    assert first == pytest.approx(expected.item(), rel=1e-6) and second < first


@pytest.mark.parametrize('homoscedastic', ['C', 'CHW'])
def test_free_scales_train_over_a_link(homoscedastic, batch):
    assert isinstance(build_network({'type': 'LocationFreeScale', 'in_ch': 2, 'out_ch': 3}), LocationFreeScale)
    model = student_stage(
        {
            'estimator': {'type': 'LocationFreeScale', 'homoscedastic': homoscedastic},
            'loss': {'type': 'VIDGaussianLoss', 'scale_factor': 1.0, 'eps': 1e-5, 'official_constant': False},
        }
    )
    first, second = two_steps(model, batch)
    assert second < first
