"""Links are proven before training, and their estimators train with the student but are not part of it."""

import logging

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn

from pisr_plugin.distill.links import Link, LinkedNetwork, build_links, default_teacher_tap, transfer_weights
from pisr_plugin.losses.base import FeatureLoss
from pisr_plugin.utils.errors import OptionsError, TapError


class Net(nn.Module):
    """A student whose body is followed by a tail, and a declared tap."""

    default_tap = 'body'

    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Conv2d(1, width, 3, padding=1)
        self.tail = nn.Conv2d(width, 1, 1)

    def forward(self, x):
        return self.tail(self.body(x))


class Teacher(nn.Module):
    """Sees a larger image; its decoder is a student."""

    def __init__(self, width=4):
        super().__init__()
        self.encoder = nn.AvgPool2d(2)
        self.decoder = Net(width)

    def forward(self, gt):
        return self.decoder(self.encoder(gt))


class MAE(nn.Module):
    """Weighted mean absolute difference."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = weight

    def forward(self, estimate, target):
        if estimate.shape != target.shape:
            raise ValueError('shapes differ')
        return self.weight * (estimate - target).abs().mean()


class Detached(MAE):
    """A loss rebuilt from a number, as torch.tensor([...]) would: it trains nothing."""

    def forward(self, estimate, target):
        return torch.tensor(super().forward(estimate, target).item(), requires_grad=True)


LOSSES = {'MAE': MAE, 'Detached': Detached}


def estimator(option_path, option):
    return nn.Conv2d(option['in_ch'], option['out_ch'], 1)


def loss(option_path, option):
    option = dict(option)
    return LOSSES[option.pop('type')](**option)


def links(options, student=None, teacher=None, gt_size=8):
    student, teacher = student or Net(), teacher or Teacher()
    return build_links(
        options,
        student,
        teacher,
        [torch.rand(1, 1, 4, 4)],
        [torch.rand(1, 1, gt_size, gt_size)],
        estimator,
        loss,
        'train.distill_opt',
    )


def test_taps_default_to_the_declared_one_inside_the_decoder():
    (link,) = links({'body': {'loss': {'type': 'MAE'}}})
    assert (link.student, link.teacher, link.estimator) == ('body', 'decoder.body', None)
    assert default_teacher_tap(Net(), 'tail') == 'body'
    assert default_teacher_tap(nn.Sequential(nn.Identity()), '0') == '0'


def test_an_estimator_gets_the_widths_of_both_sides():
    (link,) = links({'body': {'estimator': {'type': 'x'}, 'loss': {'type': 'MAE'}}}, Net(3), Teacher(5))
    assert (link.estimator.in_channels, link.estimator.out_channels) == (3, 5)


def test_the_linked_network_computes_every_link_in_one_pass():
    student, teacher = Net(), Teacher()
    built = links(
        {
            'body': {'estimator': {'type': 'x'}, 'loss': {'type': 'MAE'}},
            'out': {'student': 'tail', 'loss': {'type': 'MAE', 'weight': 2.0}},
        },
        student,
        teacher,
    )
    linked = LinkedNetwork(student, built)
    x = torch.rand(2, 1, 4, 4)
    output, estimates = linked(x)
    assert torch.equal(output, student(x)) and torch.equal(estimates['out'], output)
    assert torch.equal(estimates['body'], built[0].estimator(student.body(x)))
    assert {name.split('.')[0] for name in linked.state_dict()} == {'net', 'estimators'}
    assert set(student.state_dict()) == set(Net().state_dict())


def test_a_link_counts_only_within_its_iterations():
    link = Link('a', 's', 't', None, MAE(), from_iter=3, to_iter=5)
    values = [link(torch.ones(1), torch.zeros(1), link.active(it)).item() for it in range(1, 8)]
    assert values == [0, 0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    'option, kwargs, error, fragments',
    [
        ({'student': 'bdy'}, {}, TapError, ['train.distill_opt.a.student', "Did you mean 'body'", 'tail']),
        ({'teacher': 'decodr.body'}, {}, TapError, ['train.distill_opt.a.teacher', "Did you mean 'decoder.body'"]),
        ({}, {'gt_size': 16}, TapError, ['differ in size', '(1, 4, 4, 4)', '(1, 4, 8, 8)']),
        (
            {},
            {'teacher': Teacher(5)},
            OptionsError,
            ['MAE cannot compare', '(1, 4, 4, 4)', '(1, 5, 4, 4)', 'shapes differ'],
        ),
        (
            {'loss': {'type': 'Detached'}},
            {},
            OptionsError,
            ['train.distill_opt.a.loss', 'no gradient', 'train nothing'],
        ),
        ({}, {'student': nn.Sequential(nn.Conv2d(1, 4, 1))}, TapError, ['declares no default tap', 'Possible: 0']),
    ],
)
def test_a_link_that_cannot_work_is_refused_before_training(option, kwargs, error, fragments):
    with pytest.raises(error) as caught:
        links({'a': {'loss': {'type': 'MAE'}, **option}}, **kwargs)
    assert all(fragment in str(caught.value) for fragment in fragments), caught.value


def test_a_probe_leaves_batch_statistics_and_mode_alone():
    student = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4)).train()
    before = student[1].running_mean.clone()
    links({'a': {'student': '1', 'teacher': 'decoder.body', 'loss': {'type': 'MAE'}}}, student)
    assert student.training and torch.equal(student[1].running_mean, before)


def test_weight_transfer_copies_every_tensor_of_the_module():
    student, teacher = Net(), Teacher()
    copied = transfer_weights({'decoder': '.'}, teacher, student, 'train.weight_transfer')
    assert sorted(copied) == sorted(student.state_dict())
    for key, value in student.state_dict().items():
        assert torch.equal(value, teacher.decoder.state_dict()[key])
        assert value.data_ptr() != teacher.decoder.state_dict()[key].data_ptr()


@pytest.mark.parametrize(
    'mapping, fragments',
    [
        ({'decodr': '.'}, ["no module 'decodr'", "Did you mean 'decoder'"]),
        ({'decoder': 'bodi'}, ["no module 'bodi'", "Did you mean 'body'"]),
        ({'decoder.body': 'tail'}, ['different networks', 'weight']),
        ({'encoder': '.'}, ['different networks']),
    ],
)
def test_weight_transfer_never_half_loads(mapping, fragments):
    student = Net()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    with pytest.raises(OptionsError) as error:
        transfer_weights(mapping, Teacher(), student, 'train.weight_transfer')
    assert all(fragment in str(error.value) for fragment in fragments), error.value
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


# -------------------------------------------------------------------------------------------------- swapping losses

FSRCNN = {'type': 'FSRCNN', 'd': 6, 's': 4, 'm': 1, 'upscale': 2}
PACKAGE = sorted(name for name, kind in LOSS_REGISTRY if isinstance(kind, type) and issubclass(kind, FeatureLoss))
PIXEL = ['L1Loss', 'MSELoss', 'CharbonnierLoss']


def swapped(loss_type, estimator_option):
    """The link of a recipe whose loss alone is overridden, and the linked student."""
    student, teacher = build_network(FSRCNN), build_network({'type': 'PITeacher', 'upscale': 2, 'decoder': FSRCNN})
    options = {'body': {'estimator': estimator_option, 'loss': {'type': loss_type, 'loss_weight': 1e-6}}}
    images = [torch.rand(2, 1, 8, 8)], [torch.rand(2, 1, 16, 16)]
    built = build_links(options, student, teacher, *images)
    return built[0], LinkedNetwork(student, built), images


@pytest.mark.parametrize('estimator_option', [None, {'type': 'LocationScale'}, {'type': 'LocationFreeScale'}], ids=str)
@pytest.mark.parametrize('loss_type', [*PACKAGE, *PIXEL])
def test_every_loss_fits_the_estimator_of_every_other(loss_type, estimator_option):
    link, linked, (small, large) = swapped(loss_type, estimator_option)
    _, estimates = linked(*small)
    link(estimates['body'], torch.rand(2, 6, 8, 8)).backward()
    assert linked.net.feature_extraction[0][0].weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in linked.estimators.parameters())  # DDP would wait for one without


def test_a_loss_of_one_tensor_trains_the_location_alone_and_says_so(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('basicsr'), 'propagate', True)
    with caplog.at_level(logging.INFO, 'basicsr'):
        link, linked, _ = swapped('L1Loss', {'type': 'LocationScale'})
    assert not [name for name in linked.estimators.state_dict() if 'var' in name]
    expected = 'distill_opt.body: L1Loss takes no scale, so the location branch of LocationScale is trained alone.'
    assert expected in caplog.messages


def test_a_loss_that_needs_a_scale_names_the_estimator_to_write():
    with pytest.raises(OptionsError, match=r'distill_opt.body.estimator: \{type: LocationScale\}'):
        swapped('VIDLaplaceLoss', {'type': 'Adapter'})
