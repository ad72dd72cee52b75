"""Reading and writing weights: safe, atomic, and clear about what does not fit."""

from __future__ import annotations

import io
import logging
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pisr_plugin.errors import CheckpointError
from pisr_plugin.files import replacing

_CONTAINERS = ('params', 'params_ema', 'state_dict')


def save_atomic(content: Any, path: str | os.PathLike) -> None:
    """Writes ``content`` with :func:`torch.save` so that ``path`` is never half written.

    Raises:
        CheckpointError: the folder is missing, not writable or full. An older file at ``path`` is still whole then.
    """
    buffer = io.BytesIO()  # torch reports a full disk without saying so
    torch.save(content, buffer)
    try:
        with replacing(path, durable=True) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        raise CheckpointError(f'cannot write {path}: {error.strerror or error}') from None


def load_file_safely(path: str | os.PathLike) -> Any:
    """Reads a ``.pth``, ``.state`` or ``.safetensors`` file onto the CPU without ever running code from it.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        what = 'is a folder' if path.is_dir() else 'does not exist'
        raise CheckpointError(f'{path} {what}; a checkpoint file (.pth or .safetensors) is needed.')
    try:
        if path.suffix == '.safetensors':
            return load_file(path)
        with open(path, 'rb') as file:
            _check_sums(file)
            file.seek(0)
            return torch.load(file, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f'{path} is refused: it holds more than tensors and plain containers, or is damaged '
            f'({reason}). Loading it could run code; save its state dict again where you trust '
            'it.'
        ) from None
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read: {error.strerror or error}') from None
    except Exception as error:  # a damaged file makes its readers fail in every way there is
        raise CheckpointError(
            f'{path} cannot be read: {str(error).splitlines()[0] if str(error) else "it is empty"}. '
            'It is damaged or not a checkpoint.'
        ) from None


def _check_sums(file: BinaryIO) -> None:
    """Compares a zip file's contents with their checksums, at which torch does not look.

    Raises:
        ValueError: something was changed after it was written.
    """
    if not zipfile.is_zipfile(file):  # torch's format before 1.6
        return
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError('it is compressed, as torch does not write it')  # a small file could fill the memory
        changed = archive.testzip()
    if changed is not None:
        raise ValueError(f'the checksum of {changed} in it is wrong')


def load_weights(path: str | os.PathLike, param_key: str | None = 'params') -> dict[str, Tensor]:
    """Reads a network's state dict from any of the usual containers.

    Args:
        path: A file with a plain state dict, or one under ``params``, ``params_ema`` or ``state_dict``.
        param_key: The container wanted. When it is absent the others are tried, ``params`` first.

    Returns:
        The state dict, a leading ``module.`` removed from its keys.

    Raises:
        CheckpointError: the file cannot be read safely or holds no state dict.
    """
    return _without_module(_read(path, param_key))


def _without_module(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix('module.'): value for key, value in weights.items()}


def _read(path: str | os.PathLike, param_key: str | None) -> Mapping[str, Tensor]:
    """The state dict in a file, its keys as they are there."""
    content = load_file_safely(path)
    if isinstance(content, Mapping):
        for key in (param_key, *_CONTAINERS):
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        is_mapping = isinstance(content, Mapping)
        found = f'keys {", ".join(map(str, list(content)[:5]))}' if is_mapping else type(content).__name__
        raise CheckpointError(f'{path} holds no network weights: found {found}.')
    return content


def load_network(
    net: nn.Module, path: str | os.PathLike, param_key: str | None = 'params', strict: bool = True
) -> list[str]:
    """Loads the weights in ``path`` into ``net``.

    What a network's ``convert_released`` makes of an author's file, and a ``module.`` that is dropped, goes to
    BasicSR's log.

    Args:
        net: The network, not wrapped.
        path: See :func:`load_weights`.
        param_key: See :func:`load_weights`.
        strict: False: tensors that are missing or differ in shape keep the values they have.

    Returns:
        Names of the tensors that were not loaded, empty when ``strict``.

    Raises:
        CheckpointError: the file cannot be read, or belongs to another network; ``net`` is unchanged then. The message
            says which network it looks like.
    """
    content, own = _read(path, param_key), net.state_dict()
    plain = weights = _without_module(content)
    if hasattr(net, 'convert_released'):
        weights = net.convert_released(plain)  # a released file's nesting or scales to this network's keys
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
        from pisr_plugin.archs.identify import identify  # needs BasicSR, which reading files does not

        found = identify(plain)
        raise CheckpointError('\n'.join([*lines, f'  The file {found}.'] if found else lines))
    fitting = {key: value for key, value in weights.items() if key in own and key not in reshaped}
    net.load_state_dict(fitting, strict=False)
    mapped = _mapped(content, weights)
    if mapped:
        logging.getLogger('basicsr').info(f'{path}, read as {type(net).__name__}: {mapped}.')
    return missing + reshaped


def _mapped(content: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Says which tensors of a file were renamed and which were left out; empty when none were."""
    names = {id(value): key for key, value in weights.items()}
    renamed = [(key, names[id(value)]) for key, value in content.items() if names.get(id(value), key) != key]
    unused = [key for key, value in content.items() if id(value) not in names]
    parts = []
    if renamed:
        parts.append(f'{len(renamed)} tensors go by other names, e.g. {renamed[0][0]} is {renamed[0][1]}')
    if unused:
        parts.append(f'{len(unused)} tensors are left out, e.g. {unused[0]}')
    return '; '.join(parts)
