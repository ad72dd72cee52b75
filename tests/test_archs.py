"""Networks against the published facts: one table drives them all; a new network adds lines."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from pisr_plugin.archs.blocks import CCA
from pisr_plugin.archs.erfdn_arch import ESA
from pisr_plugin.distill.links import default_teacher_tap
from pisr_plugin.distill.taps import TapReader
from pisr_plugin.utils.resize import imresize
from tests import reference_forward
from tests.reference_forward import Weights


@dataclass(frozen=True)
class Case:
    type: str
    params: int
    tap: int  # channels at the default tap
    options: dict
    macs: float | None = None  # published or counted multiply-adds for a 1280x720 output, in G
    ch: int = 3
    tap_at_hr: bool = False
    tap_is_vector: bool = False

    @property
    def scale(self) -> int:
        return self.options['upscale']

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return ARCH_REGISTRY.get(self.type)(**self.options)

    def image(self, height: int = 8, width: int = 9, batch: int = 1) -> torch.Tensor:
        """An image of LR size, or of HR size for networks that read the ground truth."""
        if inputs(ARCH_REGISTRY.get(self.type)) == ('gt',):
            height, width = height * self.scale, width * self.scale
        return torch.rand(batch, self.ch, height, width, generator=torch.Generator().manual_seed(1))


def inputs(network: type | nn.Module) -> tuple[str, ...]:
    return getattr(network, 'inputs', ('lq',))


def teacher(decoder: Case, params: int, **encoder) -> Case:
    options = {'upscale': decoder.scale, 'decoder': {'type': decoder.type, **decoder.options}}
    options |= {'encoder': encoder} if encoder else {}
    return Case('PITeacher', params, decoder.tap, options, ch=decoder.ch, tap_at_hr=decoder.tap_at_hr)


Y, RGB = {'num_in_ch': 1, 'num_out_ch': 1}, {'num_in_ch': 3, 'num_out_ch': 3}
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
VDSR = {x: Case('VDSR', 664_704, 64, {**Y, 'upscale': x}, 612.591, ch=1, tap_at_hr=True) for x in (2, 3, 4)}
IDN = {
    x: Case('IDN', 552_769, 64, {**Y, 'upscale': x}, macs, ch=1) for x, macs in ((2, 126.960), (3, 56.426), (4, 31.740))
}
IDN_RGB = {
    x: Case('IDN', 590_915, 64, {**RGB, 'upscale': x}, macs) for x, macs in ((2, 135.748), (3, 60.332), (4, 33.937))
}
IDN_SHUFFLE = {
    x: Case('IDN', params, 64, {**RGB, 'upscale': x, 'upsampler': 'pixelshuffle'}, macs)
    for x, params, macs in ((2, 579_276, 133.050), (3, 587_931, 60.018), (4, 600_048, 34.457))
}
CARN = {
    x: Case('CARN', params, 64, {'upscale': x}, macs)
    for x, params, macs in ((2, 964_187, 222.831), (3, 1_148_827, 118.800), (4, 1_111_899, 90.882))
}
CARNM = {
    x: Case('CARNM', params, 64, {'upscale': x}, macs)
    for x, params, macs in ((2, 257_051, 91.182), (3, 303_451, 46.133), (4, 294_171, 32.490))
}
IMDN = {
    x: Case('IMDN', params, 64, {'upscale': x}, macs)
    for x, params, macs in ((2, 694_404, 158.766), (3, 703_059, 71.447), (4, 715_176, 40.886))
}
ERFDN = {
    x: Case('ERFDN', 433_448 - 451 * (48 - 3 * x * x), 50, {'upscale': x}, macs)
    for x, macs in ((2, None), (3, None), (4, 23.759))
}
KDSR_M, KDSR_L, KDSR_GAN = (
    {'num_feat': c, 'num_block': n, 'num_estimator_block': r} for c, n, r in ((64, 53, 9), (128, 28, 5), (128, 42, 6))
)
KDSR = {  # Multi-Adds of ordinary convolutions alone: 0.8 % (M) and 0.3 % (L) less than with the dynamic ones
    'KDSR_M_x2': Case('KDSRStudent', 5_647_387, 256, {'upscale': 2}, tap_is_vector=True),
    'KDSR_M_x4': Case('KDSRStudent', 5_795_099, 256, {'upscale': 4, **KDSR_M}, 226.877, tap_is_vector=True),
    'KDSR_L_x4': Case('KDSRStudent', 14_191_003, 512, {'upscale': 4, **KDSR_L}, 623.615, tap_is_vector=True),
    'KDSR_GAN_x4': Case('KDSRStudent', 18_846_107, 512, {'upscale': 4, **KDSR_GAN}, 759.510, tap_is_vector=True),
    'KDSR_small': Case(
        'KDSRStudent',
        20_197,
        32,
        {**Y, 'upscale': 3, 'num_feat': 8, 'num_block': 2, 'num_estimator_block': 1},
        ch=1,
        tap_is_vector=True,
    ),
}
STUDENTS = {
    'FSRCNN': FSRCNN,
    'FSRCNN_L': FSRCNN_L,
    'VDSR': VDSR,
    'IDN': IDN,
    'IDN_rgb': IDN_RGB,
    'IDN_shuffle': IDN_SHUFFLE,
    'CARN': CARN,
    'CARNM': CARNM,
    'IMDN': IMDN,
    'RFDN': RFDN,
    'RFDN_L': RFDN_L,
    'ERFDN': ERFDN,
}
CASES = {
    **{f'{name}_x{x}': case for name, scales in STUDENTS.items() for x, case in scales.items()},
    **{
        f'PITeacher_{name}_x{x}': teacher(case, case.params + (86_084 if case.ch == 1 else 89_102))
        for name, scales in STUDENTS.items()
        for x, case in scales.items()
        if name != 'FSRCNN_L'
    },
    'FSRCNN_slopes': Case('FSRCNN', 12_809, 56, {**Y, 'upscale': 2, 'per_channel_prelu': True}, 2.872, ch=1),
    'FSRCNN_rgb': Case('FSRCNN', 12_644 + 56 * 2 * 25 + 2 * (56 * 81 + 1), 56, {**RGB, 'upscale': 2}),
    'HRFSRCNN_x3': Case('HRFSRCNN', 12_644, 56, {**Y, 'upscale': 3}, ch=1),
    'VDSR_bias': Case('VDSR', 665_921, 64, {**Y, 'upscale': 2, 'bias': True}, 612.591, ch=1, tap_at_hr=True),
    'VDSR_rgb': Case('VDSR', 664_704 + 4 * 64 * 9, 64, {**RGB, 'upscale': 3}, tap_at_hr=True),
    'IDN_centred': Case('IDN', 552_769, 64, {**Y, 'upscale': 3, 'upsampler': 'deconv_centred'}, 56.426, ch=1),
    'IDN_small': Case('IDN', 49_961, 32, {**Y, 'upscale': 9, 'num_feat': 32, 'num_block': 1}, ch=1),
    'CARN_y': Case('CARN', 964_187 - 20 - 4 * 64 * 9 - 2, 64, {**Y, 'upscale': 2}, ch=1),
    'CARNM_narrow': Case('CARNM', 88_603, 32, {'upscale': 2, 'num_feat': 32, 'groups': 2}),
    'IMDN_y': Case('IMDN', 694_404 - 2 * 64 * 9 - 8 * 577, 64, {**Y, 'upscale': 2}, ch=1),
    'IMDN_small': Case('IMDN', 27_614, 20, {'upscale': 2, 'num_feat': 20, 'num_block': 2}),
    'RFDN_y': Case('RFDN', 534_036 - 2 * 48 * 9 - 8 * (48 * 9 + 1), 48, {**Y, 'upscale': 2}, ch=1),
    'RFDN_small': Case('RFDN', 35_711, 17, {'upscale': 5, 'num_feat': 17, 'num_block': 2}),
    **KDSR,
    'PITeacher_FSRCNN_L': teacher(FSRCNN_L[2], 234_204, d=56, s=56),
    'PITeacher_prelu': teacher(FSRCNN[2], 98_729, last_activation=True),
}
pytestmark = pytest.mark.usefixtures('one_thread')
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
@pytest.mark.parametrize('size', [(8, 8), (13, 19)], ids=str)
def test_output_is_scale_times_the_input_for_odd_and_oblong_images(case, size):
    with torch.no_grad():
        sr, *compact = outputs(case.build(), case.image(*size, batch=2))
    assert sr.shape == (2, case.ch, size[0] * case.scale, size[1] * case.scale)
    assert [tuple(c.shape) for c in compact] == [(2, case.ch, *size)] * len(compact)


@each_case
def test_every_parameter_gets_a_finite_gradient(case):
    network = case.build()
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.forward = nn.functional.softplus  # a narrow ReLU may be dead by chance, which is not the question
    sum(out.square().mean() for out in outputs(network, case.image())).backward()
    missing = [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    infinite = [n for n, p in network.named_parameters() if p.requires_grad and not p.grad.isfinite().all()]
    assert (missing, infinite) == ([], [])


@each_case
def test_training_mode_equals_evaluation_mode(case):
    network, image = case.build(), case.image()
    with torch.no_grad():
        for train, evaluation in zip(outputs(network.train(), image), outputs(network.eval(), image), strict=True):
            assert torch.equal(train, evaluation)


@each_case
def test_state_dict_carries_the_whole_network(case):
    network, image = case.build(), case.image()
    other = ARCH_REGISTRY.get(case.type)(**case.options)
    with torch.no_grad():
        assert not torch.equal(outputs(network, image)[0], outputs(other, image)[0])
        other.load_state_dict(network.state_dict(), strict=True)
        assert torch.equal(outputs(network, image)[0], outputs(other, image)[0])


@each_case
def test_default_tap_is_passed_once_at_lr_size(case):
    network = case.build()
    (feature,) = tapped(network, network.default_tap, case.image())
    factor = case.scale if case.tap_at_hr else 1
    assert feature.shape == ((1, case.tap) if case.tap_is_vector else (1, case.tap, 8 * factor, 9 * factor))


@pytest.mark.parametrize('name', [name for name in CASES if f'PITeacher_{name}' in CASES])
def test_default_taps_of_student_and_teacher_meet(name):
    case, teacher_case = CASES[name], CASES[f'PITeacher_{name}']
    student, teacher_net = case.build(), teacher_case.build()
    tap = default_teacher_tap(teacher_net, student.default_tap)
    assert tap == teacher_net.default_tap
    feature = TapReader(student, [student.default_tap]).read(case.image())[student.default_tap]
    assert TapReader(teacher_net, [tap]).read(teacher_case.image())[tap].shape == feature.shape


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


REFERENCES = {
    'FSRCNN': reference_forward.fsrcnn,
    'HRFSRCNN': reference_forward.hrfsrcnn,
    'VDSR': reference_forward.vdsr,
    'IDN': reference_forward.idn,
    'CARN': reference_forward.carn,
    'CARNM': reference_forward.carnm,
    'IMDN': reference_forward.imdn,
    'RFDN': reference_forward.rfdn,
    'ERFDN': reference_forward.erfdn,
}
OWN_WIDTH = {'IDN_small', 'CARN_y', 'CARNM_narrow', 'IMDN_small', 'RFDN_small'}  # not in the references


@pytest.mark.parametrize(
    'name', [name for name, case in CASES.items() if case.type in REFERENCES and name not in OWN_WIDTH]
)
def test_forward_is_the_formula(name):
    case = CASES[name]
    size = (33, 41) if case.type == 'ERFDN' else (9, 11)  # large enough for several windows of its pooling
    network, image = case.build().double(), case.image(*size).double()
    with torch.no_grad():
        for p in network.parameters():
            if p.dim() == 1 and p.requires_grad:  # biases start at 0 in some networks, where they would prove nothing
                p.uniform_(-0.2, 0.3)
        upsampler = {'upsampler': case.options['upsampler']} if 'upsampler' in case.options else {}
        expected = REFERENCES[case.type](Weights(network.state_dict()), image, case.scale, **upsampler)
        found = network(image)[..., : expected.shape[-2], : expected.shape[-1]]
        if case.type == 'IDN' and case.options.get('upsampler', 'deconv') == 'deconv':
            # The authors crop the first scale - 1 rows and columns, for which their network has no output.
            found = network(image)[..., case.scale - 1 :, case.scale - 1 :]
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert found.std() > 1e-3


def test_pi_encoder_is_the_formula():
    network = CASES['PITeacher_FSRCNN_x3'].build().double()
    gt = torch.rand(1, 1, 15, 18).double()
    expected = reference_forward.pi_encoder(Weights(network.encoder.state_dict()), gt, 3)
    assert torch.allclose(network(gt).compact, expected, rtol=1e-9)


def conv_entries(convs: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of convolutions with biases, from name to weight shape."""
    return {f'{name}.weight': shape for name, shape in convs.items()} | {
        f'{name}.bias': shape[:1] for name, shape in convs.items()
    }


