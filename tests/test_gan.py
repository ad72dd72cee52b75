"""A stage with a discriminator makes BasicSR's GAN step, whatever the manner; its files and its mistakes."""

import logging
from copy import deepcopy

import pytest
import torch
from basicsr.archs import build_network
from basicsr.archs.discriminator_arch import UNetDiscriminatorSN
from basicsr.models import build_model
from torch import nn
from torch.nn import functional as F

from pisr_plugin.config.stages import unroll
from pisr_plugin.inference import checkpoint
from pisr_plugin.losses.vid_loss import VIDLaplaceLoss
from pisr_plugin.utils.errors import CheckpointError, OptionsError
from tests import small_vgg
from tests.test_model import BODY, FSRCNN, options, step
from tests.test_step import Operators

UNET = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 1, 'num_feat': 4}
PLAIN = {'type': 'FSRCNN', 'd': 8, 's': 4, 'm': 1, 'upscale': 2}  # judges as well as any: a prediction for each pixel
GAN = {
    'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.1},
    'optim_d': {'type': 'Adam', 'lr': 2e-3, 'betas': [0.9, 0.99]},
}
PERCEPTUAL = {'type': 'PerceptualLoss', 'layer_weights': {'conv1_2': 0.1, 'conv3_4': 1.0}, 'style_weight': 2.0}


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    small_vgg.install(monkeypatch)


def gan(discriminator=UNET, **changes):
    """A GAN stage without a teacher unless ``changes`` name one; the same weights in every call."""
    torch.manual_seed(0)
    train = {'distill_opt': None, **GAN, **changes.pop('train', {})}
    return build_model(options(**{'network_t': None, 'network_d': discriminator, **changes, 'train': train}))


def same_weights(one, other, tolerance=1e-6):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(
            one[key], other[key], rtol=1e-4, atol=tolerance, msg=lambda text, key=key: key + text
        )


# -------------------------------------------------------------------------------------------------- the step


SCHEDULES = [{}, {'net_d_iters': 2}, {'net_d_init_iters': 1}, {'net_d_iters': 2, 'net_d_init_iters': 2}]


@pytest.mark.parametrize('schedule', SCHEDULES, ids=str)
def test_three_steps_are_those_of_the_formulas(batch, schedule):
    teacher = {'type': 'PITeacher', 'upscale': 2, 'decoder': FSRCNN}
    model = gan(network_t=teacher, train={'distill_opt': {'body': BODY}, **schedule})
    g, d, t, e = (deepcopy(net) for net in (model.net, model.net_d, model.teacher, model.estimators['body']))
    optimizer_g = torch.optim.Adam([*g.parameters(), *e.parameters()], lr=1e-3)
    optimizer_d = torch.optim.Adam(d.parameters(), lr=2e-3, betas=(0.9, 0.99))
    lq, gt = batch['lq'], batch['gt']
    for current_iter in (1, 2, 3):
        log = step(model, batch, current_iter)
        feature = g.expanding(g.mapping(g.shrinking(g.feature_extraction(lq))))
        sr = g.last_layer(feature)
        expected = {}
        moves = current_iter % schedule.get('net_d_iters', 1) == 0
        if moves and current_iter > schedule.get('net_d_init_iters', 0):
            small = t.encoder(gt).detach()
            target = t.decoder.expanding(t.decoder.mapping(t.decoder.shrinking(t.decoder.feature_extraction(small))))
            expected['l_pix'] = (sr - gt).abs().mean()
            expected['l_distill_body'] = 0.5 * VIDLaplaceLoss()(e(feature), target)
            expected['l_gan'] = 0.1 * F.softplus(-d(sr)).mean()
            optimizer_g.zero_grad()
            sum(expected.values()).backward()
            optimizer_g.step()
        optimizer_d.zero_grad()
        real = d(gt)
        expected['l_d_real'], expected['out_d_real'] = F.softplus(-real).mean(), real.mean()
        expected['l_d_real'].backward()
        fake = d(sr.detach())
        expected['l_d_fake'], expected['out_d_fake'] = F.softplus(fake).mean(), fake.mean()
        expected['l_d_fake'].backward()
        optimizer_d.step()
        assert log == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-4, abs=1e-5)
    same_weights(model.net, g)
    same_weights(model.net_d, d)
    same_weights(model.estimators['body'], e)


