"""How strongly each loss term pulls: figures are those of the step itself, and looking changes nothing."""

import re
from copy import deepcopy

import pytest
import torch
from basicsr.models import build_model

from pisr_plugin.cli.gradients import main
from pisr_plugin.cli.train import main as train
from pisr_plugin.diagnostics.gradients import WEAK, gradient_stats, weak_links
from tests.test_gan import GAN, UNET
from tests.test_model import BODY, options


def grown(weight):
    return {**BODY, 'loss': {**BODY['loss'], 'loss_weight': weight}}


def test_pulls_are_values_and_gradients_of_the_terms(batch):
    model = build_model(options())
    net = deepcopy(model.net)
    loss = (net(batch['lq']) - batch['gt']).abs().mean()
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
    found = gradient_stats(model, [batch], 1)
    assert list(found) == ['l_pix', 'l_distill_body']
    assert found['l_pix'].value == pytest.approx(loss.item(), rel=1e-5)
    assert found['l_pix'].norm == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert found['l_pix'].cosine == pytest.approx(1)
    assert 0 < found['l_distill_body'].norm and -1 <= found['l_distill_body'].cosine <= 1


def test_terms_together_are_the_gradient_of_a_step(batch):
    model = build_model(options())
    found = gradient_stats(model, [batch], 1)
    pix, distill = found['l_pix'], found['l_distill_body']
    model.feed_data(batch)
    model.optimize_parameters(1)
    whole = torch.cat([p.grad.flatten() for p in model.net.parameters()]).norm().item()
    expected = (pix.norm**2 + distill.norm**2 + 2 * pix.norm * distill.norm * distill.cosine) ** 0.5
    assert whole == pytest.approx(expected, rel=1e-4)


def test_a_weight_scales_its_own_term_alone(batch):
    torch.manual_seed(0)
    small = gradient_stats(build_model(options(train={'distill_opt': {'body': grown(0.5)}})), [batch], 1)
    torch.manual_seed(0)
    large = gradient_stats(build_model(options(train={'distill_opt': {'body': grown(5.0)}})), [batch], 1)
    assert large['l_pix'] == pytest.approx(small['l_pix'])
    assert large['l_distill_body'].norm == pytest.approx(10 * small['l_distill_body'].norm, rel=1e-5)
    assert large['l_distill_body'].cosine == pytest.approx(small['l_distill_body'].cosine, abs=1e-5)


def test_a_link_that_does_not_count_yet_does_not_pull(batch):
    late = {**BODY, 'loss': {**BODY['loss'], 'from_iter': 10}}
    model = build_model(options(train={'distill_opt': {'body': late}}))
    assert gradient_stats(model, [batch], 1)['l_distill_body'].norm == 0
    assert gradient_stats(model, [batch], 10)['l_distill_body'].norm > 0


def test_looking_changes_nothing(batch):
    model = build_model(options())
    before, random = deepcopy(model.linked.state_dict()), torch.get_rng_state()
    gradient_stats(model, [batch, batch], 1)
    assert all(torch.equal(value, before[key]) for key, value in model.linked.state_dict().items())
    assert all(p.grad is None for p in model.linked.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_looking_leaves_the_spectral_norms_of_a_discriminator(batch):
    model = build_model(options(network_d=UNET, train=GAN))
    before = deepcopy(model.net_d.state_dict())
    assert 'l_gan' in gradient_stats(model, [batch], 1)
    assert all(torch.equal(value, before[key]) for key, value in model.net_d.state_dict().items())


@pytest.mark.parametrize(
    'loss, weak',
    [({'loss_weight': 1e-9}, True), ({'loss_weight': 1.0}, False), ({'loss_weight': 1e-9, 'from_iter': 2}, False)],
)
def test_a_link_with_hardly_any_gradient_is_weak(batch, loss, weak):
    body = {**BODY, 'loss': {**BODY['loss'], **loss}}
    model = build_model(options(train={'distill_opt': {'body': body}}))
    found = weak_links(model, batch, 1)
    assert list(found) == (['body'] if weak else [])
    assert all(0 < share < WEAK for share in found.values())


def test_float16_hides_no_gradient(batch):
    """Without loss scaling such small ones would be 0."""
    body = grown(1e-7)
    torch.manual_seed(0)
    exact = weak_links(build_model(options(train={'distill_opt': {'body': body}})), batch, 1)
    torch.manual_seed(0)
    half = weak_links(build_model(options(train={'distill_opt': {'body': body}, 'amp': 'fp16'})), batch, 1)
    assert half['body'] == pytest.approx(exact['body'], rel=0.05) and exact['body'] > 0


def test_a_run_warns_once_of_a_weak_link_and_trains_the_same(workspace, monkeypatch, capsys):
    def run(name, *flags):
        recipe = workspace.recipe(name=name)
        assert train(['-opt', str(recipe), *flags]) == 0
        logs = workspace.path.glob(f'experiments/{name}/student/*.log')
        weights = torch.load(workspace.path / f'experiments/{name}/student/models/net_g_latest.pth')['params']
        # Two runs that start within one second write one log.
        return re.findall('Share of the gradient.*', '\n'.join(log.read_text() for log in logs)), weights

    (line,), weights = run('told')
    assert line.startswith('Share of the gradient below 0.001 in the first iteration: link body ')
    capsys.readouterr()
    assert main(re.search('pisr-gradients (.*) shows', line)[1].split()) == 0
    assert 'l_distill_body' in capsys.readouterr().out

    (workspace.path / 'experiments/told/student/result.json').unlink()
    for file in workspace.path.glob('experiments/told/student/*/*4.*'):
        file.unlink()
    assert run('told', '--auto_resume')[0] == [line]

    monkeypatch.setattr('pisr_plugin.engine.loop.weak_links', lambda *_: {})
    untold, same = run('untold')
    assert untold == [] and all(torch.equal(value, same[key]) for key, value in weights.items())


def test_beginning_and_end_of_a_stage(workspace, capsys):
    flags = ['-opt', str(workspace.recipe()), '--batches', '2']
    assert main(flags) == 2
    assert 'Train that stage first' in capsys.readouterr().err
    assert main([*flags, '--stage', 'teacher']) == 0
    printed = capsys.readouterr().out
    assert 'l_imitation' in printed and 'at the beginning' in printed and 'at the end' not in printed
    assert not list(workspace.path.glob('experiments'))
    assert train(flags[:2]) == 0
    capsys.readouterr()
    assert main(flags) == 0
    printed = capsys.readouterr().out
    beginning, end = (part.splitlines()[2].split('|') for part in printed.split('at the ')[1:])
    assert beginning[1].strip() == end[1].strip() == 'l_pix'
    assert float(end[2]) != float(beginning[2])


def test_mistakes(workspace, capsys):
    recipe = workspace.recipe()
    assert main(['-opt', str(recipe), '--batches', '0']) == 2
    assert '--batches 0: out of range. Expected at least 1' in capsys.readouterr().err
    assert main(['-opt', str(recipe), '--stage', 'studnet']) == 2
    assert '--stage studnet' in capsys.readouterr().err
