"""Networks against the published facts: one table drives them all; a new network adds lines."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

import pisr_plugin.archs  # noqa: F401  (registers)


@dataclass(frozen=True)
class Case:
    type: str
    params: int
    tap: int  # channels at the default tap
    options: dict
    macs: float | None = None  # published or counted multiply-adds for a 1280x720 output, in G
    ch: int = 3

    @property
    def scale(self) -> int:
        return self.options['upscale']

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return ARCH_REGISTRY.get(self.type)(**self.options)

    def image(self, height: int = 7, width: int = 10, batch: int = 2) -> torch.Tensor:
        """An image of LR size, or of HR size for networks that read the ground truth."""
        if inputs(ARCH_REGISTRY.get(self.type)) == ('gt',):
            height, width = height * self.scale, width * self.scale
        return torch.rand(batch, self.ch, height, width, generator=torch.Generator().manual_seed(1))


def inputs(network: type | nn.Module) -> tuple[str, ...]:
    return getattr(network, 'inputs', ('lq',))


def teacher(decoder: Case, params: int, **encoder) -> Case:
    options = {'upscale': decoder.scale, 'decoder': {'type': decoder.type, **decoder.options}}
    options |= {'encoder': encoder} if encoder else {}
    return Case('PITeacher', params, decoder.tap, options, ch=decoder.ch)


Y = {'num_in_ch': 1, 'num_out_ch': 1}
FSRCNN = {
    x: Case('FSRCNN', 12_644, 56, {**Y, 'upscale': x}, macs, ch=1) for x, macs in ((2, 2.872), (3, 1.276), (4, 0.718))
}
FSRCNN_L = {
    x: Case('FSRCNN', 125_504, 56, {**Y, 'upscale': x, 'd': 56, 's': 56, 'm': 4}, macs, ch=1)
    for x, macs in ((2, 28.824), (3, 12.811), (4, 7.206))
}
RFDN = {
    x: Case('RFDN', params, 48, {'upscale': x}, macs)
    for x, params, macs in ((2, 534_036, 120.932), (3, 540_531, 54.411), (4, 549_624, 31.129))
}
RFDN_L = {
    x: Case('RFDN', params, 52, {'upscale': x, 'num_feat': 52}, macs)
    for x, params, macs in ((2, 625_962, 141.793), (3, 632_997, 63.738), (4, 642_846, 36.419))
}
CASES = {
    **{f'FSRCNN_x{x}': case for x, case in FSRCNN.items()},
    **{f'FSRCNN_L_x{x}': case for x, case in FSRCNN_L.items()},
    'FSRCNN_slopes': Case('FSRCNN', 12_809, 56, {**Y, 'upscale': 2, 'per_channel_prelu': True}, 2.872, ch=1),
    'FSRCNN_rgb': Case(
        'FSRCNN', 12_644 + 56 * 2 * 25 + 2 * (56 * 81 + 1), 56, {'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 2}
    ),
    'HRFSRCNN_x3': Case('HRFSRCNN', 12_644, 56, {**Y, 'upscale': 3}, ch=1),
    **{f'RFDN_x{x}': case for x, case in RFDN.items()},
    **{f'RFDN_L_x{x}': case for x, case in RFDN_L.items()},
    'RFDN_y': Case('RFDN', 534_036 - 2 * 48 * 9 - 8 * (48 * 9 + 1), 48, {**Y, 'upscale': 2}, ch=1),
    'RFDN_small': Case('RFDN', 35_711, 17, {'upscale': 5, 'num_feat': 17, 'num_block': 2}),
    **{f'PITeacher_FSRCNN_x{x}': teacher(case, 98_728) for x, case in FSRCNN.items()},
    'PITeacher_FSRCNN_L': teacher(FSRCNN_L[2], 234_204, d=56, s=56),
    'PITeacher_prelu': teacher(FSRCNN[2], 98_729, last_activation=True),
    **{f'PITeacher_RFDN_x{x}': teacher(case, case.params + 89_102) for x, case in RFDN.items()},
}
each_case = pytest.mark.parametrize('case', CASES.values(), ids=CASES.keys())


def outputs(network: nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All outputs of a network, the reconstruction first."""
    out = network(image)
    return (out,) if isinstance(out, torch.Tensor) else tuple(out)


