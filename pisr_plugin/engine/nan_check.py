"""Ends a run whose losses or weights are not finite, before such weights are saved."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch import distributed as dist

from pisr_plugin.engine.training_states import TrainingStates
from pisr_plugin.utils.errors import PISRError


class NotFiniteError(PISRError):
    """A loss or a weight is NaN or infinite."""


def check_start(model) -> None:
    """Checks the weights that a model starts from: those of all its networks.

    Args:
        model: A BasicSR model; its attributes hold the networks.

    Raises:
        NotFiniteError: A parameter or buffer of a network is NaN or infinite.
    """
    for name, net in vars(model).items():
        if isinstance(net, nn.Module):
            for key, value in net.state_dict().items():
                if isinstance(value, Tensor) and not bool(value.isfinite().all()):
                    raise NotFiniteError(
                        f'{name}.{key}: holds NaN or infinity before training starts. Expected finite weights. Check '
                        'the checkpoint files of path.pretrain_network_*.'
                    )


class NaNGuard:
    """Looks for NaN and infinity where values are read from the device anyway.

    Args:
        model: BasicSR model. Its ``nonfinite``, a tensor on the device, counts the steps whose loss was not finite; a
            model without it is checked by its weights only.
        states: The run's states, to name the newest good one.
        start_iter: The iteration that training starts from; its weights are finite.
    """

    def __init__(self, model, states: TrainingStates, start_iter: int) -> None:
        self.model, self.states = model, states
        self.skips = model.opt['train'].get('on_nan') == 'skip'
        self.checked = start_iter
        self.latest: Mapping[str, float] = {}

    def losses(self, current_iter: int, losses: Mapping[str, float]) -> None:
        """Checks the losses of the iterations since the last check.

        Args:
            current_iter: The iteration just done.
            losses: Its losses by name.

        Raises:
            NotFiniteError: A loss was not finite on any rank, and ``train.on_nan`` is not ``skip``. All ranks raise.
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
        """Checks losses and weights before a save.

        Args:
            current_iter: The iteration just done.

        Raises:
            NotFiniteError: One of them is not finite. All ranks raise, because their weights are the same.
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
            'Lower train.optim_g.lr, limit gradients by train.grad_clip, or skip such steps by train.on_nan: skip. '
            'Then go on with --auto_resume. logger.print_freq: 1 shows the iteration.'
        )
