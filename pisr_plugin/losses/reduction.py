"""How a map of losses becomes one number."""

from __future__ import annotations

import torch

REDUCTIONS = ('none', 'mean', 'sum')


def check_reduction(reduction: str) -> None:
    """Refuses a reduction that does not exist, so that a loss fails when it is built."""
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction: found {reduction!r}, possible: {", ".join(REDUCTIONS)}')


def reduce(loss: torch.Tensor, reduction: str) -> torch.Tensor:
    """The ``loss`` map itself, its mean or its sum over all elements."""
    check_reduction(reduction)
    return loss if reduction == 'none' else getattr(loss, reduction)()
