"""Reading and writing checkpoints and training states: safe, atomic, and clear about what does not fit."""

from __future__ import annotations

import functools
import io
import logging
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pisr_plugin.utils.checks import is_whole
from pisr_plugin.utils.errors import CheckpointError, first_line
from pisr_plugin.utils.files import replacing

_CONTAINERS = ('params', 'params_ema', 'state_dict')
_FOREIGN = {
    '.caffemodel': 'Caffe models are not read.',
    '.prototxt': 'Caffe models are not read.',
    '.pb': 'TensorFlow graphs are not read.',
    '.h5': 'Keras models are not read.',
    '.onnx': 'ONNX models are not read.',
    '.mat': 'MATLAB files are not read.',
}
_CONVERT = (
    'Where you trust the file, open it with the software that made it, and save its weights under the names that '
    'docs/networks.md gives: torch.save(state_dict, "net.pth").'
)


def save_atomic(content: Any, path: str | os.PathLike) -> None:
    """Writes ``content`` with :func:`torch.save`, so that ``path`` never holds half a file.

    Args:
        content: Tensors and plain containers.
        path: The file to write.

    Raises:
        CheckpointError: the folder is missing, not writable or full. An older file at ``path`` is unchanged then.
    """
    buffer = io.BytesIO()  # torch's own message about a full disk does not name the cause
    torch.save(content, buffer)
    try:
        with replacing(path) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        raise CheckpointError(f'cannot write {path}: {error.strerror or error}') from None


def load_file_safely(path: str | os.PathLike) -> Any:
    """Reads a ``.pth``, ``.state`` or ``.safetensors`` file onto the CPU, and never runs code from it.

    Args:
        path: The file to read.

    Raises:
        CheckpointError: the file is missing, damaged, of a format that is not read, or holds more than tensors and
            plain containers.
    """
    path = Path(path)
    if not path.is_file():
        what = 'is a folder' if path.is_dir() else 'does not exist'
        raise CheckpointError(f'{path} {what}. Expected a checkpoint file (.pth or .safetensors).')
    if path.suffix.lower() in _FOREIGN:
        raise CheckpointError(f'{path}: {_FOREIGN[path.suffix.lower()]} {_CONVERT}')
    try:
        if path.suffix == '.safetensors':
            return load_file(path)
        with open(path, 'rb') as file:
            _check_sums(file)
            file.seek(0)
            return torch.load(file, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f'{path} is refused: it holds more than tensors and plain containers, such as a pickled module, or is '
            f'damaged ({first_line(error)}). Reading it could run code. {_CONVERT}'
        ) from None
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read: {error.strerror or error}') from None
    except Exception as error:  # a damaged file makes its readers raise anything
        raise CheckpointError(
            f'{path} cannot be read: {first_line(error)}. It is damaged or not a checkpoint.'
        ) from None


def _check_sums(file: BinaryIO) -> None:
    """Compares a zip file's contents with their checksums, which torch does not check.

    Raises:
        ValueError: the contents have changed since they were written.
    """
    if not zipfile.is_zipfile(file):  # torch's format before 1.6
        return
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError('it is compressed, which torch never does')  # a small file could fill the memory
        changed = archive.testzip()
    if changed is not None:
        raise ValueError(f'the checksum of {changed} in it is wrong')


def check_training_state(state: object, path: str | os.PathLike) -> None:
    """Checks all of a training state that needs no model.

    Args:
        state: What the file holds.
        path: The file, for messages.

    Raises:
        CheckpointError: a key is missing, or a value is of the wrong type or out of its range.
    """
    if not isinstance(state, dict):
        raise CheckpointError(f'{path} is not a training state (found {type(state).__name__}). Expected a dict.')
    for key, (is_needed, fits, expected) in _STATE.items():
        if key not in state and is_needed:
            raise CheckpointError(f'{path} is not a training state: {key} is missing.')
        if key in state and not fits(state[key]):
            raise CheckpointError(f'{path}: {key}: wrong value (found {_short(state[key])}). Expected {expected}.')


def _is_dicts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _is_files(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and Path(name).name == name for name in value)


def _is_best(value: object) -> bool:
    """Whether a value is BasicSR's ``{set: {metric: {better, val, iter}}}``."""
    if not (isinstance(value, dict) and all(isinstance(metrics, dict) for metrics in value.values())):
        return False
    records = [record for metrics in value.values() for record in metrics.values()]
    return all(
        isinstance(record, dict)
        and record.get('better') in ('higher', 'lower')
        and type(record.get('val')) in (int, float)
        and is_whole(record.get('iter'))
        for record in records
    )


_is_count = functools.partial(is_whole, low=0)
# of each key: whether every state has it (states of stock BasicSR too), whether a value fits, what is expected
_STATE: Mapping[str, tuple[bool, Callable[[Any], bool], str]] = {
    'epoch': (True, _is_count, 'a whole number from 0 on'),
    'iter': (True, _is_count, 'a whole number from 0 on'),
    'optimizers': (True, _is_dicts, 'a list of state dicts'),
    'schedulers': (True, _is_dicts, 'a list of state dicts'),
    'networks': (False, _is_files, 'a list of file names'),
    'world_size': (False, lambda value: is_whole(value, 1), 'a whole number from 1 on'),
    'random_states': (False, _is_dicts, 'a list of dicts'),
    'nonfinite': (False, _is_count, 'a whole number from 0 on'),
    'best_metric_results': (False, _is_best, "BasicSR's record of the best metrics"),
}