def tapped(network: nn.Module, tap: str, image: torch.Tensor) -> list[torch.Tensor]:
    """What passes the place that a tap names, once for each time it is passed."""
    path, _, side = tap.partition('@')
    seen = []
    module = network.get_submodule(path)
    if side:
        handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    else:
        handle = module.register_forward_hook(lambda _, args, out: seen.append(out))
    with handle, torch.no_grad():
        network(image)
    return seen


@each_case
def test_number_of_parameters_is_as_published(case):
    assert sum(p.numel() for p in case.build().parameters()) == case.params


@each_case
@pytest.mark.parametrize('size', [(16, 16), (17, 23)], ids=str)
def test_output_is_scale_times_the_input_for_odd_and_oblong_images(case, size):
    with torch.no_grad():
        sr, *compact = outputs(case.build(), case.image(*size))
    assert sr.shape == (2, case.ch, size[0] * case.scale, size[1] * case.scale)
    assert [tuple(c.shape) for c in compact] == [(2, case.ch, *size)] * len(compact)


@each_case
def test_every_parameter_gets_a_finite_gradient(case):
    network = case.build()
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.forward = nn.functional.softplus  # a narrow ReLU may be dead by chance, which is not the question
    sum(out.square().mean() for out in outputs(network, case.image(16, 17))).backward()
    missing = [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    infinite = [n for n, p in network.named_parameters() if p.requires_grad and not p.grad.isfinite().all()]
    assert (missing, infinite) == ([], [])


@each_case
def test_training_mode_equals_evaluation_mode(case):
    network, image = case.build(), case.image(16, 17)
    with torch.no_grad():
        for train, evaluation in zip(outputs(network.train(), image), outputs(network.eval(), image), strict=True):
            assert torch.equal(train, evaluation)


@each_case
def test_state_dict_carries_the_whole_network(case):
    network, image = case.build(), case.image(16, 17)
    other = ARCH_REGISTRY.get(case.type)(**case.options)
    with torch.no_grad():
        assert not torch.equal(outputs(network, image)[0], outputs(other, image)[0])
        other.load_state_dict(network.state_dict(), strict=True)
        assert torch.equal(outputs(network, image)[0], outputs(other, image)[0])


@each_case
def test_default_tap_is_passed_once_at_lr_size(case):
    network = case.build()
    (feature,) = tapped(network, network.default_tap, case.image(16, 17))
    assert feature.shape == (2, case.tap, 16, 17)


@pytest.mark.parametrize('name', [name for name, case in CASES.items() if case.macs])
def test_multiply_adds_for_720p_are_as_published(name):
    """Weights of convolutions times the positions they are applied at (transposed ones: input positions)."""
    case, macs = CASES[name], 0

    def count(module, args, out):
        nonlocal macs
        positions = args[0] if isinstance(module, nn.ConvTranspose2d) else out
        macs += module.weight.numel() * positions.shape[-2:].numel()

    with torch.device('meta'):
        network = ARCH_REGISTRY.get(case.type)(**case.options)
        image = torch.rand(1, case.ch, *{2: (360, 640), 3: (320, 320), 4: (180, 320)}[case.scale])
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(count)
    network(image)
    assert macs / 1e9 == pytest.approx(case.macs, abs=5.1e-4)


def conv_entries(**convs: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of biased convolutions: name (dots as double underscores) to weight shape."""
    entries = {}
    for name, shape in convs.items():
        entries[f'{name}.weight'] = shape
        entries[f'{name}.bias'] = shape[:1]
    return entries


def fsrcnn_entries(d: int, s: int, m: int, slopes: bool = False) -> dict[str, tuple[int, ...]]:
    entries = {}
    blocks = {'feature_extraction.0': (d, 1, 5, 5), 'shrinking.0': (s, d, 1, 1)}
    blocks |= {f'mapping.{i}': (s, s, 3, 3) for i in range(m)}
    blocks |= {'expanding.0': (d, s, 1, 1)}
    for name, shape in blocks.items():
        entries |= conv_entries(**{f'{name}.0': shape})
        entries[f'{name}.1.weight'] = shape[:1] if slopes else (1,)
    return entries | {'last_layer.0.0.weight': (d, 1, 9, 9), 'last_layer.0.0.bias': (1,)}


def rfdn_entries(n: int, blocks: int, scale: int) -> dict[str, tuple[int, ...]]:
    half = n // 2
    entries = conv_entries(fea_conv=(n, 3, 3, 3))
    for b in range(1, blocks + 1):
        for i in (1, 2, 3):
            entries |= conv_entries(**{f'B{b}.c{i}_d': (half, n, 1, 1), f'B{b}.c{i}_r': (n, n, 3, 3)})
        entries |= conv_entries(**{f'B{b}.c4': (half, n, 3, 3), f'B{b}.c5': (n, 4 * half, 1, 1)})
        entries |= conv_entries(**{f'B{b}.cca.conv_du.0': (n // 4, n, 1, 1), f'B{b}.cca.conv_du.2': (n, n // 4, 1, 1)})
    return entries | conv_entries(
        **{'c.0': (n, n * blocks, 1, 1), 'LR_conv': (n, n, 3, 3), 'upsampler.0': (3 * scale**2, n, 3, 3)}
    )


def pi_encoder_entries(c: int) -> dict[str, tuple[int, ...]]:
    convs = {'0.0': (56, c, 5, 5), '0.2': (56, 56, 5, 5), '0.4': (12, 56, 3, 3), '0.6': (c, 12, 3, 3)}
    return conv_entries(**convs) | {f'0.{i}.weight': (1,) for i in (1, 3, 5)}


def prefixed(prefix: str, entries: dict) -> dict:
    return {f'{prefix}.{key}': shape for key, shape in entries.items()}


RELEASED = {
    'FSRCNN_x2': fsrcnn_entries(56, 12, 4),
    'FSRCNN_L_x4': fsrcnn_entries(56, 56, 4),
    'FSRCNN_slopes': fsrcnn_entries(56, 12, 4, slopes=True),
    'RFDN_x3': rfdn_entries(48, 6, 3),
    'RFDN_L_x2': rfdn_entries(52, 6, 2),
    'PITeacher_FSRCNN_x3': prefixed('encoder', pi_encoder_entries(1)) | prefixed('decoder', fsrcnn_entries(56, 12, 4)),
    'PITeacher_RFDN_x4': prefixed('encoder', pi_encoder_entries(3)) | prefixed('decoder', rfdn_entries(48, 6, 4)),
}


@pytest.mark.parametrize('name', RELEASED)
def test_keys_and_shapes_are_those_of_the_authors(name):
    found = {key: tuple(value.shape) for key, value in CASES[name].build().state_dict().items()}
    assert found == RELEASED[name]


def test_hr_teacher_pools_its_feature_without_touching_the_reconstruction():
    case = CASES['HRFSRCNN_x3']
    network, image = case.build(), case.image(5, 6)
    (feature,) = tapped(network, 'expanding', image)
    (pooled,) = tapped(network, network.default_tap, image)
    assert feature.shape[-2:] == image.shape[-2:]
    assert torch.allclose(pooled, feature.unflatten(-1, (6, 3)).unflatten(-3, (5, 3)).mean(dim=(-1, -3)), atol=1e-6)
    with torch.no_grad():
        before = network(image)
        network.pooled = nn.Identity()
        assert torch.equal(network(image), before)


def test_pi_teacher_is_its_decoder_on_the_compact_feature():
    case = CASES['PITeacher_RFDN_x2']
    network = case.build().eval()
    with torch.no_grad():
        out = network(case.image(8, 9))
        assert torch.equal(out.compact, network.encoder(case.image(8, 9)))
        assert torch.equal(out.sr, network.decoder(out.compact))
    student = ARCH_REGISTRY.get('RFDN')(upscale=2)
    student.load_state_dict(network.decoder.state_dict(), strict=True)


def test_pi_teacher_takes_any_registered_network_and_leaves_the_options_alone():
    decoder = {'type': 'MSRResNet', 'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 8, 'num_block': 1, 'upscale': 3}
    given = dict(decoder)
    network = ARCH_REGISTRY.get('PITeacher')(upscale=3, decoder=decoder)
    assert decoder == given
    assert not hasattr(network, 'default_tap')
    sr, compact = network(torch.rand(1, 1, 24, 27))
    assert (sr.shape, compact.shape) == ((1, 1, 24, 27), (1, 1, 8, 9))


@pytest.mark.parametrize('decoder', [{'type': 'MSRResNet'}, {'type': 'SwinIR', 'upscale': 4, 'window_size': 8}])
def test_pi_teacher_reads_channels_and_scale_from_defaults(decoder):
    network = ARCH_REGISTRY.get('PITeacher')(upscale=4, decoder=decoder)
    assert network.encoder[0][0].in_channels == 3
    assert network.encoder[0][2].stride == (4, 4)


def test_pi_teacher_refuses_images_that_do_not_divide():
    network = CASES['PITeacher_FSRCNN_x3'].build()
    with pytest.raises(ValueError, match='191x193.*multiples of upscale 3'):
        network(torch.rand(1, 1, 191, 193))


REFUSED = [
    ('FSRCNN', {'upscale': 1}, 'upscale: found 1, possible: a whole number from 2 on'),
    ('FSRCNN', {'upscale': 2.0}, 'upscale: found 2.0'),
    ('FSRCNN', {'upscale': 2, 'num_in_ch': 0}, 'num_in_ch: found 0'),
    ('FSRCNN', {'upscale': 2, 'd': '56'}, "d: found '56'"),
    ('FSRCNN', {'upscale': 2, 'm': 0}, 'm: found 0'),
    ('HRFSRCNN', {'upscale': True}, 'upscale: found True'),
    ('RFDN', {'upscale': 4, 'num_feat': 3}, 'num_feat: found 3, possible: a whole number from 4 on'),
    ('RFDN', {'upscale': 4, 'num_block': 0}, 'num_block: found 0'),
    ('PIEncoder', {'num_in_ch': 1, 'upscale': 0}, 'upscale: found 0'),
    ('PITeacher', {'upscale': 2, 'decoder': {'upscale': 2}}, 'decoder: found .*with its type'),
    ('PITeacher', {'upscale': 2, 'decoder': {'type': 'FSRCNN', 'upscale': 3}}, 'decoder.upscale: found 3, possible: 2'),
    ('PITeacher', {'upscale': 2, 'decoder': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3}}, 'found 4, possible: 2'),
    (
        'PITeacher',
        {'upscale': 2, 'decoder': {'type': 'FSRCNN', 'upscale': 2}, 'encoder': 'PIEncoder'},
        'encoder: found',
    ),
]


@pytest.mark.parametrize(('network', 'options', 'message'), REFUSED)
def test_impossible_arguments_are_refused_by_name(network, options, message):
    with pytest.raises(ValueError, match=message):
        ARCH_REGISTRY.get(network)(**options)


@pytest.mark.parametrize('network', sorted({case.type for case in CASES.values()}))
def test_unknown_arguments_are_refused(network):
    case = next(case for case in CASES.values() if case.type == network)
    with pytest.raises(TypeError, match='num_feats'):
        ARCH_REGISTRY.get(network)(**case.options, num_feats=64)
