"""How a step is computed: what it launches, and that each manner computes the same."""

import logging
from copy import deepcopy

import pytest
import torch
from basicsr.models import build_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pisr_plugin.inference import checkpoint
from pisr_plugin.models.optim import OptimizerStep
from pisr_plugin.models.optimizers import runs_fused
from pisr_plugin.models.step import Compiled, StepOptions
from pisr_plugin.utils.errors import OptionsError
from tests.test_model import BODY, options, step


class Operators(TorchDispatchMode):
    """Notes the operators that run, views left out."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and func._schema.name not in ('aten::_unsafe_view', 'aten::detach'):
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def build(**train):
    torch.manual_seed(0)
    return build_model(options(train=train))


def gradients(model):
    return [p.grad.clone() for p in model.linked.parameters()]


def full_size(**train):
    """PISR's own FSRCNN x2 step on one patch of 192."""
    fsrcnn = {'type': 'FSRCNN', 'num_in_ch': 1, 'num_out_ch': 1, 'upscale': 2}
    model = build_model(
        options(network_g=fsrcnn, network_t={'type': 'PITeacher', 'upscale': 2, 'decoder': fsrcnn}, train=train)
    )
    return model, {'lq': torch.rand(1, 1, 96, 96), 'gt': torch.rand(1, 1, 192, 192)}


# ------------------------------------------------------------------------------------------ what a step launches


def test_a_step_reads_nothing_back_and_launches_few_operators(batch):
    model = build(ema_decay=0.99)
    step(model, batch)
    with Operators() as operators:
        model.feed_data(batch)
        model.optimize_parameters(2)
        model.update_learning_rate(2)
    assert 'aten::_local_scalar_dense' not in operators.names
    assert len(operators.names) <= 130, sorted(operators.names)


def test_a_step_costs_half_the_flops_of_one_with_the_teachers_graph():
    model, patch = full_size()
    step(model, patch)
    model.feed_data(patch)
    with FlopCounterMode(display=False) as flops:
        model.optimize_parameters(2)
    assert flops.get_total_flops() * 16 <= 54e9  # the authors' loop: 108e9 at batch 16


def test_the_teacher_makes_no_graph(batch):
    model = build()
    model.feed_data(batch)
    features = model.training_step.teacher_features(model.batch)
    assert features and all(value.grad_fn is None and not value.requires_grad for value in features.values())


def test_the_teacher_stops_at_the_last_of_several_taps(batch):
    links = {'early': {'student': 'mapping', 'loss': {'type': 'FeatureMAELoss'}}, 'body': BODY}
    model = build(distill_opt=links)
    ran = []
    for name, module in model.teacher.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    step(model, batch)
    assert ran[-1] == 'decoder.expanding.0.1'


# ------------------------------------------------------------------------------------------ each manner, same result


def compare(batch, tolerance, loss_tolerance=None, **train):
    """One step from equal weights, plain and in another manner; gradients are compared by their relative L2 error."""
    plain, other = build(channels_last=False), build(**{'channels_last': False, **train})
    expected, found = step(plain, batch), step(other, batch)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=loss_tolerance or tolerance), name
    error = torch.cat([(a - b).flatten() for a, b in zip(gradients(plain), gradients(other))]).norm()
    assert error / torch.cat([g.flatten() for g in gradients(plain)]).norm() <= tolerance
    return plain, other


@pytest.mark.parametrize(
    'train, tolerance',
    [
        ({'channels_last': True}, 1e-5),
        ({'accumulate': 2}, 1e-5),
        ({'grad_clip': 1e6}, 0),
        ({'on_nan': 'skip'}, 0),
        ({'amp': 'bf16'}, 2e-2),
        ({'amp_teacher': 'bf16'}, 2e-2),
        ({'amp': 'bf16', 'amp_teacher': 'bf16', 'channels_last': True}, 2e-2),
        ({'optim_g': {'type': 'Adam', 'lr': 1e-3, 'fused': False, 'foreach': False}}, 0),
    ],
    ids=str,
)
def test_losses_and_gradients_agree(batch, train, tolerance):
    plain, other = compare(batch, tolerance, **train)
    for a, b in zip(plain.linked.parameters(), other.linked.parameters()):
        assert b.dtype == torch.float32
        torch.testing.assert_close(b, a, atol=1e-3 if 'amp' in str(train) else 1e-6, rtol=1e-5)


def test_only_a_compiled_step_is_compiled(batch):
    for compiles in (False, True):
        step = build_model(options(train={'compile': compiles})).training_step
        assert (step._losses is step.training_losses) != compiles
        assert (step._features is step.teacher_features) != compiles


def test_a_compiled_step_agrees(batch, caplog):
    caplog.set_level(logging.WARNING, 'basicsr')
    compare(batch, 1e-5, compile=True)
    assert not caplog.records