def fsrcnn_entries(d: int, s: int, m: int, slopes: bool = False) -> dict[str, tuple[int, ...]]:
    blocks = {'feature_extraction.0': (d, 1, 5, 5), 'shrinking.0': (s, d, 1, 1)}
    blocks |= {f'mapping.{i}': (s, s, 3, 3) for i in range(m)}
    blocks |= {'expanding.0': (d, s, 1, 1)}
    entries = conv_entries({f'{name}.0': shape for name, shape in blocks.items()})
    entries |= {f'{name}.1.weight': shape[:1] if slopes else (1,) for name, shape in blocks.items()}
    return entries | {'last_layer.0.0.weight': (d, 1, 9, 9), 'last_layer.0.0.bias': (1,)}


def vdsr_entries() -> dict[str, tuple[int, ...]]:
    hidden = {f'residual_layer.{i}.conv.weight': (64, 64, 3, 3) for i in range(18)}
    return {'input.weight': (64, 1, 3, 3), 'output.weight': (1, 64, 3, 3)} | hidden


def idn_entries() -> dict[str, tuple[int, ...]]:
    convs = {'conv1': (64, 1, 3, 3), 'conv2': (64, 64, 3, 3)}
    for b in range(1, 5):
        convs |= {f'conv{b + 2}_1': (48, 64, 3, 3), f'conv{b + 2}_2': (32, 12, 3, 3), f'conv{b + 2}_3': (64, 32, 3, 3)}
        convs |= {f'conv{b + 2}_4': (64, 48, 3, 3), f'conv{b + 2}_5': (48, 16, 3, 3), f'conv{b + 2}_6': (80, 48, 3, 3)}
        convs |= {f'down{b}': (64, 80, 1, 1)}
    return conv_entries(convs) | {'upsample.weight': (64, 1, 17, 17), 'upsample.bias': (1,)}