def load_weights(path: str | os.PathLike, param_key: str | None = 'params') -> dict[str, Tensor]:
    """Reads a network's state dict from any of the usual containers.

    Args:
        path: A file with a plain state dict, or with one under ``params``, ``params_ema`` or ``state_dict``.
        param_key: The container to read. When it is absent the others are tried, ``params`` first.

    Returns:
        The state dict, a leading ``module.`` removed from its keys.

    Raises:
        CheckpointError: the file cannot be read safely, holds no state dict, or holds NaN or complex numbers.
    """
    weights = _without_module(_read(path, param_key))
    for key, value in weights.items():
        problem = tensor_problem(value)
        if problem:
            raise CheckpointError(f'{path}: {key}: {problem}')
    return weights


def _without_module(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix('module.'): value for key, value in weights.items()}


def _read(path: str | os.PathLike, param_key: str | None) -> Mapping[str, Tensor]:
    """Returns the state dict in a file, with the keys that it has there."""
    content = load_file_safely(path)
    if isinstance(content, Mapping):
        for key in (param_key, *_CONTAINERS):
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    is_mapping = isinstance(content, Mapping)
    if not (is_mapping and content and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())):
        found = f'keys {", ".join(map(_short, list(content)[:5]))}' if is_mapping else type(content).__name__
        raise CheckpointError(f'{path} holds no network weights (found {found}). Expected tensors by name.')
    return content


def tensor_problem(value: Tensor, like: Tensor | None = None) -> str | None:
    """Returns what is wrong with a tensor that was read from a file, or None.

    Args:
        value: The tensor of the file.
        like: The tensor that it is to replace, if known: both must be floating, whole or boolean numbers.
    """
    kinds = {_kind(value), _kind(value if like is None else like)}
    if value.layout is not torch.strided or value.is_quantized or 'complex' in kinds or len(kinds) > 1:
        found = str(value.dtype).removeprefix('torch.')
        return f'wrong type of tensor (found {found}). Expected {"floats" if like is None else _kind(like)}.'
    if any(stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape)):
        return f'fewer values than its shape {tuple(value.shape)} has.'
    may_be_infinite = like is not None and not like.isfinite().all()
    if value.is_floating_point() and not may_be_infinite and not value.isfinite().all():
        return 'NaN or infinite values. Expected finite numbers.'
    return None


def _kind(value: Tensor) -> str:
    if value.dtype.is_floating_point:
        return 'floats'
    if value.dtype.is_complex:
        return 'complex'
    return 'booleans' if value.dtype is torch.bool else 'whole numbers'


def load_network(
    net: nn.Module, path: str | os.PathLike, param_key: str | None = 'params', strict: bool = True
) -> list[str]:
    """Loads the weights in ``path`` into ``net``.

    It logs which names a network's ``convert_released`` changed in an author's file.

    Args:
        net: The network, not wrapped.
        path: See :func:`load_weights`.
        param_key: See :func:`load_weights`.
        strict: Whether every tensor must fit. If not, those that are missing or differ in shape keep their values.

    Returns:
        Names of the tensors that were not loaded, empty when ``strict``.

    Raises:
        CheckpointError: the file cannot be read, or belongs to another network, or a tensor is not of the network's
            type or not finite; ``net`` is unchanged then. The message says which network the file looks like.
    """
    content, own = _read(path, param_key), net.state_dict()
    plain = _without_module(content)
    # from a released file's nesting or scales to this network's keys
    weights = getattr(net, 'convert_released', dict)(plain)
    missing = [key for key in own if key not in weights]
    unexpected = [key for key in weights if key not in own]
    reshaped = [key for key in own if key in weights and own[key].shape != weights[key].shape]
    if strict and (missing or unexpected or reshaped):
        lines = [f'{path} belongs to another network than {type(net).__name__} as configured:']
        lines += [
            f'  {len(keys)} tensors {what}, e.g. {keys[0]}'
            for keys, what in (
                (missing, 'of the network are not in the file'),
                (unexpected, 'of the file are not in the network'),
            )
            if keys
        ]
        lines += [
            f'  {key} is {tuple(weights[key].shape)} in the file and {tuple(own[key].shape)} in the network'
            for key in reshaped[:3]
        ]
        from pisr_plugin.inference.identify import identify  # builds networks, which reading files does not need

        found = identify(plain)
        raise CheckpointError('\n'.join([*lines, f'  The file {found}.'] if found else lines))
    fitting = {key: value for key, value in weights.items() if key in own and key not in reshaped}
    for key, value in fitting.items():
        problem = tensor_problem(value, own[key])
        if problem:
            raise CheckpointError(f'{path}: {key}: {problem}')
    net.load_state_dict(fitting, strict=False)
    mapped = _mapped(content, weights)
    if mapped:
        logging.getLogger('basicsr').info(f'{path}, read as {type(net).__name__}: {mapped}.')
    return missing + reshaped


def _mapped(content: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Returns which tensors of a file were renamed and which were left out; empty when none were."""
    names = {id(value): key for key, value in weights.items()}
    renamed = [(key, names[id(value)]) for key, value in content.items() if names.get(id(value), key) != key]
    unused = [key for key, value in content.items() if id(value) not in names]
    parts = []
    if renamed:
        parts.append(f'{len(renamed)} tensors go by other names, e.g. {renamed[0][0]} is {renamed[0][1]}')
    if unused:
        parts.append(f'{len(unused)} tensors are left out, e.g. {unused[0]}')
    return '; '.join(parts)


def _short(value: object) -> str:
    """Returns the beginning of a value's text; a damaged file may hold long ones."""
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
    return text if len(text) <= 40 else f'{text[:40]}...'
