"""Ends a run whose losses or weights are no longer finite, before such weights are saved."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import distributed as dist

from pisr_plugin.engine.states import States
from pisr_plugin.errors import PISRError


class NotFiniteError(PISRError):
    """Training has diverged."""


class FiniteCheck:
    """Looks for NaN and infinity where values are read from the device anyway.

    Args:
        model: Counts in ``nonfinite``, on the device, the steps whose loss was not finite; a model without it is
            judged by its weights alone.
        states: Where the newest good state is.
        start_iter: The iteration training starts from, which was finite.
    """

    def __init__(self, model, states: States, start_iter: int) -> None:
        self.model, self.states = model, states
        self.skips = model.opt['train'].get('on_nan') == 'skip'
        self.checked = start_iter
        self.latest: Mapping[str, float] = {}

    def losses(self, current_iter: int, losses: Mapping[str, float]) -> None:
        """Checks the iterations since the last check.

        Args:
            current_iter: The iteration just done.
            losses: Its losses.

        Raises:
            NotFiniteError: on all ranks, when the run does not skip such steps.
        """
        self.latest = losses
        count = getattr(self.model, 'nonfinite', None)
        if count is None or self.skips:
            return
        count = count.clone()
        if dist.is_initialized():
            dist.all_reduce(count)  # each rank has seen other images
        if int(count):
            self._end(current_iter, 'a loss')
        self.checked = current_iter

    def weights(self, current_iter: int) -> None:
        """Checks losses and weights before these are saved.

        Raises:
            NotFiniteError: on all ranks, whose weights are the same.
        """
        checked = self.checked
        self.losses(current_iter, self.latest)
        groups = [group for optimizer in self.model.optimizers for group in optimizer.param_groups]
        values = [p for group in groups for p in group['params']]
        if not bool(torch.stack([value.detach().isfinite().all() for value in values]).all()):
            self.checked = min(checked, current_iter - 1)
            self._end(current_iter, 'a weight')

    def _end(self, current_iter: int, what: str) -> None:
        bad = ', '.join(f'{name}: {value}' for name, value in self.latest.items() if not math.isfinite(value))
        good = next((self.states.file(i) for i in self.states.iterations() if i <= self.checked), 'none yet')
        raise NotFiniteError(
            f'training: {what} is not finite{bad and f" ({bad})"} since an iteration between {self.checked + 1} and '
            f'{current_iter}. Nothing was saved since; newest good state: {good}.\n'
            'Lower train.optim_g.lr, limit gradients by train.grad_clip, or leave such steps out by train.on_nan: '
            'skip; then go on with --auto_resume. logger.print_freq: 1 shows the iteration.'
        )