@pytest.mark.parametrize('schedule', SCHEDULES, ids=str)
def test_three_steps_are_those_of_basicsr(batch, schedule):
    train = {'perceptual_opt': PERCEPTUAL, 'ema_decay': 0.9, **schedule}
    ours, theirs = gan(train=train), gan(train=train, model_type='SRGANModel')
    theirs.net_g.load_state_dict(ours.net.state_dict())
    theirs.net_g_ema.load_state_dict(ours.net.state_dict())
    theirs.net_d.load_state_dict(ours.net_d.state_dict())
    for current_iter in (1, 2, 3):
        log, theirs_log = step(ours, batch, current_iter), step(theirs, batch, current_iter)
        names = {name: name.replace('l_g_', 'l_') for name in theirs_log}
        assert log == pytest.approx({names[name]: value for name, value in theirs_log.items()}, rel=1e-3, abs=1e-5)
    assert {'l_percep', 'l_style', 'l_gan'} <= log.keys() or schedule
    same_weights(ours.net, theirs.net_g)
    same_weights(ours.net_d, theirs.net_d)
    for name, p in theirs.net_g_ema.named_parameters():
        torch.testing.assert_close(dict(ours.ema.net.named_parameters())[name], p, rtol=1e-4, atol=1e-6)


def test_the_schedule_moves_both_optimisers(batch):
    model = gan(train={'scheduler': {'type': 'MultiStepLR', 'milestones': [2], 'gamma': 0.5}})
    for current_iter in (1, 2, 3):
        model.update_learning_rate(current_iter)
        step(model, batch, current_iter)
    assert [one.param_groups[0]['lr'] for one in model.optimizers] == [5e-4, 1e-3]


def test_a_teacher_is_trained_against_a_discriminator_too(batch):
    teacher = {'type': 'PITeacher', 'upscale': 2, 'decoder': FSRCNN}
    model = gan(network_g=None, network_t=teacher)
    assert model.label == 't' and {'l_pix', 'l_gan', 'l_d_fake'} <= step(model, batch).keys()


def test_a_step_reads_nothing_back(batch):
    model = gan(train={'perceptual_opt': PERCEPTUAL, 'ema_decay': 0.9, 'net_d_iters': 2})
    for current_iter in (1, 2):  # one that moves the discriminator alone, one that moves both
        step(model, batch, current_iter)
        model.feed_data(batch)
        with Operators() as operators:
            model.optimize_parameters(current_iter)
        assert operators.names and 'aten::_local_scalar_dense' not in operators.names


def test_the_loss_of_the_trained_network_gives_the_discriminator_no_gradient(batch):
    model = gan()
    fake = model.net(batch['lq'])
    model.gan_step.loss(fake).backward()
    assert all(p.grad is None and p.requires_grad for p in model.net_d.parameters())
    assert all(p.grad is not None for p in model.net.parameters())


def test_in_an_iteration_of_the_discriminator_alone_nothing_else_moves(batch):
    model = gan(train={'net_d_init_iters': 1})
    before = [deepcopy(net.state_dict()) for net in (model.net, model.net_d)]
    assert set(step(model, batch, 1)) == {'l_d_real', 'l_d_fake', 'out_d_real', 'out_d_fake'}
    assert all(torch.equal(value, before[0][key]) for key, value in model.net.state_dict().items())
    assert not any(torch.equal(p, before[1][name]) for name, p in model.net_d.named_parameters())
    assert all(p.grad is None for p in model.net.parameters()) and all(
        p.requires_grad for p in model.net_d.parameters()
    )


# -------------------------------------------------------------------------------------------------- manners


def gradients(model):
    return [torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (model.net, model.net_d)]


