"""One step of PISRModel is the paper's equation, and touches what it should."""

from copy import deepcopy

import pytest
import torch
from basicsr.archs import build_network
from basicsr.models import build_model

from pisr_plugin.losses.vid_loss import VIDLaplaceLoss
from pisr_plugin.utils.errors import OptionsError

FSRCNN = {'type': 'FSRCNN', 'd': 8, 's': 4, 'm': 1, 'upscale': 2}
PITEACHER = {'type': 'PITeacher', 'upscale': 2, 'decoder': FSRCNN}
BODY = {'estimator': {'type': 'LocationScale'}, 'loss': {'type': 'VIDLaplaceLoss', 'loss_weight': 0.5}}


def options(**changes) -> dict:
    opt = {
        'num_gpu': 0,
        'is_train': True,
        'dist': False,
        'rank': 0,
        'world_size': 1,
        'scale': 2,
        'model_type': 'PISRModel',
        'datasets': {'train': {'color': 'y', 'gt_size': 16}},
        'path': {},
        'network_g': FSRCNN,
        'network_t': PITEACHER,
        'train': {
            'optim_g': {'type': 'Adam', 'lr': 1e-3},
            'pixel_opt': {'type': 'L1Loss'},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [100]},
            'distill_opt': {'body': BODY},
        },
    }
    opt = {**opt, **{key: value for key, value in changes.items() if key != 'train'}}
    opt['train'].update(changes.get('train', {}))
    return opt


def step(model, batch, current_iter=1):
    model.feed_data(batch)
    model.optimize_parameters(current_iter)
    return model.get_current_log()


def test_student_stage_minimises_reconstruction_plus_distillation(batch):
    model = build_model(options())
    student, teacher, estimator = deepcopy(model.net), model.teacher, deepcopy(model.estimators['body'])
    log = step(model, batch)
    feature = student.expanding(student.mapping(student.shrinking(student.feature_extraction(batch['lq']))))
    decoder = teacher.decoder
    target = decoder.expanding(
        decoder.mapping(decoder.shrinking(decoder.feature_extraction(teacher.encoder(batch['gt']))))
    )
    assert log['l_pix'] == pytest.approx((student(batch['lq']) - batch['gt']).abs().mean().item(), rel=1e-6)
    assert log['l_distill_body'] == pytest.approx(0.5 * VIDLaplaceLoss()(estimator(feature), target).item(), rel=1e-6)


def test_teacher_stage_minimises_reconstruction_plus_imitation(batch):
    opt = options(train={'distill_opt': None, 'imitation_opt': {'type': 'L1Loss', 'loss_weight': 0.3}})
    del opt['network_g']
    model = build_model(opt)
    sr, compact = deepcopy(model.net)(batch['gt'])
    log = step(model, batch)
    assert log['l_pix'] == pytest.approx((sr - batch['gt']).abs().mean().item(), rel=1e-6)
    assert log['l_imitation'] == pytest.approx(0.3 * (compact - batch['lq']).abs().mean().item(), rel=1e-6)


