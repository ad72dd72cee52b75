"""Checkpoints and training states, damaged in every way at hand, are refused in one message or load correctly.

``FUZZ_EXAMPLES=5000 pytest tests/test_fuzz_checkpoint.py`` draws more examples, and others each time.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from basicsr.archs import build_network
from basicsr.models import build_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pisr_plugin.inference import checkpoint
from pisr_plugin.utils.errors import CheckpointError
from tests.test_model import options, step

FSRCNN = {'type': 'FSRCNN', 'd': 3, 's': 2, 'm': 1, 'upscale': 2}
MORE = os.environ.get('FUZZ_EXAMPLES')


def fuzzed(examples: int) -> Callable:
    """The number of examples, more by the environment; by default the same in each run."""
    return settings(
        max_examples=int(MORE or examples),
        derandomize=not MORE,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(FSRCNN)


def as_bytes(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz') / 'net.pth'


def paths(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """All places in nested containers, but the whole."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from paths(value, (*path, key))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


# -------------------------------------------------------------------------------------------------- damage

DAMAGE = st.tuples(st.sampled_from(['flip', 'cut', 'insert', 'zero', 'swap']), st.floats(0, 1), st.binary(min_size=1))


def damaged(content: bytes, damage: tuple[str, float, bytes]) -> bytes:
    kind, where, more = damage
    at = int(where * (len(content) - 1))
    whole = bytearray(content)
    if kind == 'flip':
        whole[at] ^= more[0] or 1
    elif kind == 'cut':
        del whole[at:]
    elif kind == 'insert':
        whole[at:at] = more
    elif kind == 'zero':
        whole[at : at + 64] = bytes(len(whole[at : at + 64]))
    else:
        whole[at : at + 16], whole[-16:] = whole[-16:], whole[at : at + 16]
    return bytes(whole)


TENSORS: list[Callable[[torch.Tensor], Any]] = [
    lambda x: x.double() * math.nan,
    lambda x: x.double() + math.inf,
    lambda x: x.bool(),
    lambda x: x.to(torch.int8),
    lambda x: x.long(),
    lambda x: x.to(torch.complex64),
    lambda x: x.double(),
    lambda x: x.half(),
    lambda x: x.float().flatten(),
    lambda x: x.float()[None],
    lambda x: x.float().flatten()[0].expand(x.shape),
    lambda x: x.float().reshape(-1)[:1].expand(2**40),
    lambda x: x.float().reshape(-1)[:1].expand(2),
    lambda x: x.float().reshape(-1)[:0],
    lambda x: x.float().to_sparse(),
    lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8),
    lambda x: torch.nn.Parameter(x.float()),
]
VALUES = [None, True, -1, 0, 3, 1e-3, math.nan, math.inf, -math.inf, 10**30, 'x', '', '../x', [], {}, [1], {'a': 1}]
VALUES += [torch.zeros(0), torch.zeros(()), torch.zeros(3, 3), torch.tensor(math.nan), (), ('b', 2), b'x']
CHANGE = st.tuples(st.floats(0, 1), st.sampled_from(['delete', 'add', 'value', 'tensor']), st.integers(0, 10**6))


def changed(content: Any, change: tuple[float, str, int]) -> Any:
    """A copy of nested containers with one change at one place."""
    where, kind, which = change
    content = deepcopy(content)
    places = list(paths(content))
    place = places[int(where * (len(places) - 1))]
    parent = content
    for key in place[:-1]:
        parent = parent[key]
    key, value = place[-1], VALUES[which % len(VALUES)]
    if kind == 'delete':
        del parent[key]
    elif kind == 'add' and isinstance(parent, dict):
        parent[value if isinstance(value, (str, int)) else 'more'] = value
    elif kind == 'add':
        parent.append(value)
    elif kind == 'tensor' and isinstance(parent[key], torch.Tensor):
        parent[key] = TENSORS[which % len(TENSORS)](parent[key])
    else:
        parent[key] = value
    return content


# -------------------------------------------------------------------------------------------------- checkpoints


def loads_or_is_refused(file, content: bytes, close: bool) -> None:
    """Loads a file; what it loads is what was saved, but for what a change of precision does."""
    file.write_bytes(content)
    net, expected = build_network(FSRCNN), network().state_dict()
    before = deepcopy(net.state_dict())
    try:
        checkpoint.load_network(net, file)
    except CheckpointError as error:
        assert str(file) in str(error) and same(net.state_dict(), before)
        return
    for key, value in net.state_dict().items():
        assert value.dtype == torch.float32 and value.isfinite().all(), key
        assert close or torch.equal(value, expected[key]), key


