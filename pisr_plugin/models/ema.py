"""The exponential moving average of the trained network's weights."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from pisr_plugin.utils.errors import OptionsError


class WeightAverage:
    """Averages the weights of a network: after each step ``average = decay * average + (1 - decay) * weights``.

    Buffers are copied.

    Args:
        net: The trained network, without hooks.
        decay: Weight of the old average, above 0 and below 1.

    Attributes:
        net: A copy of the network with the averaged weights, in evaluation mode.

    Raises:
        OptionsError: ``decay`` is out of its range.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise OptionsError(
                f'train.ema_decay: out of range (found {decay!r}). Expected a number above 0 and below 1, e.g. 0.999.'
            )
        self.trained, self.decay = net, decay
        self.net = deepcopy(net).eval().requires_grad_(False)
        # Listed once: walking through the modules in every step would take longer than averaging.
        self._averages: list[Tensor] = list(self.net.parameters())
        self._weights: list[Tensor] = list(net.parameters())
        self._buffers = list(zip(self.net.buffers(), net.buffers()))

    def start(self) -> None:
        """Sets the averages to the weights."""
        self.net.load_state_dict(self.trained.state_dict())

    @torch.no_grad()
    def update(self) -> None:
        """Averages the weights of one more step."""
        torch._foreach_lerp_(self._averages, self._weights, 1 - self.decay)
        for average, current in self._buffers:
            average.copy_(current)
