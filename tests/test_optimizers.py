"""Optimizers that are not torch's own have all that a run may have."""

import importlib.util
import logging
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from basicsr.models import build_model

from pisr_plugin.cli.list import main as list_
from pisr_plugin.cli.train import main as train
from pisr_plugin.data.datasets.patches import noise_batch
from pisr_plugin.inference import checkpoint
from pisr_plugin.models import optimizers, training_state
from pisr_plugin.models.optimizers import build_optimizer, is_usable
from pisr_plugin.utils.errors import CheckpointError, OptionsError
from tests.processes import TRAIN, outputs, start
from tests.test_compat import run
from tests.test_distributed import torchrun, weights
from tests.test_gan import gan
from tests.test_model import options, step

SOAP = {'type': 'SOAP', 'lr': 3e-3, 'weight_decay': 0, 'precondition_frequency': 2}
# An eigenbasis of directions that have no gradient is arbitrary: rounding decides about it, and runs that differ by
# rounding drift apart. Of 3x3 kernels' sides alone it is determined, so that such runs can be compared.
DETERMINED = {**SOAP, 'max_precondition_dim': 3}


def build(**train):
    torch.manual_seed(0)
    return build_model(options(train={'optim_g': SOAP, **train}))


def train_on(model, batch, iterations):
    for current_iter in iterations:
        model.update_learning_rate(current_iter, warmup_iter=3)
        step(model, batch, current_iter)
    return model.linked.state_dict()


def assert_equal(found, expected):
    assert all(torch.equal(found[key], expected[key]) for key in expected)


# -------------------------------------------------------------------------------------------------- a whole run


@pytest.mark.parametrize('optimizer', [SOAP, {'type': 'NorMuon', 'lr': 1e-3}, {'type': 'Lion', 'lr': 1e-4}])
def test_a_run_that_was_saved_and_resumed_ends_with_the_same_bits(batch, optimizer, tmp_path):
    for folder in ('models', 'training_states'):
        (tmp_path / folder).mkdir()
    path = {folder: str(tmp_path / folder) for folder in ('models', 'training_states')}

    def model(**more):
        train = {'optim_g': optimizer, 'ema_decay': 0.9, 'distill_opt': None}
        return build_model(options(name='x', path={**path, **more}, network_t=None, train=train))

    torch.manual_seed(0)
    unbroken = model()
    train_on(unbroken, batch, range(1, 6))
    unbroken.save(0, 5)
    expected = deepcopy(train_on(unbroken, batch, range(6, 12)))
    state = checkpoint.load_file_safely(tmp_path / 'training_states/5.state')
    resumed = model(pretrain_network_g=str(tmp_path / 'models/net_g_5.pth'), resume_state='yes')
    resumed.resume_training(state)
    assert_equal(train_on(resumed, batch, range(6, 12)), expected)


def test_a_resumed_optimizer_computes_as_the_options_say_now(batch, tmp_path):
    """A state that was saved without ``cuda_graph`` would make an optimizer that cannot be recorded."""
    folders = {key: str(tmp_path) for key in ('models', 'training_states')}
    model = build_model(options(name='x', path=folders))
    step(model, batch)
    state = training_state.collect(model, 0, 1)
    resumed = build_model(options(name='x', path=folders))
    for group in resumed.optimizer_g.param_groups:
        group['capturable'] = True
    training_state.restore(resumed, state, '1.state')
    assert all(group['capturable'] for group in resumed.optimizer_g.param_groups)
    assert resumed.optimizer_g.state_dict()['state'].keys() == model.optimizer_g.state_dict()['state'].keys() != {}


def test_a_state_of_another_optimizer_is_refused(batch, tmp_path):
    for folder in ('models', 'training_states'):
        (tmp_path / folder).mkdir()
    path = {folder: str(tmp_path / folder) for folder in ('models', 'training_states')}
    model = build_model(options(name='x', path=path))
    step(model, batch)
    model.save(0, 1)
    state = checkpoint.load_file_safely(tmp_path / 'training_states/1.state')
    other = build_model(options(name='x', path=path, train={'optim_g': SOAP}))
    with pytest.raises(
        CheckpointError, match=r"1\.state was saved with other optimizers \(found \['Adam'\]\). Expected \['SOAP'\]"
    ):
        other.resume_training(state)