@pytest.mark.parametrize(
    'train, tolerance',
    [
        ({'channels_last': True}, 1e-4),
        ({'accumulate': 2}, 1e-4),
        ({'grad_clip': 1e6}, 0),
        ({'on_nan': 'skip'}, 0),
        ({'amp': 'bf16'}, 5e-2),
        ({'compile': True}, 1e-4),
    ],
    ids=str,
)
def test_each_manner_computes_the_same(batch, train, tolerance):
    train = {'channels_last': False, **train}
    plain, other = gan(PLAIN, train={'channels_last': False}), gan(PLAIN, train=train)
    found = step(other, batch)
    assert found.pop('skipped', 0) == 0
    assert found == pytest.approx(step(plain, batch), rel=max(tolerance, 1e-6), abs=tolerance)
    for expected, found in zip(gradients(plain), gradients(other)):
        assert expected.norm() > 0 and (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize('amp', ['bf16', 'fp16'])
def test_spectral_norm_runs_in_lower_precision(batch, amp):
    plain, model = gan(), gan(train={'amp': amp})
    assert step(model, batch) == pytest.approx(step(plain, batch), rel=5e-2, abs=5e-3)
    assert [one.scaler is not None for one in model.optimizer_steps] == [amp == 'fp16'] * 2
    assert all(p.dtype == torch.float32 for p in model.net_d.parameters())


def test_gradients_of_each_network_are_clipped_by_themselves(batch):
    model = gan(train={'grad_clip': 1e-3})
    step(model, batch)
    assert [gradient.norm().item() for gradient in gradients(model)] == pytest.approx([1e-3, 1e-3], rel=1e-3)


@pytest.mark.parametrize('on_nan', ['skip', 'stop'])
def test_nan_reaches_neither_network_unseen(batch, on_nan):
    model = gan(PLAIN, train={'on_nan': on_nan})
    step(model, batch)
    before = [deepcopy(net.state_dict()) for net in (model.net, model.net_d)]
    step(model, {**batch, 'lq': batch['lq'] * float('nan')}, 2)
    if on_nan == 'stop':
        assert model.nonfinite.item() > 0
        return
    assert model.nonfinite.item() == model.get_current_log()['skipped'] == 2  # the step of each network
    for net, weights in zip((model.net, model.net_d), before):
        assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())


@pytest.mark.gpu
def test_a_cuda_graph_falls_back_with_one_line(batch, caplog):
    caplog.set_level(logging.WARNING, 'basicsr')
    step(gan(num_gpu=1, train={'cuda_graph': True}), batch)
    assert 'does not record the step of a discriminator' in caplog.text


# -------------------------------------------------------------------------------------------------- files


def test_the_discriminator_is_saved_plain_and_read_again(batch, tmp_path):
    for folder in ('models', 'training_states'):
        (tmp_path / folder).mkdir()
    path = {folder: str(tmp_path / folder) for folder in ('models', 'training_states')}
    model = gan(name='x', path=path, train={'amp': 'fp16', 'on_nan': 'skip'})
    step(model, batch)
    model.save(0, 1)
    stock = UNetDiscriminatorSN(1, 4)
    stock.load_state_dict(checkpoint.load_file_safely(tmp_path / 'models/net_d_1.pth')['params'], strict=True)
    same_weights(stock, model.net_d, 0)
    state = checkpoint.load_file_safely(tmp_path / 'training_states/1.state')
    assert state['networks'] == ['net_g_1.pth', 'net_d_1.pth'] and {'scaler', 'scaler_d'} <= state.keys()
    assert len(state['optimizers']) == len(state['schedulers']) == 2
    again = gan(path={'pretrain_network_d': str(tmp_path / 'models/net_d_1.pth')})
    same_weights(again.net_d, model.net_d, 0)


def stages(**changes):
    common = {'name': 'r', 'network_g': {'type': 'N'}, 'train': {'ema_decay': 0.9}, 'path': {}}
    last = {'path': {'pretrain_network_g': 'stage:gan', 'pretrain_network_d': 'stage:gan'}}
    return unroll({**common, 'stages': {'gan': changes, 'last': last}})


def test_a_later_stage_goes_on_with_the_discriminator_of_an_earlier_one():
    gan_stage, last = stages(network_d={'type': 'D'})
    path = last.options['path']
    assert path['pretrain_network_d'] == str(gan_stage.folder / 'models/net_d_latest.pth')
    assert path['pretrain_network_g'] == str(gan_stage.folder / 'models/net_g_latest.pth')
    assert path['param_key_g'] == 'params_ema' and 'param_key_d' not in path


def test_a_discriminator_that_no_stage_trained_is_refused():
    with pytest.raises(OptionsError, match=r'stages.last.path.pretrain_network_d: stage gan trains no network_d'):
        stages()


