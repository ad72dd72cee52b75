"""Optimizers by name: those of ``torch.optim`` and, where it is installed, of the library ``pytorch_optimizer``."""

from __future__ import annotations

import importlib.util
import inspect
import io
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from pisr_plugin.utils import random_state
from pisr_plugin.utils.errors import OptionsError, did_you_mean, first_line

LIBRARY = 'pytorch_optimizer'
Build = Callable[..., torch.optim.Optimizer]  # a class of optimizers; each has arguments of its own
_INSTALL = f"(more, such as SOAP, with pip install 'pisr-plugin[optimizers]', which brings {LIBRARY})"


def optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    """All optimizers that options can name; where both sides use a name it means the one of ``torch.optim``."""
    return _of_library() | _of_torch()


def find_optimizer(name: str, option_path: str) -> type[torch.optim.Optimizer]:
    """Looks an optimizer up; the library is imported only for a name that ``torch.optim`` does not have.

    Args:
        name: As in ``type``.
        option_path: Option path of the optimizer, for messages.

    Raises:
        OptionsError: there is none of that name.
    """
    cls = _of_torch().get(name) or _of_library().get(name)
    if cls is None:
        install = '' if _is_installed() else f' {_INSTALL}'
        raise OptionsError(f'{option_path}.type: unknown {name!r}. {did_you_mean(name, optimizers())}{install}')
    return cls


def argument_mistakes(cls: type[torch.optim.Optimizer], options: Mapping, option_path: str) -> list[str]:
    """One line for each option that is no argument of the optimizer. (Many of the library would ignore it.)"""
    possible = argument_names(cls)
    return [
        f'{option_path}.{key}: {cls.__name__} has no such argument. {did_you_mean(key, possible)}'
        for key in options
        if key not in possible
    ]


def argument_names(cls: type[torch.optim.Optimizer]) -> list[str]:
    """The arguments that options may give."""
    parameters = inspect.signature(cls).parameters.values()
    return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != 'params']


def build_optimizer(
    name: str, params: list[Tensor], option_path: str, recorded: bool = False, **options
) -> torch.optim.Optimizer:
    """Builds an optimizer in its quickest form, and proves on copies that it can move these parameters.

    Args:
        name: See :func:`optimizers`.
        params: What it moves.
        option_path: Option path, for messages.
        recorded: It is to run inside a CUDA graph, if it can.
        options: Its arguments.

    Raises:
        OptionsError: there is no such optimizer or argument, or it cannot be used in a run.
    """
    cls = find_optimizer(name, option_path)
    mistakes = argument_mistakes(cls, options, option_path)
    if mistakes:
        raise OptionsError('\n'.join(mistakes))
    if recorded and 'capturable' in argument_names(cls):
        options['capturable'] = True

    def build(params: list[Tensor]) -> torch.optim.Optimizer:
        return _build_quickest(cls, _groups(cls, params, options), options)

    try:
        optimizer = build(params)
    except (TypeError, ValueError) as error:
        raise OptionsError(f'{option_path}: {error}') from None
    problem = _problem(build, params)
    if problem:
        raise OptionsError(f'{option_path}.type: {name} cannot be used here: {problem}')
    return optimizer


def is_usable(cls: Build) -> bool:
    """Whether an optimizer with default arguments can move the weights of a convolution with bias and PReLU."""
    params = [torch.zeros(shape, requires_grad=True) for shape in ((4, 2, 3, 3), (4,), (1,))]
    try:
        return _problem(lambda params: cls(_groups(cls, params), lr=1e-3), params) is None
    except (TypeError, ValueError):
        return False


def _build_quickest(cls: Build, params: list, options: dict) -> torch.optim.Optimizer:
    """Fused where it can be, unless the options choose a form."""
    device = (params[0]['params'] if isinstance(params[0], dict) else params)[0].device
    if {'fused', 'foreach'} & options.keys() or not runs_fused(cls, device):
        return cls(params, **options)
    try:
        return cls(params, fused=True, **options)
    except RuntimeError:  # not with these options
        return cls(params, **options)