def test_two_ranks_train_as_one_process_with_twice_the_batch(workspace):
    optimizer = {**DETERMINED, '_delete_': True}
    recipe = workspace.recipe('baseline', train={'total_iter': 4, 'optim_g': optimizer})
    common = ['-opt', recipe, '--force_yml', 'logger:save_checkpoint_freq=100']
    alone = start(TRAIN, *common, 'datasets:train:batch_size_per_gpu=8', 'name=alone', cwd=workspace.path)
    together = torchrun(*common, 'datasets:train:batch_size_per_gpu=4', 'name=together', cwd=workspace.path)
    told = outputs([alone, together], timeout=300)
    assert alone.returncode == together.returncode == 0, told
    one, two = (weights(Path('experiments') / name / 'student', 'net_g_latest.pth') for name in ('alone', 'together'))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'train, tolerance', [({'accumulate': 2}, 1e-3), ({'grad_clip': 1e6}, 0), ({'on_nan': 'skip'}, 0)], ids=str
)
def test_each_manner_moves_the_weights_alike(batch, train, tolerance):
    def moved(**more):
        torch.manual_seed(0)
        train = {'optim_g': DETERMINED, 'distill_opt': None, 'channels_last': False, **more}
        model = build_model(options(network_t=None, train=train))
        before = torch.cat([p.detach().flatten() for p in model.net.parameters()])
        train_on(model, batch, range(1, 6))
        return torch.cat([p.detach().flatten() for p in model.net.parameters()]) - before

    expected, found = moved(), moved(**train)
    assert expected.norm() > 0 and (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize('amp', ['bf16', 'fp16'])
def test_it_learns_in_lower_precision_as_well(batch, amp):
    plain, other = build(ema_decay=0.9), build(ema_decay=0.9, amp=amp, grad_clip=10.0)
    for model in (plain, other):
        train_on(model, batch, range(1, 30))
    one, two = (model.get_current_log()['l_pix'] for model in (plain, other))
    assert two == pytest.approx(one, rel=0.1)


def test_a_step_with_nan_leaves_weights_and_state(batch):
    model = build(on_nan='skip')
    train_on(model, batch, range(1, 4))
    before, state = deepcopy(model.linked.state_dict()), deepcopy(model.optimizer_g.state_dict())
    step(model, {**batch, 'gt': batch['gt'] * float('nan')}, 4)
    assert_equal(model.linked.state_dict(), before)
    after = model.optimizer_g.state_dict()
    assert after['param_groups'] == state['param_groups'] and model.nonfinite.item() == 1
    for number, entry in state['state'].items():
        assert all(torch.equal(a, b) for a, b in zip(entry['GG'], after['state'][number]['GG']) if len(a))


def test_a_discriminator_is_moved_by_it_too(batch):
    model = gan(train={'optim_d': SOAP, 'grad_clip': 1.0, 'ema_decay': 0.9})
    before = deepcopy(model.net_d.state_dict())
    train_on(model, batch, range(1, 5))
    assert type(model.optimizer_d).__name__ == 'SOAP'
    assert any(not torch.equal(p, before[name]) and p.isfinite().all() for name, p in model.net_d.named_parameters())


def test_vectors_have_no_preconditioner(batch):
    model = build()
    train_on(model, batch, range(1, 3))
    for p, state in model.optimizer_g.state.items():
        assert [len(matrix) for matrix in state['Q']] == ([0] if p.ndim == 1 else list(p.shape))


def test_dimensions_are_merged_where_more_than_one_is_left(batch):
    model = build(optim_g={**SOAP, 'merge_dims': True, 'max_precondition_dim': 39})
    train_on(model, batch, range(1, 5))
    sizes = {tuple(p.shape): [len(matrix) for matrix in s['Q']] for p, s in model.optimizer_g.state.items()}
    assert sizes[8, 1, 5, 5] == [8, 25] and sizes[4, 4, 3, 3] == [16, 9]
    assert sizes[4, 8, 1, 1] == [4, 8, 1, 1] and sizes[8,] == [0]


def test_muon_moves_vectors_by_adam():
    params = [torch.zeros(4, 2, 3, 3, requires_grad=True), torch.zeros(4, requires_grad=True)]
    groups = build_optimizer('NorMuon', params, 'train.optim_g', lr=1e-3).param_groups
    assert [(group['use_muon'], [p.ndim for p in group['params']]) for group in groups] == [(True, [4]), (False, [1])]


def test_a_step_of_it_is_not_recorded_and_one_line_says_so(batch, caplog, monkeypatch):
    caplog.set_level(logging.WARNING, 'basicsr')
    model = build(cuda_graph=True)
    small = noise_batch(model.opt, 1)
    caplog.clear()
    monkeypatch.setattr(model, 'device', torch.device('cuda'))
    model._setup_step(small)
    assert [record.message for record in caplog.records] == [
        'train.cuda_graph: train.optim_g.type SOAP cannot be recorded; steps are launched one by one.'
    ]
    assert model.step is model.training_step


STOCK = """
import pisr_plugin
from basicsr.train import train_pipeline

if __name__ == '__main__':
    train_pipeline('.')
"""


def test_a_stage_with_it_trains_and_resumes_under_stock_basicsr(workspace):
    """The options of a stage as a run saves them, with the keys that stock's command line needs."""
    recipe = workspace.recipe('baseline', train={'total_iter': 4, 'optim_g': {**SOAP, '_delete_': True}})
    assert train(['-opt', str(recipe)]) == 0
    stage = (Path('experiments') / 'run' / 'student' / 'options.yml').read_text()
    Path('stock.yml').write_text(stage)
    command = ['-opt', 'stock.yml', '--force_yml', 'name=stock', 'logger:use_tb_logger=false', 'dist_params={}']
    run(STOCK, workspace.path, *command)
    run(STOCK, workspace.path, *command, 'train:total_iter=6', 'train:scheduler:periods=[6]', '--auto_resume')
    saved = torch.load('experiments/stock/training_states/6.state', weights_only=True)
    assert saved['optimizer_types'] == ['SOAP'] and saved['optimizers'][0]['param_groups'][0]['step'] == 6


# -------------------------------------------------------------------------------------------------- names


def test_the_list_holds_what_can_be_used(capsys):
    assert list_(['optimizers']) == 0
    names = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert names['SOAP'] == 'pytorch_optimizer' and names['Adam'] == names['AdamW'] == 'torch'
    assert not {'LBFGS', 'SparseAdam', 'SAM', 'SophiaH', 'ScheduleFreeAdamW', 'Optimizer'} & names.keys()
    assert len(names) > 100
    assert list_(['optimizers', 'SOAP']) == 0
    told = capsys.readouterr().out
    assert 'precondition_frequency' in told and 'params' not in told


@pytest.mark.parametrize(
    'option, message',
    [
        ({'type': 'soap'}, r"train\.optim_g\.type: unknown 'soap'. Did you mean 'SOAP'?"),
        ({'type': 'SOAP', 'precondition_freq': 5}, r"train\.optim_g\.precondition_freq: SOAP has .*'precondition_freq"),
        ({'type': 'SOAP', 'betas': [0.9, 2]}, r'train\.optim_g: .*2'),
        ({'type': 'SophiaH'}, r'train\.optim_g\.type: SophiaH cannot be used here: .*grad'),
        ({'type': 'LBFGS'}, r'train\.optim_g\.type: LBFGS cannot be used here: .*closure'),
        ({'type': 'AdaShift'}, r'train\.optim_g\.type: AdaShift cannot be used here: its state holds more'),
        ({'type': 'AdamP'}, r'train\.optim_g\.type: AdamP cannot be used here: .*train.channels_last: false helps'),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_one_message(option, message):
    with pytest.raises(OptionsError, match=f'^{message}') as raised:
        build(optim_g={'lr': 1e-3, **option})
    assert '\n' not in str(raised.value)


def test_a_name_and_an_argument_are_checked_with_the_recipe(workspace, capsys):
    recipe = str(workspace.recipe('baseline'))
    assert train(['-opt', recipe, '--force_yml', 'train:optim_g:type=SOAPP', 'train:optim_g:momentums=1']) == 2
    assert "train.optim_g.type: unknown 'SOAPP'. Did you mean 'SOAP'?" in capsys.readouterr().err
    assert train(['-opt', recipe, '--force_yml', 'train:optim_g:type=SOAP', 'train:optim_g:merge_dim=true']) == 2
    assert "merge_dim: SOAP has no such argument. Did you mean 'merge_dims'?" in capsys.readouterr().err


def test_without_the_library_the_message_says_how_to_install_it(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        optimizers.importlib.util, 'find_spec', lambda name: None if name == 'pytorch_optimizer' else find_spec(name)
    )
    with pytest.raises(OptionsError, match=r"unknown 'SOAP'.* pip install 'pisr-plugin\[optimizers\]'"):
        build()
    build(optim_g={'type': 'Adam', 'lr': 1e-3})


def test_the_library_is_imported_for_its_own_names_alone(tmp_path):
    code = (
        'import sys, torch; from pisr_plugin.models.optimizers import find_optimizer;'
        'find_optimizer("Adam", "x"); assert "pytorch_optimizer" not in sys.modules;'
        'find_optimizer("SOAP", "x"); assert "pytorch_optimizer" in sys.modules'
    )
    run(code, tmp_path)


def test_the_trial_leaves_parameters_and_random_numbers_as_they_were():
    params = [torch.ones(3, 3, requires_grad=True)]
    before = torch.get_rng_state()
    build_optimizer('SOAP', params, 'train.optim_g', lr=1e-3)
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(params[0], torch.ones(3, 3))
    assert params[0].grad is None and is_usable(torch.optim.SGD) and not is_usable(torch.optim.LBFGS)