# -------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'network_d': None}, 'network_d: missing. A GAN needs network_d, train.gan_opt, train.optim_d together'),
        ({'train': {'gan_opt': None}}, 'train.gan_opt: missing. A GAN needs'),
        ({'train': {'gan_opt': None, 'optim_d': None}}, 'train.gan_opt and train.optim_d: missing'),
        ({'network_d': {**UNET, 'num_feats': 4}}, "network_d: UNetDiscriminatorSN cannot be built: .*'num_feats'"),
        ({'network_d': {**UNET, 'num_in_ch': 3}}, r'network_d: UNetDiscriminatorSN .* of shape \(1, 1, 16, 16\)'),
        (
            {'network_d': {'type': 'VGGStyleDiscriminator', 'num_in_ch': 1, 'num_feat': 4}},
            'network_d: VGGStyleDiscriminator .* cannot judge .* (128|identical)',
        ),
        ({'train': {'gan_opt': {'type': 'GANLoss', 'gan_type': 'van'}}}, 'train.gan_opt: GANLoss cannot .* van is not'),
        ({'train': {'gan_opt': {'type': 'L1Loss', 'reduction': 'none'}}}, 'network_d|train.gan_opt'),
        (
            {'train': {'optim_d': {'type': 'RMSprp', 'lr': 1}}},
            "train.optim_d.type: unknown 'RMSprp'. Did you mean 'RMSprop'",
        ),
        ({'train': {'optim_d': {'type': 'Adam', 'lr': 1, 'momentum': 1}}}, 'train.optim_d.momentum: Adam has no such'),
        ({'train': {'perceptual_opt': {**PERCEPTUAL, 'criterion': 'l3'}}}, 'train.perceptual_opt: .* l3 criterion'),
        ({'train': {'perceptual_opt': {**PERCEPTUAL, 'vgg_type': 'vgg99'}}}, "train.perceptual_opt: .*'vgg99'"),
        (
            {'train': {'perceptual_opt': {**PERCEPTUAL, 'layer_weights': {'conv9_9': 1}}}},
            "train.perceptual_opt: PerceptualLoss cannot be built: 'conv9_9' is not in list",
        ),
    ],
)
def test_what_does_not_fit_is_refused_when_built(changes, message):
    with pytest.raises(OptionsError, match=f'^{message}'):
        gan(**({'discriminator': changes.pop('network_d')} if 'network_d' in changes else {}), **changes)


def test_weights_of_vgg_that_cannot_be_had_are_told_in_one_message(monkeypatch):
    def offline(pretrained):
        raise OSError('<urlopen error no route>')

    monkeypatch.setattr('torchvision.models.vgg.vgg19', offline)
    with pytest.raises(CheckpointError) as raised:
        gan(train={'perceptual_opt': PERCEPTUAL})
    message = str(raised.value)
    assert message.startswith('train.perceptual_opt: ') and '<urlopen error no route>' in message
    assert 'experiments/pretrained_models/vgg19-dcbb9e9d.pth' in message
    assert 'https://download.pytorch.org/models/vgg19-dcbb9e9d.pth' in message


def test_a_damaged_file_of_vgg_is_told_in_one_message(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'experiments/pretrained_models').mkdir(parents=True)
    (tmp_path / 'experiments/pretrained_models/vgg19-dcbb9e9d.pth').write_bytes(b'half')
    with pytest.raises(CheckpointError, match="train.perceptual_opt: VGG19's weights cannot be loaded"):
        gan(train={'perceptual_opt': PERCEPTUAL})


def test_a_perceptual_loss_alone_is_enough_to_learn_from(batch):
    torch.manual_seed(0)
    train = {'distill_opt': None, 'pixel_opt': None, 'perceptual_opt': PERCEPTUAL}
    model = build_model(options(network_t=None, train=train))
    start = deepcopy(model.net)
    log = step(model, batch)
    loss = model.cri_perceptual(start(batch['lq']), batch['gt'])
    assert log == pytest.approx({'l_percep': loss[0].item(), 'l_style': loss[1].item()}, rel=1e-5)
    assert isinstance(build_network(UNET), nn.Module) and model.net_d is None