def test_a_compiled_teacher_computes_nothing_behind_the_last_tap(batch):
    model = build()
    step(model, batch)
    graphs = []

    def note(graph, _):
        graph.graph.eliminate_dead_code()
        graphs.append(str(graph.graph))
        return graph.forward

    features = torch.compile(model.training_step.teacher_features, backend=note, fullgraph=True)(model.batch)
    expected = model.training_step.teacher_features(model.batch)
    assert features.keys() == expected.keys()
    assert all(torch.equal(features[tap], value) for tap, value in expected.items())
    layers = graphs[0]
    assert len(graphs) == 1 and 'conv2d' in layers and 'conv_transpose2d' not in layers


def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch):
    def refuse(_):
        def run(*_):
            raise torch._dynamo.exc.TorchDynamoException('no compiler')

        return run

    monkeypatch.setattr(torch, 'compile', refuse)
    told = []
    double = Compiled(lambda value: 2 * value, told.append)
    assert double(2) == 4 and double(3) == 6
    assert told == ['train.compile: this network cannot be compiled here, so it runs as it is: no compiler']


def test_fp16_scales_the_loss_and_undoes_it(batch):
    model = build(amp='fp16', grad_clip=100.0)
    plain = build()
    assert step(model, batch)['l_pix'] == pytest.approx(step(plain, batch)['l_pix'], rel=1e-2)
    assert model.optimizer_steps[0].scaler.get_scale() > 1
    for ours, expected in zip(gradients(model), gradients(plain)):
        assert (ours - expected).norm() <= 0.05 * expected.norm() + 1e-6


def test_gradients_are_clipped_together(batch):
    model = build(grad_clip=1e-3)
    step(model, batch)
    norm = torch.cat([g.flatten() for g in gradients(model)]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize('optimizer', ['Adam', 'SGD', 'RMSprop'])
def test_a_step_with_nan_is_skipped_and_counted(batch, optimizer):
    model = build(on_nan='skip', ema_decay=0.9, optim_g={'type': optimizer, 'lr': 1e-3})
    step(model, batch)
    weights, state = deepcopy(model.linked.state_dict()), deepcopy(model.optimizer_g.state_dict()['state'])
    step(model, {**batch, 'gt': batch['gt'] * float('nan')}, 2)
    assert all(torch.equal(value, weights[key]) for key, value in model.linked.state_dict().items())
    for number, entry in model.optimizer_g.state_dict()['state'].items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(state[number][k])) for k, v in entry.items())
    assert model.nonfinite.item() == model.get_current_log()['skipped'] == 1
    step(model, batch, 3)
    assert not torch.equal(model.net.state_dict()['shrinking.0.0.weight'], weights['net.shrinking.0.0.weight'])
    assert model.nonfinite.item() == 1


def test_a_nan_loss_is_counted_without_being_read(batch):
    model = build()
    step(model, batch)
    assert model.nonfinite.item() == 0
    step(model, {**batch, 'gt': batch['gt'] * float('inf')}, 2)
    assert model.nonfinite.item() == 1


def test_saved_weights_have_the_usual_layout(batch, tmp_path):
    opt = options(path={'models': str(tmp_path)})
    model = build_model(opt)
    assert not model.net.mapping[0][0].weight.is_contiguous()
    model.save_network(model.net, 'net_g', 1)
    saved = torch.load(tmp_path / 'net_g_1.pth', weights_only=True)['params']
    assert all(value.is_contiguous() for value in saved.values())


# ------------------------------------------------------------------------------------------ what cannot be had


def test_accumulation_must_divide_the_batch():
    data = {'train': {'color': 'y', 'gt_size': 16, 'batch_size_per_gpu': 5}}
    with pytest.raises(OptionsError, match='train.accumulate: 2 does not divide .*batch_size_per_gpu, 5'):
        build_model(options(datasets=data, train={'accumulate': 2}))


@pytest.mark.skipif(torch.cuda.is_available(), reason='for a machine without CUDA')
def test_a_cuda_graph_falls_back_with_one_line(batch, caplog):
    caplog.set_level(logging.WARNING, 'basicsr')
    model = build(cuda_graph=True)
    lines = {record.message for record in caplog.records if 'cuda_graph' in record.message}
    assert lines == {'train.cuda_graph: needs a CUDA device; steps are launched one by one.'}
    step(model, batch)


def test_a_gpu_records_steps_by_default_unless_they_run_code_of_others(batch, caplog):
    caplog.set_level(logging.WARNING, 'basicsr')

    class Theirs(torch.nn.Identity):
        pass

    Theirs.__module__ = 'their_package.archs'
    model = build()
    assert model.step is model.training_step and not caplog.records  # a CPU, where it was not asked for
    model.device = torch.device('cuda')
    assert model._no_graph() is None
    model.linked.add_module('theirs', Theirs())
    assert 'their_package' in model._no_graph()
    model.step_options = StepOptions(cuda_graph=True)
    assert model._no_graph() is None
    model.step_options = StepOptions(cuda_graph=False)
    assert model._no_graph() == 'is off'


