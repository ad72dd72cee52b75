"""KDSR's networks against the published sizes, keys and formulas; the student's rows are in test_archs.py."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import yaml
from basicsr.archs import build_network
from torch import Tensor, nn
from torch.nn import functional as F

from pisr_plugin.archs.kdsr_arch import DynamicConv
from pisr_plugin.cli.train import main as train
from pisr_plugin.distill.links import default_teacher_tap, transfer_weights
from pisr_plugin.distill.taps import TapReader
from pisr_plugin.inference.checkpoint import load_weights
from tests.reference_forward import Weights
from tests.test_archs import KDSR_GAN, KDSR_L, KDSR_M, conv_entries

pytestmark = pytest.mark.usefixtures('one_thread')
SMALL = {'num_feat': 8, 'num_block': 2, 'num_estimator_block': 1}


def build(kind: str, scale: int = 2, **options) -> nn.Module:
    torch.manual_seed(0)
    return build_network({'type': f'KDSR{kind}', 'upscale': scale, **(options or SMALL)})


def images(scale: int = 2, batch: int = 2, channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    lq = torch.rand(batch, channels, 10, 13, generator=generator)
    return lq, torch.rand(batch, channels, 10 * scale, 13 * scale, generator=generator)


# -------------------------------------------------------------------------------------------------- sizes and keys


@pytest.mark.parametrize(
    ('size', 'student_x4', 'student_x2', 'teacher_x4', 'estimator'),
    [
        (KDSR_M, 5_795_099, 5_647_387, 5_822_747, 1_331_136),
        (KDSR_L, 14_191_003, 13_600_667, 14_246_299, 4_135_808),
        (KDSR_GAN, 18_846_107, 18_255_771, 18_901_403, 4_430_976),
    ],
    ids=['M', 'L', 'GAN'],
)
def test_numbers_of_parameters_are_as_published(size, student_x4, student_x2, teacher_x4, estimator):
    def parameters(network):
        return sum(p.numel() for p in network.parameters())

    with torch.device('meta'):
        student, teacher = build('Student', 4, **size), build('Teacher', 4, **size)
        assert parameters(student) == student_x4
        assert parameters(student.E_st) == estimator
        assert parameters(teacher) == teacher_x4
        assert parameters(build('Student', 2, **size)) == student_x2
    assert sum(p.numel() for p in student.parameters() if not p.requires_grad) == 24


def entries(estimator: str, seen: int, c: int, n: int, r: int, scale: int) -> dict[str, tuple[int, ...]]:
    convs = {'G.sub_mean': (3, 3, 1, 1), 'G.add_mean': (3, 3, 1, 1), 'G.head.0': (c, 3, 3, 3), 'G.body.1': (c, c, 3, 3)}
    convs |= {f'G.body.0.body.{i}.conv1': (c, c, 3, 3) for i in range(n)}
    convs |= {f'G.tail.0.{i}': (4 * c, c, 3, 3) for i in ((0, 2) if scale == 4 else (0,))}
    convs |= {'G.tail.1': (3, c, 3, 3), f'{estimator}.E.0': (c, seen, 3, 3)}
    convs |= {f'{estimator}.E.{i}.body.{j}': (c, c, 3, 3) for i in range(2, 2 + r) for j in (0, 2)}
    widths = {2 + r: (2 * c, c), 4 + r: (2 * c, 2 * c), 6 + r: (4 * c, 2 * c)}
    convs |= {f'{estimator}.E.{i}': (*width, 3, 3) for i, width in widths.items()}
    convs |= {f'{estimator}.mlp.{i}': (4 * c, 4 * c) for i in (0, 2)} | {f'{estimator}.compress.0': (c, 4 * c)}
    dynamic = {f'G.body.0.body.{i}.da_conv1.kernel' for i in range(n)}
    kernels = {f'{path}.0.weight': (c, c) for path in dynamic} | {f'{path}.2.weight': (9 * c, c) for path in dynamic}
    return conv_entries(convs) | kernels


@pytest.mark.parametrize(
    ('kind', 'scale', 'size', 'expected'),
    [
        ('Student', 4, KDSR_M, entries('E_st', 3, 64, 53, 9, 4)),
        ('Student', 2, KDSR_L, entries('E_st', 3, 128, 28, 5, 2)),
        ('Student', 4, KDSR_GAN, entries('E_st', 3, 128, 42, 6, 4)),
        ('Teacher', 4, KDSR_M, entries('E', 51, 64, 53, 9, 4)),
        ('Teacher', 2, KDSR_L, entries('E', 15, 128, 28, 5, 2)),
    ],
)
def test_keys_and_shapes_are_those_of_the_authors(kind, scale, size, expected):
    with torch.device('meta'):
        network = build(kind, scale, **size)
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == expected


# -------------------------------------------------------------------------------------------------- formulas


def lrelu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.1 * x)


def linear(p: Weights, name: str, x: Tensor) -> Tensor:
    bias = p.state.get(f'{p.prefix}{name}.bias')
    return x @ p.state[f'{p.prefix}{name}.weight'].T + (0 if bias is None else bias)


def representation(p: Weights, x: Tensor, r: int) -> Tensor:
    x = lrelu(p.conv('E.0', x))
    for i in range(2, 2 + r):
        x = x + p.conv(f'E.{i}.body.2', lrelu(p.conv(f'E.{i}.body.0', x)))
    for i in (2 + r, 4 + r, 6 + r):
        x = lrelu(p.conv(f'E.{i}', x))
    return lrelu(linear(p, 'mlp.2', lrelu(linear(p, 'mlp.0', x.mean((2, 3))))))


def dynamic_conv(p: Weights, x: Tensor, d: Tensor) -> Tensor:
    """Image by image, channel by channel."""
    kernels = linear(p, 'kernel.2', lrelu(linear(p, 'kernel.0', d))).reshape(*x.shape[:2], 3, 3)
    planes = [
        [F.conv2d(plane[None, None], kernel[None, None], padding=1)[0, 0] for plane, kernel in zip(image, of_image)]
        for image, of_image in zip(x, kernels)
    ]
    return torch.stack([torch.stack(image) for image in planes])


def reconstruct(p: Weights, lq: Tensor, d: Tensor, n: int, scale: int) -> Tensor:
    mean = p.state[f'{p.prefix}add_mean.bias'][:, None, None]
    assert torch.allclose(mean.flatten(), torch.tensor([0.4488, 0.4371, 0.4040]).double(), atol=1e-7)
    shallow = x = p.conv('head.0', lq - mean)
    for i in range(n):
        block = p.under(f'body.0.body.{i}')
        x = x + block.conv('conv1', lrelu(dynamic_conv(block.under('da_conv1'), x, d)))
    x = p.conv('body.1', x) + shallow
    for i, factor in {2: [(0, 2)], 3: [(0, 3)], 4: [(0, 2), (2, 2)]}[scale]:
        x = F.pixel_shuffle(p.conv(f'tail.0.{i}', x), factor)
    return p.conv('tail.1', x) + mean


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('kind', ['Student', 'Teacher'])
def test_forward_is_the_formula(kind, scale):
    network = build(kind, scale).double()
    lq, gt = (image.double() for image in images(scale))
    p = Weights(network.state_dict())
    folded = gt.reshape(2, 3, 10, scale, 13, scale).permute(0, 1, 3, 5, 2, 4).reshape(2, -1, 10, 13)
    seen, estimator = (lq, 'E_st') if kind == 'Student' else (torch.cat((lq, folded), 1), 'E')
    with torch.no_grad():
        idr = representation(p.under(estimator), seen, 1)
        d = lrelu(linear(p.under(estimator), 'compress.0', idr))
        inputs = (lq,) if kind == 'Student' else (lq, gt)
        assert torch.allclose(network(*inputs), reconstruct(p.under('G'), lq, d, 2, scale), rtol=1e-9)
        tapped = TapReader(network, [network.default_tap]).read(*inputs)[network.default_tap]
        assert torch.allclose(tapped, idr, rtol=1e-9)


def test_dynamic_convolution_is_the_loop_over_images_and_so_is_its_gradient():
    network = DynamicConv(6).double()
    x, d = torch.rand(3, 6, 5, 7).double().requires_grad_(), torch.rand(3, 6).double().requires_grad_()
    results = []
    for out in (network(x, d), dynamic_conv(Weights(network.state_dict(keep_vars=True)), x, d)):
        results.append((out, *torch.autograd.grad(out.square().sum(), [x, d, *network.parameters()])))
    for found, expected in zip(*results, strict=True):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('kind', ['Student', 'Teacher'])
def test_images_of_a_batch_do_not_see_each_other(kind):
    network = build(kind).double()
    inputs = [image.double() for image in images()][: 1 if kind == 'Student' else 2]
    with torch.no_grad():
        together = network(*inputs)
        alone = torch.cat([network(*(image[i : i + 1] for image in inputs)) for i in (0, 1)])
    assert torch.allclose(together, alone, rtol=1e-9, atol=1e-12)


def test_the_reconstruction_depends_on_the_representation():
    network, (lq, _) = build('Student'), images()
    with torch.no_grad():
        d = network.E_st(lq)
        assert torch.equal(network.G(lq, d), network(lq))
        assert not torch.allclose(network.G(lq, d + 1), network(lq))


# -------------------------------------------------------------------------------------------------- two networks


def test_default_taps_meet_and_the_body_moves_from_teacher_to_student():
    student, teacher, (lq, gt) = build('Student'), build('Teacher'), images()
    assert default_teacher_tap(teacher, student.default_tap) == teacher.default_tap == 'E.mlp'
    assert teacher.inputs == ('lq', 'gt')
    learnt = TapReader(student, ['E_st.mlp']).read(lq)['E_st.mlp']
    assert learnt.shape == TapReader(teacher, ['E.mlp']).read(lq, gt)['E.mlp'].shape == (2, 32)
    copied = transfer_weights({'G': 'G'}, teacher, student, 'train.weight_transfer')
    assert len(copied) == len(teacher.G.state_dict())
    d = torch.rand(2, 8)
    with torch.no_grad():
        assert torch.equal(student.G(lq, d), teacher.G(lq, d))


def test_a_teachers_tap_costs_no_reconstruction():
    teacher, (lq, gt) = build('Teacher'), images()
    reader = TapReader(teacher, ['E.mlp'])
    first = reader.read(lq, gt)['E.mlp']
    teacher.G = nn.Module()  # cannot be called
    assert torch.equal(reader.read(lq, gt)['E.mlp'], first)


def test_every_parameter_of_the_teacher_gets_a_gradient():
    teacher, (lq, gt) = build('Teacher'), images()
    teacher(lq, gt).square().mean().backward()
    assert [name for name, p in teacher.named_parameters() if p.requires_grad and not p.grad.any()] == []


def test_a_distillation_trains_all_of_the_estimator_up_to_its_tap_and_nothing_else():
    student, (lq, _) = build('Student'), images()
    student.E_st.mlp(student.E_st.E(lq).flatten(1)).square().sum().backward()
    trained = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {name for name, _ in student.named_parameters() if name.startswith(('E_st.E.', 'E_st.mlp.'))}


def test_the_teacher_refuses_images_that_do_not_fit():
    lq, gt = images(4)
    with pytest.raises(ValueError, match='gt is 40x52, with upscale 2 it must be 20x26'):
        build('Teacher', 2)(lq, gt)


@pytest.mark.parametrize('kind', ['Student', 'Teacher'])
def test_networks_copy_compile_export_and_run_in_bfloat16(kind):
    network = build(kind).eval()
    inputs = images()[: 1 if kind == 'Student' else 2]
    with torch.no_grad():
        expected = network(*inputs)
        assert torch.equal(copy.deepcopy(network)(*inputs), expected)
        assert torch.equal(torch.compile(network, backend='eager', fullgraph=True)(*inputs), expected)
        assert torch.allclose(torch.export.export(network, inputs).module()(*inputs), expected, atol=1e-6)
        with torch.autocast('cpu', torch.bfloat16):
            assert torch.allclose(network(*inputs).float(), expected, atol=0.05)
    channels_last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    laid_out = [image.to(memory_format=torch.channels_last) for image in inputs]
    with torch.no_grad():
        assert torch.allclose(channels_last(*laid_out), expected, atol=1e-5)


def test_a_recipe_trains_teacher_and_student_with_the_engine_as_it_is(workspace):
    """Stages, hand-off and link carry KDSR: its representation is a vector, its teacher sees two images."""
    network = {'upscale': '${scale}', **SMALL}
    data = {'name': 'blind', 'type': 'BlurredImageDataset', 'dataroot_gt': 'datasets/test/HR'}
    recipe = workspace.recipe('schedule', network_g=None, network_t={'type': 'KDSRTeacher', **network})
    options = yaml.safe_load(recipe.read_text())
    options['datasets']['train'].pop('color')
    options['datasets']['val'] = {**data, 'io_backend': {'type': 'disk'}, 'kernels': [1.0, 1.6]}
    options['stages'] = {
        'teacher': {},
        'student': {
            'network_g': {'type': 'KDSRStudent', **network},
            'path': {'pretrain_network_t': 'stage:teacher'},
            'train': {
                'weight_transfer': {'G': 'G'},
                'distill_opt': {'idr': {'loss': {'type': 'RepresentationKLLoss'}}},
            },
        },
    }
    recipe.write_text(yaml.safe_dump(options, sort_keys=False))
    still = ['stages:student:train:optim_g:lr=0', 'train:scheduler:eta_min=0']  # the student keeps what it starts with
    assert train(['-opt', str(recipe), '--force_yml', *still]) == 0
    folder = workspace.path / 'experiments/run'
    records = [json.loads(line) for line in (folder / 'student/metrics.jsonl').read_text().splitlines()]
    assert {key for record in records for key in record if key.startswith('l_')} == {'l_pix', 'l_distill_idr'}
    assert 'psnr' in json.loads((folder / 'student/result.json').read_text())['metrics']['blind']
    teacher = load_weights(folder / 'teacher/models/net_t_latest.pth')
    student = load_weights(folder / 'student/models/net_g_latest.pth')
    build('Student').load_state_dict(student, strict=True)
    assert all(torch.equal(student[key], value) for key, value in teacher.items() if key.startswith('G.'))