def test_a_student_stage_leaves_the_teacher_bitwise_unchanged_and_without_gradients(batch):
    model = build_model(options(network_t={**PITEACHER, 'decoder': FSRCNN}))
    before = deepcopy(model.teacher.state_dict())
    for it in range(1, 6):
        step(model, batch, it)
    assert all(torch.equal(value, before[key]) for key, value in model.teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    assert not model.teacher.training


def test_the_teacher_runs_no_further_than_the_tapped_layer(batch):
    model = build_model(options())
    ran = []
    for name, module in model.teacher.decoder.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    step(model, batch)
    assert ran[-1] == 'expanding.0.1' and not any(name.startswith('last_layer') for name in ran)


def test_student_and_estimators_train_together(batch):
    model = build_model(options())
    before = {name: p.clone() for name, p in model.linked.named_parameters()}
    step(model, batch)
    unmoved = [name for name, p in model.linked.named_parameters() if torch.equal(p, before[name])]
    assert not unmoved
    trained = {id(p) for group in model.optimizer_g.param_groups for p in group['params']}
    assert trained == {id(p) for p in [*model.net.parameters(), *model.estimators.parameters()]}


def test_several_links_are_logged_by_name_and_add_up(batch):
    links = {
        'body': BODY,
        'early': {'student': 'mapping', 'loss': {'type': 'FeatureMAELoss', 'loss_weight': 2.0}},
        'late': {'student': 'expanding', 'estimator': {'type': 'Adapter'}, 'loss': {'type': 'L1Loss', 'to_iter': 1}},
    }
    model = build_model(options(train={'distill_opt': links}))
    assert set(step(model, batch)) == {'l_pix', 'l_distill_body', 'l_distill_early', 'l_distill_late'}
    assert step(model, batch, 2)['l_distill_late'] == 0


def test_weight_transfer_gives_the_student_the_decoder():
    model = build_model(options(train={'weight_transfer': {'decoder': '.'}}))
    decoder = model.teacher.decoder.state_dict()
    assert all(torch.equal(value, decoder[key]) for key, value in model.net.state_dict().items())


def test_ema_follows_the_definition(batch):
    model = build_model(options(train={'ema_decay': 0.9}))
    start = deepcopy(model.net.state_dict())
    step(model, batch)
    for key, averaged in model.ema.net.state_dict().items():
        torch.testing.assert_close(averaged, 0.9 * start[key] + 0.1 * model.net.state_dict()[key])


def test_testing_restores_the_mode_and_needs_no_teacher(batch):
    model = build_model(options())
    model.feed_data(batch)
    model.test()
    assert model.net.training and model.output.shape == batch['gt'].shape and not model.output.requires_grad
    tester = build_model(options(is_train=False))
    assert not hasattr(tester, 'teacher')


def test_building_a_model_leaves_the_random_state_to_the_networks():
    torch.manual_seed(3)
    model = build_model(options(network_t=None, train={'distill_opt': None}))
    torch.manual_seed(3)
    alone = build_network(FSRCNN)
    assert all(torch.equal(value, alone.state_dict()[key]) for key, value in model.net.state_dict().items())


@pytest.mark.parametrize(
    'changes, fragments',
    [
        ({'train': {'pixel_opt': None, 'distill_opt': None}}, ['nothing to minimise']),
        ({'network_t': None}, ['network_t', 'learn from']),
        ({'train': {'imitation_opt': {'type': 'L1Loss'}}}, ['imitation_opt', 'compact feature', 'none']),
        ({'network_t': {**PITEACHER, 'encoder': {'upscale': 4}}}, ['train.distill_opt.body', 'differ in size']),
        ({'datasets': {'train': {'color': 'rgb', 'gt_size': 16}}}, ['network_g', '(1, 3, 8, 8)']),
        ({'network_t': {'type': 'HRFSRCNN', 'upscale': 4, 'd': 8, 's': 4, 'm': 1}}, ['differ in size', 'pooled']),
    ],
)
def test_what_does_not_fit_is_refused_when_built(changes, fragments):
    with pytest.raises(OptionsError if 'differ in size' not in fragments else Exception) as error:
        build_model(options(**changes))
    assert all(fragment in str(error.value) for fragment in fragments), error.value


def test_a_teacher_that_fails_in_full_precision_is_named(monkeypatch):
    def fail(*_):
        raise RuntimeError('out of memory')

    monkeypatch.setattr('pisr_plugin.models.step.TeacherFeatures.__call__', fail)
    with pytest.raises(OptionsError, match='^network_t: PITeacher does not run: out of memory'):
        build_model(options())


def test_the_teacher_without_an_hourglass_links_by_its_pooled_feature(batch):
    model = build_model(options(network_t={'type': 'HRFSRCNN', 'upscale': 2, 'd': 8, 's': 4, 'm': 1}))
    assert model.links[0].teacher == 'pooled'
    assert step(model, batch)['l_distill_body'] != 0


def test_the_output_itself_is_distilled(batch):
    model = build_model(options(train={'distill_opt': {'soft': {'student': '.', 'loss': {'type': 'FeatureMAELoss'}}}}))
    student = deepcopy(model.net)
    expected = (student(batch['lq']) - model.teacher(batch['gt']).sr).abs().mean()
    assert step(model, batch)['l_distill_soft'] == pytest.approx(expected.item(), rel=1e-6)
