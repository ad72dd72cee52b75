"""Training states: what a resumed run needs beside the networks, collected, checked and restored."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from basicsr.utils import get_root_logger, set_random_seed
from torch import Tensor

from pisr_plugin.inference.checkpoint import check_training_state, tensor_problem
from pisr_plugin.utils import random_state
from pisr_plugin.utils.checks import is_number
from pisr_plugin.utils.errors import CheckpointError

if TYPE_CHECKING:
    from pisr_plugin.models.pisr_model import PISRModel

POSITION = ('last_epoch', '_step_count', '_last_lr', 'base_lrs')  # of a schedule; its shape is what the options say
FORM = ('fused', 'foreach', 'capturable', 'differentiable')  # how an optimizer computes, which the options say too


def collect(model: PISRModel, epoch: int, current_iter: int) -> dict[str, Any] | None:
    """Returns the training state of a model, on rank 0; None on the others.

    All ranks must call it, because each has random numbers of its own.

    Args:
        model: The model.
        epoch: Number of the epoch, from 0.
        current_iter: Number of the iteration, from 1.
    """
    random_states = [random_state.capture()]
    if model.opt['dist']:
        random_states *= model.opt['world_size']
        torch.distributed.all_gather_object(random_states, random_states[0])
    if model.opt['rank'] != 0:
        return None
    state = {
        'epoch': epoch,
        'iter': current_iter,
        'stage': model.opt['name'],
        'networks': [f'{name}_{current_iter}.pth' for name in model.network_names()],
        'optimizers': [optimizer.state_dict() for optimizer in model.optimizers],
        'optimizer_types': [type(optimizer).__name__ for optimizer in model.optimizers],
        'schedulers': [_plain(scheduler.state_dict()) for scheduler in model.schedulers],
        'world_size': model.opt['world_size'],
        'random_states': random_states,
    }
    state |= {key: scaler.state_dict() for key, scaler in _scalers(model).items()}
    if model.step_options.on_nan == 'skip':
        state['nonfinite'] = int(model.nonfinite)
    if hasattr(model, 'best_metric_results'):
        # Metrics return NumPy's numbers, which a weights-only load refuses.
        state['best_metric_results'] = {
            dataset: {metric: {**best, 'val': float(best['val'])} for metric, best in metrics.items()}
            for dataset, metrics in model.best_metric_results.items()
        }
    return state


def restore(model: PISRModel, state: Mapping[str, Any], path: str) -> None:
    """Gives a model the state of a saved one; nothing is changed before all of it is checked.

    Args:
        model: A model whose networks are loaded already.
        state: What :func:`collect` returned.
        path: The file that it comes from, for messages.

    Raises:
        CheckpointError: the state is damaged, or that of another optimizer or schedule.
    """
    check_training_state(state, path)
    types = [type(optimizer).__name__ for optimizer in model.optimizers]
    saved_types = state.get('optimizer_types', types)  # stock BasicSR's states do not say
    if saved_types != types:
        raise CheckpointError(
            f'{path} was saved with other optimizers (found {saved_types}). '
            f'Expected {types}, as train.optim_g and train.optim_d say.'
        )
    try:
        for key in ('optimizers', 'schedulers'):
            if len(state[key]) != len(getattr(model, key)):
                raise ValueError(f'{key}: wrong number (found {len(state[key])}). Expected {len(getattr(model, key))}.')
        optimizers = [
            _optimizer_state(saved, optimizer, f'optimizers[{i}]')
            for i, (saved, optimizer) in enumerate(zip(state['optimizers'], model.optimizers))
        ]
        schedulers = []
        for i, (saved, scheduler) in enumerate(zip(state['schedulers'], model.schedulers)):
            position = {key: saved[key] for key in POSITION if key in saved}
            own = scheduler.state_dict()
            _check_like(position, {key: own[key] for key in POSITION}, f'schedulers[{i}]')
            schedulers.append(position)
        scalers = {key: scaler for key, scaler in _scalers(model).items() if key in state}
        for key, scaler in scalers.items():
            _check_like(state[key], scaler.state_dict(), key)
        _restore_random_state(model, state, path)
        for optimizer, saved in zip(model.optimizers, optimizers):
            optimizer.load_state_dict(saved)
        for scheduler, position in zip(model.schedulers, schedulers):
            scheduler.load_state_dict(position)
        for key, scaler in scalers.items():
            scaler.load_state_dict(state[key])
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(
            f'{path} does not fit the optimizer and schedule of these options (train.optim_g, train.scheduler): {error}'
        ) from None
    if 'best_metric_results' in state:
        model.best_metric_results = state['best_metric_results']
    if 'nonfinite' in state and model.step_options.on_nan == 'skip':
        model.optimizer_steps[0].skipped.fill_(state['nonfinite'])  # only the sum over all steps counts


def _scalers(model: PISRModel) -> dict[str, torch.amp.GradScaler]:
    """Returns the loss scaling of each optimizer that has one, by its key in a training state."""
    return {key: step.scaler for key, step in zip(('scaler', 'scaler_d'), model.optimizer_steps) if step.scaler}


def _optimizer_state(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer, place: str) -> dict[str, Any]:
    """Checks the saved state of an optimizer; returns it, computed in the form that the options ask for now.

    A fused optimizer reads memory by the sizes of its parameters and would crash on a state of other sizes.

    Args:
        saved: The saved state dict.
        optimizer: The optimizer that it is for.
        place: Name of the state, for messages.

    Raises:
        ValueError: it does not fit the optimizer.
    """
    own, groups, entries = optimizer.state_dict(), saved.get('param_groups'), saved.get('state')
    if not isinstance(groups, list) or not isinstance(entries, dict):
        raise ValueError(f'{place}: param_groups or state is missing.')
    found = [group.get('params') if isinstance(group, dict) else None for group in groups]
    if found != [group['params'] for group in own['param_groups']]:
        raise ValueError(f'{place}.param_groups: not those of the network (numbers of parameters differ).')
    expected, stepped_groups = _stepped(optimizer)
    restored = []
    for i, (group, current, stepped) in enumerate(zip(groups, own['param_groups'], stepped_groups)):
        like = {**stepped, 'params': current['params']}
        kept = {key: group[key] for key in like if key in group and key not in FORM}
        _check_like(kept, {key: like[key] for key in kept}, f'{place}.param_groups[{i}]')
        restored.append({**current, **kept})
    for key, entry in entries.items():
        if not isinstance(key, int) or not 0 <= key < len(expected):
            raise ValueError(f'{place}.state: unknown parameter (found {key!r:.40}).')
        _check_like(entry, expected[key], f'{place}.state[{key}]')
    return {'state': entries, 'param_groups': restored}


def _stepped(optimizer: torch.optim.Optimizer) -> tuple[list[Mapping[str, Any]], list[dict[str, Any]]]:
    """Returns each parameter's state and the groups as they are after two steps, to compare a saved state with.

    Some optimizers, such as SOAP, add to their groups in the first step.

    A copy of the optimizer makes the steps, with one parameter of each shape: a large network takes no longer.
    """
    trial = object.__new__(type(optimizer))
    # Copied by hand: a library's optimizer loses attributes otherwise, and a schedule has replaced this one's step.
    trial.__dict__.update({key: value for key, value in vars(optimizer).items() if key != 'step'})
    trial.state, trial.param_groups, examples = defaultdict(dict), [], []
    for group in optimizer.param_groups:
        own = {p.shape: torch.zeros_like(p, requires_grad=True) for p in group['params']}
        trial.param_groups.append({**group, 'params': list(own.values())})
        examples += [own[p.shape] for p in group['params']]
    with random_state.preserved():
        for _ in range(2):
            for parameter in examples:
                parameter.grad = torch.ones_like(parameter)
            trial.step()
    return [trial.state.get(parameter, {}) for parameter in examples], trial.param_groups


def _check_like(value: object, like: object, place: str) -> None:
    """Raises ValueError unless a value of a file has the structure, types and shapes of ``like`` and is finite."""
    number = is_number(value)
    if isinstance(like, Tensor):
        if like.ndim == 0 and number:
            return
        if not isinstance(value, Tensor) or value.shape != like.shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f'{place}: wrong shape (found {found}). Expected {tuple(like.shape)}.')
        problem = tensor_problem(value, like)
        if problem:
            raise ValueError(f'{place}: {problem}')
    elif isinstance(like, Mapping):
        if not isinstance(value, Mapping) or value.keys() != like.keys():
            found = ', '.join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise ValueError(f'{place}: wrong keys (found {found}). Expected {", ".join(map(str, like))}.')
        for key in like:
            _check_like(value[key], like[key], f'{place}.{key}')
    elif isinstance(like, list | tuple):
        if not isinstance(value, list | tuple) or len(value) != len(like):
            raise ValueError(f'{place}: wrong length (found {value!r:.40}). Expected {len(like)} values.')
        for i, (one, other) in enumerate(zip(value, like)):
            _check_like(one, other, f'{place}[{i}]')
    elif isinstance(like, int | float) and not isinstance(like, bool):
        if not number and value != like:
            raise ValueError(f'{place}: wrong value (found {value!r:.40}). Expected a finite number.')
    elif not isinstance(value, (type(like), bool, int, float, type(None))):
        raise ValueError(f'{place}: wrong value (found {value!r:.40}). Expected one like {like!r}.')


def _restore_random_state(model: PISRModel, state: Mapping[str, Any], path: str) -> None:
    """Restores this rank's random state, or seeds a new one that no earlier run has used."""
    states, world_size = state.get('random_states'), model.opt['world_size']
    if states and len(states) == world_size:
        random_state.restore(states[model.opt['rank']])
        return
    saved = f'by {len(states)} process(es), not {world_size}' if states else 'without random states'
    get_root_logger().warning(f'{path} was saved {saved}: random numbers, such as those of dropout, start anew.')
    set_random_seed(model.opt['manual_seed'] + model.opt['rank'] + state['iter'])


def _plain(state: dict) -> dict:
    """Converts BasicSR's Counter of milestones to a dict, so that no class is stored."""
    return {key: dict(value) if isinstance(value, Counter) else value for key, value in state.items()}