def test_ranks_record_steps_only_when_asked_and_over_nccl(batch, monkeypatch):
    model = build()
    model.device, model.opt['dist'] = torch.device('cuda'), True
    backends = iter(['cpu:gloo,cuda:gloo', 'cpu:gloo,cuda:nccl'])
    monkeypatch.setattr(torch.distributed.distributed_c10d, 'get_backend_config', lambda: next(backends))
    assert model._no_graph() == 'is for one process by default'
    model.step_options = StepOptions(cuda_graph=True)
    assert 'NCCL' in model._no_graph()
    assert model._no_graph() is None


@pytest.mark.gpu
def test_a_captured_step_makes_the_same_weights(batch):
    def run(**train):
        torch.manual_seed(0)
        model = build_model(options(num_gpu=1, train={'ema_decay': 0.9, **train}))
        for it in range(1, 9):
            model.update_learning_rate(it)
            step(model, batch, it)
        return model

    plain, captured = run(cuda_graph=False), run()
    assert captured.step.graph is not None
    for a, b in zip(plain.linked.parameters(), captured.linked.parameters()):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
def test_a_step_that_cannot_be_recorded_runs_on(batch):
    """RMSprop with loss scaling reads back whether to step, which no recording allows; dropout draws on the GPU."""
    train = {'cuda_graph': True, 'amp': 'fp16', 'grad_clip': 1.0, 'optim_g': {'type': 'RMSprop', 'lr': 1e-4}}
    model = build_model(options(num_gpu=1, train=train))
    dropout = torch.nn.Dropout(0.1)
    model.net.expanding.register_forward_hook(lambda _, args, output: dropout(output))
    for current_iter in range(1, 8):
        step(model, batch, current_iter)
    assert not model.step.usable and model.step.graph is None


# ------------------------------------------------------------------------------------------ optimizers


class OnlyBuildsFused(torch.optim.SGD):
    """As Adagrad on CUDA: its fused form can be built and raises in its first step."""

    def step(self, closure=None):
        if self.param_groups[0]['fused']:
            raise RuntimeError('no fused kernel for this device')
        return super().step(closure)


def test_an_optimizer_is_fused_only_where_that_runs():
    cpu = torch.device('cpu')
    assert runs_fused(torch.optim.Adam, cpu)
    assert not runs_fused(OnlyBuildsFused, cpu) and not runs_fused(torch.optim.RMSprop, cpu)


@pytest.mark.gpu
@pytest.mark.parametrize('optimizer', ['Adagrad', 'Adam', 'AdamW', 'SGD', 'RMSprop'])
def test_optimizers_step_on_a_gpu(batch, optimizer):
    step(build_model(options(num_gpu=1, train={'optim_g': {'type': optimizer, 'lr': 1e-3}})), batch)


def test_scaling_starts_again_after_a_step_that_was_broken_off():
    parameter = torch.ones(2, requires_grad=True)
    one = OptimizerStep(torch.optim.SGD([parameter], lr=0.1), clip=1.0, scale=True)
    scale = one.scaler.get_scale()
    one.backward(parameter.sum())
    one.scaler.unscale_(one.optimizer)  # a recording that fails ends here
    one.restart_scaling()
    one.zero_grad()
    one.backward(parameter.sum())
    one(parameter.sum().detach())
    assert one.scaler.get_scale() == scale and torch.allclose(parameter, torch.ones(2) - 0.1 / 2**0.5)


def test_a_resumed_run_computes_in_the_form_of_its_own_options(batch, tmp_path):
    """A state of a run without cuda_graph must not switch off what recording needs."""

    def model(**form):
        path = {'models': str(tmp_path), 'training_states': str(tmp_path)}
        optim = {'type': 'Adam', 'lr': 1e-3, **form}
        train = {'distill_opt': None, 'optim_g': optim}
        return build_model(options(name='s', manual_seed=0, network_t=None, path=path, train=train))

    first = model(foreach=True)
    step(first, batch)
    first.save(0, 1)
    again = model(fused=True, betas=(0.5, 0.6))
    again.resume_training(checkpoint.load_file_safely(tmp_path / '1.state'))
    group = again.optimizer_g.param_groups[0]
    assert group['fused'] and not group['foreach'] and tuple(group['betas']) == (0.9, 0.999)
    step(again, batch, 2)


# ------------------------------------------------------------------------------------------ values out of range


@pytest.mark.parametrize(
    'train, option',
    [
        ({'ema_decay': float('nan')}, 'train.ema_decay'),
        ({'ema_decay': 2}, 'train.ema_decay'),
        ({'ema_decay': -0.1}, 'train.ema_decay'),
        ({'grad_clip': -1}, 'train.grad_clip'),
        ({'grad_clip': float('nan')}, 'train.grad_clip'),
        ({'accumulate': 0}, 'train.accumulate'),
        ({'amp': 'fp8'}, 'train.amp'),
        ({'on_nan': 'ignore'}, 'train.on_nan'),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_when_built(train, option):
    with pytest.raises(OptionsError, match=rf'^{option}: out of range \(found .*\). Expected'):
        build(**train)