@fuzzed(150)
@given(damage=DAMAGE)
def test_a_checkpoint_with_damaged_bytes(file, damage):
    content = damaged(as_bytes({'params': network().state_dict()}), damage)
    loads_or_is_refused(file, content, close=False)


@fuzzed(150)
@given(change=CHANGE)
def test_a_checkpoint_with_a_changed_structure(file, change):
    content = changed({'params': dict(network().state_dict())}, change)
    loads_or_is_refused(file, as_bytes(content), close=True)


@pytest.mark.parametrize('number', range(len(TENSORS)))
def test_what_is_wrong_with_a_tensor_is_said_with_its_name(file, number):
    weights = dict(network().state_dict())
    weights['shrinking.0.0.weight'] = TENSORS[number](weights['shrinking.0.0.weight'])
    torch.save(weights, file)
    value, own = weights['shrinking.0.0.weight'], network().state_dict()['shrinking.0.0.weight']
    if torch.is_floating_point(value) and value.shape == own.shape and not (value.is_sparse or value.is_quantized):
        fits = 0 not in value.stride() and value.isfinite().all()
    else:
        fits = False
    if fits:
        checkpoint.load_network(network(), file)
    else:
        with pytest.raises(CheckpointError, match=r'net.pth(.|\n)*shrinking.0.0.weight'):
            checkpoint.load_network(network(), file)


# -------------------------------------------------------------------------------------------------- training states


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    train = {'distill_opt': None, 'amp': 'fp16', 'on_nan': 'skip', 'grad_clip': 1.0}
    path = {'models': str(folder), 'training_states': str(folder)}
    opt = options(name='s', network_g=FSRCNN, network_t=None, train=train, path=path, manual_seed=0)
    model = build_model(opt)
    model.best_metric_results = {'Set5': {'psnr': {'better': 'higher', 'val': 30.0, 'iter': 1}}}
    model.save(0, 0)
    return model


@pytest.fixture(scope='module')
def patch():
    return {'lq': torch.rand(1, 1, 8, 8), 'gt': torch.rand(1, 1, 16, 16)}


@pytest.fixture(scope='module')
def state(model, patch):
    for current_iter in (1, 2):
        step(model, patch, current_iter)
    model.save(0, 2)
    return checkpoint.load_file_safely(os.path.join(model.opt['path']['training_states'], '2.state'))


def resumes_or_is_refused(model, patch, state: Any) -> None:
    before = deepcopy(model.optimizer_g.state_dict())
    try:
        model.resume_training(state)
    except CheckpointError as error:
        assert '.state' in str(error) and same(model.optimizer_g.state_dict(), before)
        return
    step(model, patch, 3)  # a state that does not fit would crash here
    assert all(p.isfinite().all() for p in model.net.parameters())


@fuzzed(250)
@given(change=CHANGE)
def test_a_state_with_a_changed_structure(model, patch, state, change):
    resumes_or_is_refused(model, patch, changed(state, change))


@fuzzed(150)
@given(damage=DAMAGE)
def test_a_state_with_damaged_bytes(file, state, damage):
    path = file.with_name('2.state')
    path.write_bytes(damaged(as_bytes(state), damage))
    try:
        assert same(checkpoint.load_file_safely(path), state)
    except CheckpointError as error:
        assert '2.state' in str(error)


@pytest.mark.parametrize('key', ['exp_avg', 'exp_avg_sq', 'step'])
@pytest.mark.parametrize('number', range(len(TENSORS)))
def test_a_tensor_of_a_state_that_does_not_fit_is_refused_before_it_is_used(model, patch, state, key, number):
    """A fused optimizer would read memory beyond a moment that is smaller than its parameter."""
    state = deepcopy(state)
    entry = state['optimizers'][0]['state'][0]
    entry[key] = TENSORS[number](entry[key])
    resumes_or_is_refused(model, patch, state)


def test_a_whole_state_resumes(model, patch, state):
    model.resume_training(deepcopy(state))
    assert same(model.optimizer_g.state_dict()['state'], state['optimizers'][0]['state'])


@pytest.mark.parametrize('key', ['epoch', 'iter', 'optimizers', 'schedulers'])
def test_a_state_that_lacks_a_key_is_refused_by_name(model, state, key):
    with pytest.raises(CheckpointError, match=f'is not a training state: {key} is missing'):
        model.resume_training({name: value for name, value in state.items() if name != key})