def carn_entries(scale: int, units: int, group: int, expand: bool) -> dict[str, tuple[int, ...]]:
    convs = {'sub_mean.shifter': (3, 3, 1, 1), 'add_mean.shifter': (3, 3, 1, 1)}
    convs |= {'entry': (64, 3, 3, 3), 'exit': (3, 64, 3, 3)}
    for i in (1, 2, 3):
        convs |= {f'c{i}.body.0': (64, 64 * (i + 1), 1, 1)}
        convs |= {f'b{i}.c{j}.body.0': (64, 64 * (j + 1), 1, 1) for j in (1, 2, 3)}
        for j in range(1, units + 1):
            convs |= {f'b{i}.b{j}.body.{k}': (64, 64 // group, 3, 3) for k in (0, 2)}
            convs |= {f'b{i}.b{j}.body.4': (64, 64, 1, 1)} if expand else {}
    tails = {2: {0: 256}, 3: {0: 576}, 4: {0: 256, 3: 256}}[scale]
    return conv_entries(convs | {f'upsample.up.body.{k}': (n, 64 // group, 3, 3) for k, n in tails.items()})


def imdn_entries(scale: int) -> dict[str, tuple[int, ...]]:
    convs = {'fea_conv': (64, 3, 3, 3), 'c.0': (64, 384, 1, 1), 'LR_conv': (64, 64, 3, 3)}
    for b in range(1, 7):
        convs |= {f'IMDB{b}.c1': (64, 64, 3, 3), f'IMDB{b}.c2': (64, 48, 3, 3), f'IMDB{b}.c3': (64, 48, 3, 3)}
        convs |= {f'IMDB{b}.c4': (16, 48, 3, 3), f'IMDB{b}.c5': (64, 64, 1, 1)}
        convs |= {f'IMDB{b}.cca.conv_du.0': (4, 64, 1, 1), f'IMDB{b}.cca.conv_du.2': (64, 4, 1, 1)}
    return conv_entries(convs | {'upsampler.0': (3 * scale**2, 64, 3, 3)})


def rfdb_convs(block: str, n: int) -> dict[str, tuple[int, ...]]:
    convs = {f'{block}.c4': (n // 2, n, 3, 3), f'{block}.c5': (n, 4 * (n // 2), 1, 1)}
    for i in (1, 2, 3):
        convs |= {f'{block}.c{i}_d': (n // 2, n, 1, 1), f'{block}.c{i}_r': (n, n, 3, 3)}
    return convs


def rfdn_entries(n: int, scale: int) -> dict[str, tuple[int, ...]]:
    convs = {'fea_conv': (n, 3, 3, 3), 'c.0': (n, 6 * n, 1, 1), 'LR_conv': (n, n, 3, 3)}
    for b in range(1, 7):
        convs |= rfdb_convs(f'B{b}', n)
        convs |= {f'B{b}.cca.conv_du.0': (n // 4, n, 1, 1), f'B{b}.cca.conv_du.2': (n, n // 4, 1, 1)}
    return conv_entries(convs | {'upsampler.0': (3 * scale**2, n, 3, 3)})


def erfdn_entries() -> dict[str, tuple[int, ...]]:
    convs = {
        'fea_conv': (50, 3, 3, 3),
        'c.0': (50, 200, 1, 1),
        'LR_conv': (50, 50, 3, 3),
        'upsampler.0': (48, 50, 3, 3),
    }
    for b in range(1, 5):
        convs |= rfdb_convs(f'B{b}', 50)
        convs |= {f'B{b}.esa.conv1': (12, 50, 1, 1), f'B{b}.esa.conv_f': (12, 12, 1, 1)}
        convs |= {f'B{b}.esa.{c}': (12, 12, 3, 3) for c in ('conv_max', 'conv2', 'conv3', 'conv3_')}
        convs |= {f'B{b}.esa.conv4': (50, 12, 1, 1)}
    return conv_entries(convs)


def pi_encoder_entries(c: int) -> dict[str, tuple[int, ...]]:
    convs = {'0.0': (56, c, 5, 5), '0.2': (56, 56, 5, 5), '0.4': (12, 56, 3, 3), '0.6': (c, 12, 3, 3)}
    return conv_entries(convs) | {f'0.{i}.weight': (1,) for i in (1, 3, 5)}


def prefixed(prefix: str, entries: dict) -> dict:
    return {f'{prefix}.{key}': value for key, value in entries.items()}


RELEASED = {
    'FSRCNN_x2': fsrcnn_entries(56, 12, 4),
    'FSRCNN_L_x4': fsrcnn_entries(56, 56, 4),
    'FSRCNN_slopes': fsrcnn_entries(56, 12, 4, slopes=True),
    'VDSR_x3': vdsr_entries(),
    'IDN_x2': idn_entries(),
    'IDN_x4': idn_entries(),
    'CARN_x2': carn_entries(2, units=3, group=1, expand=False),
    'CARN_x3': carn_entries(3, units=3, group=1, expand=False),
    'CARN_x4': carn_entries(4, units=3, group=1, expand=False),
    'CARNM_x2': carn_entries(2, units=1, group=4, expand=True),
    'CARNM_x3': carn_entries(3, units=1, group=4, expand=True),
    'CARNM_x4': carn_entries(4, units=1, group=4, expand=True),
    'IMDN_x2': imdn_entries(2),
    'IMDN_x3': imdn_entries(3),
    'IMDN_x4': imdn_entries(4),
    'RFDN_x3': rfdn_entries(48, 3),
    'RFDN_L_x2': rfdn_entries(52, 2),
    'ERFDN_x4': erfdn_entries(),
    'PITeacher_FSRCNN_x3': prefixed('encoder', pi_encoder_entries(1)) | prefixed('decoder', fsrcnn_entries(56, 12, 4)),
    'PITeacher_RFDN_x4': prefixed('encoder', pi_encoder_entries(3)) | prefixed('decoder', rfdn_entries(48, 4)),
}
TENSORS = {'VDSR_x3': 20, 'IDN_x2': 62, 'IMDN_x2': 92, 'ERFDN_x4': 128}  # as counted in the released files


@pytest.mark.parametrize('name', RELEASED)
def test_keys_and_shapes_are_those_of_the_authors(name):
    found = {key: tuple(value.shape) for key, value in CASES[name].build().state_dict().items()}
    assert found == RELEASED[name]
    assert len(found) == TENSORS.get(name, len(found))


def multi_scale(name: str) -> dict[str, torch.Tensor]:
    """Weights as in the authors' multi-scale files: one body, an upsampler for each scale."""
    weights = {}
    for scale in (2, 3, 4):
        for key, value in CASES[f'{name}_x{scale}'].build().state_dict().items():
            weights[key.replace('upsample.up.', f'upsample.up{scale}.')] = value + scale
    return weights


@pytest.mark.parametrize(('name', 'params', 'tensors'), [('CARN', 1_591_963, None), ('CARNM', 414_811, 58)])
def test_carn_takes_its_scale_from_a_multi_scale_file(name, params, tensors):
    weights = multi_scale(name)
    assert sum(value.numel() for value in weights.values()) == params
    assert len(weights) == (tensors or len(weights))
    for scale in (2, 3, 4):
        network = CASES[f'{name}_x{scale}'].build()
        converted = network.convert_released(weights)
        network.load_state_dict(converted, strict=True)
        assert torch.equal(network.upsample.up.body[0].weight, weights[f'upsample.up{scale}.body.0.weight'])
        assert network.convert_released(converted) == converted


def test_pisr_files_load_into_student_and_teacher():
    student, teacher_net = CASES['FSRCNN_x2'].build(), CASES['PITeacher_FSRCNN_x2'].build()
    own = student.state_dict()
    estimator = {'vid_module_dict.expanding_mean.0.bias': torch.zeros(56)}
    assert student.convert_released(prefixed('network', own)) == own
    assert student.convert_released(prefixed('backbone.network', own) | estimator) == own
    assert student.convert_released(own) == own
    encoder = teacher_net.encoder.state_dict()
    file = prefixed('backbone.network', own | prefixed('encoder', encoder))
    converted = teacher_net.convert_released(file)
    assert converted == prefixed('encoder', encoder) | prefixed('decoder', own)
    teacher_net.load_state_dict(converted, strict=True)
    assert teacher_net.convert_released(converted) == converted


@pytest.mark.parametrize(
    'name', ['VDSR_x2', 'VDSR_rgb', 'IDN_x2', 'IDN_x3', 'IDN_rgb_x4', 'IDN_shuffle_x3', 'IDN_centred']
)
def test_without_its_last_layer_a_network_that_adds_to_bicubic_is_bicubic(name):
    case = CASES[name]
    network, image = case.build(), case.image(9, 12)
    last = network.output if case.type == 'VDSR' else network.upsample
    with torch.no_grad():
        for p in last.parameters():
            p.zero_()
        torch.testing.assert_close(network(image), imresize(image, case.scale), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ('name', 'first', 'last', 'per_colour'),
    [
        ('FSRCNN_rgb', 'feature_extraction.0.0', 'last_layer.0.0', None),
        ('VDSR_rgb', 'input', 'output', 1),
        ('IDN_rgb_x3', 'conv1', 'upsample', None),
        ('IDN_shuffle_x3', 'conv1', 'upsample.1', 9),
        ('CARN_x2', 'entry', 'exit', 1),
        ('CARNM_x4', 'entry', 'exit', 1),
        ('IMDN_x3', 'fea_conv', 'upsampler.0', 9),
        ('RFDN_x4', 'fea_conv', 'upsampler.0', 16),
        ('ERFDN_x4', 'fea_conv', 'upsampler.0', 16),
    ],
)
def test_colours_permute_with_the_weights(name, first, last, per_colour):
    """The input's channels, and the output's blocks of ``per_colour`` channels before the shuffle, are the colours."""
    case, order = CASES[name], [2, 0, 1]
    network, image = case.build().double(), case.image(9, 10).double()
    with torch.no_grad():
        expected = network(image)[:, order]
        weights = network.state_dict()
        weights[f'{first}.weight'] = weights[f'{first}.weight'][:, order]
        if per_colour is None:  # a transposed convolution
            weights[f'{last}.weight'] = weights[f'{last}.weight'][:, order]
        else:
            weights[f'{last}.weight'] = weights[f'{last}.weight'].unflatten(0, (3, per_colour))[order].flatten(0, 1)
        if f'{last}.bias' in weights:
            weights[f'{last}.bias'] = weights[f'{last}.bias'].unflatten(0, (3, -1))[order].flatten()
        for shift in ('sub_mean', 'add_mean'):
            if f'{shift}.shifter.bias' in weights:
                weights[f'{shift}.shifter.bias'] = weights[f'{shift}.shifter.bias'][order]
        network.load_state_dict(weights)
        assert torch.allclose(network(image[:, order]), expected, atol=1e-9)


@pytest.mark.parametrize('name', ['CARN_x2', 'CARN_y', 'CARNM_x3'])
def test_carn_shifts_by_a_frozen_mean_colour(name):
    case = CASES[name]
    network = case.build()
    frozen = {key for key, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {f'{shift}_mean.shifter.{kind}' for shift in ('sub', 'add') for kind in ('weight', 'bias')}
    colour = [0.4488, 0.4371, 0.4040]
    if case.ch == 1:
        r, g, b = colour
        colour = [16 / 255 + (65.481 * r + 128.553 * g + 24.966 * b) / 255]
    image = torch.tensor(colour)[None, :, None, None].expand(1, -1, 4, 5)
    with torch.no_grad():
        assert network.sub_mean(image).abs().max() < 1e-7
        network.exit.weight.zero_()
        network.exit.bias.zero_()
        grey = network(torch.rand(1, case.ch, 4, 5))
    assert torch.allclose(grey, image[..., :1, :1].expand_as(grey))


@pytest.mark.parametrize(('name', 'centre'), [('IDN_x4', 3), ('IDN_x2', 1), ('IDN_centred', 0)])
def test_idn_deconvolution_is_aligned_as_said(name, centre):
    """One lit pixel of the feature lands ``centre`` pixels after ``scale`` times its place."""
    case = CASES[name]
    network = case.build()
    weight = torch.zeros_like(network.upsample.weight)
    weight[0, 0, 8, 8] = 1.0
    feature = torch.zeros(1, 64, 5, 6)
    feature[0, 0, 2, 3] = 1.0
    with torch.no_grad():
        network.upsample.weight.copy_(weight)
        (lit,) = network.upsample(feature)[0, 0].nonzero().tolist()
    assert lit == [2 * case.scale + centre, 3 * case.scale + centre]


def test_contrast_attention_has_a_finite_gradient_for_a_constant_channel():
    attention = CCA(16, reduction=4)
    x = torch.rand(2, 16, 6, 5)
    x[:, 3] = 0.25
    x.requires_grad_()
    attention(x).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[:, 3].any()


@pytest.mark.parametrize('size', [(3, 3), (8, 21), (14, 40)], ids=str)
def test_spatial_attention_works_below_the_window_of_its_pooling(size):
    attention = ESA(16)
    out = attention(torch.rand(2, 16, *size))
    assert out.shape == (2, 16, *size)
    out.sum().backward()
    assert all(p.grad.any() for p in attention.conv2.parameters())


@pytest.mark.parametrize('name', ['VDSR_bias', 'IDN_x2'])
def test_initial_weights_have_the_published_spread(name):
    network = CASES[name].build()
    for key, weight in network.state_dict().items():
        if key.endswith('bias'):
            assert not weight.any()
            continue
        out_ch, in_ch, area = *weight.shape[:2], weight.shape[2:].numel()
        variance = 2 / (9 * out_ch) if name == 'VDSR_bias' else 2 / ((in_ch + out_ch) * area / 2)
        assert weight.var().item() == pytest.approx(variance, rel=5 * (2 / weight.numel()) ** 0.5), key


@pytest.mark.parametrize('network', sorted({case.type for case in CASES.values()}))
def test_networks_compile_and_export_as_one_graph(network):
    case = next(case for case in CASES.values() if case.type == network)
    net, image = case.build().eval(), case.image(10, 12)
    with torch.no_grad():
        expected = outputs(net, image)[0]
        compiled = torch.compile(net, backend='eager', fullgraph=True)
        assert torch.equal(outputs(compiled, image)[0], expected)
        exported = torch.export.export(net, (image,)).module()
        assert torch.allclose(outputs(exported, image)[0], expected, atol=1e-5)


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
    ('FSRCNN', {'upscale': 1}, 'upscale: .*found 1.*Expected a whole number from 2 on'),
    ('FSRCNN', {'upscale': 2.0}, 'upscale: .*found 2.0'),
    ('FSRCNN', {'upscale': 2, 'num_in_ch': 0}, 'num_in_ch: .*found 0'),
    ('FSRCNN', {'upscale': 2, 'd': '56'}, "d: .*found '56'"),
    ('FSRCNN', {'upscale': 2, 'm': 0}, 'm: .*found 0'),
    ('HRFSRCNN', {'upscale': True}, 'upscale: .*found True'),
    ('RFDN', {'upscale': 4, 'num_feat': 3}, 'num_feat: .*found 3.*Expected a whole number from 4 on'),
    ('RFDN', {'upscale': 4, 'num_block': 0}, 'num_block: .*found 0'),
    ('VDSR', {'upscale': 2, 'num_in_ch': 1, 'num_out_ch': 3}, 'num_out_ch: .*found 3.*Expected one of 1'),
    ('VDSR', {'upscale': 2, 'num_block': 0}, 'num_block: .*found 0'),
    ('IDN', {'upscale': 2, 'num_in_ch': 3}, 'num_out_ch: .*found 1.*Expected one of 3'),
    ('IDN', {'upscale': 2, 'num_feat': 40}, 'num_feat: .*found 40.*Expected a multiple of 16'),
    (
        'IDN',
        {'upscale': 2, 'upsampler': 'shuffle'},
        "upsampler: .*found 'shuffle'.*one of 'deconv', 'deconv_centred'",
    ),
    ('IDN', {'upscale': 10}, 'upscale: .*found 10.*Expected 2 to 9'),
    ('CARN', {'upscale': 5}, 'upscale: .*found 5.*Expected one of 2, 3, 4'),
    ('CARN', {'upscale': 2, 'num_in_ch': 4}, 'num_in_ch: .*found 4.*Expected one of 3, 1'),
    ('CARNM', {'upscale': 2, 'num_feat': 30}, r'num_feat: .*found 30.*Expected a multiple of groups, 4'),
    ('IMDN', {'upscale': 2, 'num_feat': 15}, 'num_feat: .*found 15.*Expected a whole number from 16 on'),
    ('ERFDN', {'upscale': 4, 'num_feat': 2}, 'num_feat: .*found 2'),
    ('KDSRStudent', {'upscale': 8}, 'upscale: .*found 8.*Expected one of 2, 3, 4'),
    ('KDSRStudent', {'upscale': 4, 'num_estimator_block': -1}, 'num_estimator_block: .*found -1'),
    ('KDSRTeacher', {'upscale': 4, 'num_in_ch': 6}, 'num_in_ch: .*found 6.*Expected one of 3, 1'),
    ('PIEncoder', {'num_in_ch': 1, 'upscale': 0}, 'upscale: .*found 0'),
    ('PITeacher', {'upscale': 2, 'decoder': {'upscale': 2}}, 'decoder: .*found .*with its type'),
    (
        'PITeacher',
        {'upscale': 2, 'decoder': {'type': 'FSRCNN', 'upscale': 3}},
        'decoder.upscale: .*found 3.*Expected 2',
    ),
    ('PITeacher', {'upscale': 2, 'decoder': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3}}, 'found 4.*Expected 2'),
    (
        'PITeacher',
        {'upscale': 2, 'decoder': {'type': 'FSRCNN', 'upscale': 2}, 'encoder': 'PIEncoder'},
        'encoder: .*found',
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
