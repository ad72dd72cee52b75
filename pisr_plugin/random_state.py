"""The state of every random number generator that training may draw from."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def capture() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators, every CUDA device's included.

    Returns:
        Tensors, numbers, texts and lists alone, so that ``torch.load(weights_only=True)`` reads them back.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        'python': [version, list(words), gauss],
        'numpy': [name, keys.tolist(), position, has_gauss, cached],
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore(state: Mapping[str, Any]) -> None:
    """Goes back to what :func:`capture` returned; CUDA devices that are not there now are left out."""
    version, words, gauss = state['python']
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state['numpy']
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state['torch'].cpu())
    if torch.cuda.is_available():
        for device, device_state in enumerate(state['cuda'][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state.cpu(), device)


@contextmanager
def preserved() -> Iterator[None]:
    """Leaves all generators after the block as they were before it."""
    before = capture()
    try:
        yield
    finally:
        restore(before)
