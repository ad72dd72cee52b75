"""The state of every random number generator that training may draw from."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

_WORDS = 624  # numbers in the state of a Mersenne twister


def capture() -> dict[str, Any]:
    """Returns the states of Python's, NumPy's and torch's generators, and of those of all CUDA devices.

    Returns:
        Tensors, numbers, strings and lists only, so that ``torch.load(weights_only=True)`` reads them.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        'python': [version, list(words), gauss],
        # the type of get_state() is also that of get_state(legacy=False), a dict
        'numpy': [name, keys.tolist(), position, has_gauss, cached],  # type: ignore[attr-defined]
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore(state: Mapping[str, Any]) -> None:
    """Sets all generators to what :func:`capture` returned. CUDA devices that this machine lacks are skipped.

    Args:
        state: Return value of :func:`capture`.

    Raises:
        ValueError: it is not a state of these generators; they are all unchanged then.
    """
    try:
        version, words, gauss = state['python']
        python = version, tuple(words), gauss
        random.Random().setstate(python)  # tried on generators of their own first
        name, keys, position, has_gauss, cached = state['numpy']
        keys = np.array(keys, dtype=np.uint32)
        if not isinstance(gauss, float | None) or keys.shape != (_WORDS,) or not 0 <= position <= _WORDS:
            raise ValueError('numbers are out of range')  # NumPy itself would read beyond the end
        numpy = name, keys, int(position), int(has_gauss), float(cached)
        np.random.RandomState().set_state(numpy)
        torch.Generator().set_state(state['torch'].cpu())
        cuda = [device_state.cpu() for device_state in state['cuda']]
    except Exception as error:  # whatever a generator raises at what it does not expect
        raise ValueError(f'random states: not those of these generators ({error or type(error).__name__})') from None
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(state['torch'].cpu())
    if torch.cuda.is_available():
        for device, device_state in enumerate(cuda[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state, device)


@contextmanager
def preserved() -> Iterator[None]:
    """Resets all generators at the end of the block to what they were at its beginning."""
    before = capture()
    try:
        yield
    finally:
        restore(before)


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seeds the global generators for a block; the main process restores their states, a data worker needs no states.

    Args:
        seed: Seed of ``random``, ``numpy.random`` and torch's CPU generator, 0 to 2^64 - 1.
        device: A CUDA device whose generator is seeded and restored, too.
    """
    on_cuda = device is not None and device.type == 'cuda'
    forked: AbstractContextManager[None]
    if get_worker_info() is None:
        states = random.getstate(), np.random.get_state()
        forked = torch.random.fork_rng([device] if on_cuda else [])
    else:
        states, forked = None, nullcontext()
    with forked:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed all GPUs
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            if states is not None:
                random.setstate(states[0])
                np.random.set_state(states[1])