def runs_fused(cls: Build, device: torch.device) -> bool:
    """Returns whether an optimizer has a fused form that runs on a device.

    It makes one step on a parameter of its own, because some raise in their first step only (Adagrad on CUDA).

    Args:
        cls: Class of the optimizer.
        device: The device of its parameters.
    """
    if 'fused' not in inspect.signature(cls).parameters:
        return False
    parameter = torch.zeros(1, device=device, requires_grad=True)
    parameter.grad = torch.zeros_like(parameter)
    try:
        cls([parameter], lr=0.0, fused=True).step()
    except RuntimeError:
        return False
    return True


def _groups(cls: Build, params: list[Tensor], options: Mapping = MappingProxyType({})) -> list:
    """Puts biases, slopes and the like into a group of their own where the optimizer cannot tell them from matrices.

    Most look at the shapes: SOAP, for one, has no preconditioner for 1-D tensors. Muon and its kin want to be told,
    and move vectors by Adam. Dimensions can be merged only where more than one is left.
    """
    if 'use_muon' in (cls.__doc__ or ''):
        return _split(params, lambda p: p.ndim > 1, {'use_muon': True}, {'use_muon': False})
    if options.get('merge_dims'):
        largest = options.get('max_precondition_dim', inspect.signature(cls).parameters['max_precondition_dim'].default)
        return _split(params, lambda p: p.ndim > 1 and p.numel() > largest, {}, {'merge_dims': False})
    return params


def _split(params: list[Tensor], belongs: Callable[[Tensor], bool], first: dict, second: dict) -> list[dict]:
    """Two groups with options of their own; one that would be empty is left out."""
    groups = [{'params': [p for p in params if belongs(p)], **first}]
    groups += [{'params': [p for p in params if not belongs(p)], **second}]
    return [group for group in groups if group['params']]


def _problem(build: Callable[[list[Tensor]], torch.optim.Optimizer], params: list[Tensor]) -> str | None:
    """Makes two steps on copies and reads the state back as a resumed run does; returns why that fails, or None."""
    copies = [p.detach().clone().requires_grad_() for p in {p.shape: p for p in params}.values()]
    with random_state.preserved(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            optimizer = build(copies)
            for _ in range(2):
                for p in copies:
                    p.grad = torch.randn_like(p)
                optimizer.step()
        except Exception as error:  # any optimizer: whatever it raises, it cannot be used
            flat = all(p.is_contiguous() for p in params)
            return first_line(error) + ('' if flat else ' (Perhaps train.channels_last: false helps.)')
        buffer = io.BytesIO()
        try:
            torch.save(optimizer.state_dict(), buffer)
            buffer.seek(0)
            torch.load(buffer, weights_only=True)
        except Exception:  # of pickle or of torch, depending on what the state holds
            return 'its state holds more than tensors and plain values, so a run could not be resumed safely.'
    return None


def _of_torch() -> dict[str, type[torch.optim.Optimizer]]:
    return {
        name: cls for name, cls in vars(torch.optim).items() if _is_optimizer(cls) and cls is not torch.optim.Optimizer
    }


def _of_library() -> dict[str, type[torch.optim.Optimizer]]:
    """Those that are built from parameters and a rate; not wrappers of optimizers, nor those that see the network."""
    if not _is_installed():
        return {}
    found = {name: cls for name, cls in vars(importlib.import_module(LIBRARY)).items() if _is_optimizer(cls)}
    return {name: cls for name, cls in found.items() if _takes_parameters(cls) and _keeps_to_a_step(cls)}


def _is_installed() -> bool:
    return importlib.util.find_spec(LIBRARY) is not None


def _is_optimizer(cls: object) -> bool:
    return isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)


def _takes_parameters(cls: type) -> bool:
    parameters = inspect.signature(cls).parameters
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    return {'params', 'lr'} <= parameters.keys() and set(needed) <= {'params', 'lr'}


def _keeps_to_a_step(cls: type) -> bool:
    """Not where weights are to be swapped for validation (``eval``), nor where each rank holds a part of the state."""
    return not hasattr(cls, 'eval') and 'Distributed' not in cls.__name__
