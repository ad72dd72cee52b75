"""A training step recorded as one CUDA graph, so that the host launches it with one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pisr_plugin.models.step import TrainingStep

WARM_UP = 3  # steps on a side stream before recording, as CUDA graphs need: cuDNN chooses, buffers are allocated


class CapturedStep:
    """Runs a step's first iterations as they are, then records it and replays the record.

    Every step, the first ones too, is a step of the training. It is recorded anew when the batch's shape or the set of
    active links changes; the learning rate may change in every step.

    Args:
        step: What is recorded; without an adversary, its optimizer built with ``capturable=True``.
        warn: Told in one line when recording fails; steps run as they are then.
    """

    def __init__(self, step: TrainingStep, warn: Callable[[str], None] = print) -> None:
        self.step, self.warn = step, warn
        self.device = step.update.parameters[0].device
        self.side = torch.cuda.Stream(self.device)
        self.rates = [torch.zeros((), device=self.device) for _ in step.update.optimizer.param_groups]
        self.usable = True
        self._begin(None)

    def __call__(self, batch: Mapping[str, Tensor], active: Sequence[bool]) -> dict[str, Tensor]:
        """As :meth:`TrainingStep.__call__`; the losses are overwritten by the next step."""
        if not self.usable:
            return self.step(batch, active)
        kind = (tuple((name, value.shape, value.dtype) for name, value in batch.items()), tuple(active))
        if kind != self.kind:
            self._begin(kind)
        if self.graph is None and self.warmed < WARM_UP:
            return self._warm_up(batch, active)
        if self.graph is None and not self._record(batch, active):
            return self.step(batch, active)
        for name, value in batch.items():
            self.inputs[name].copy_(value, non_blocking=True)
        for rate, group in zip(self.rates, self.step.update.optimizer.param_groups):
            rate.fill_(group['lr'])
        self.graph.replay()
        return self.losses

    def _begin(self, kind: object) -> None:
        self.kind, self.warmed, self.graph = kind, 0, None
        self.inputs: dict[str, Tensor] = {}
        self.losses: dict[str, Tensor] = {}

    def _warm_up(self, batch: Mapping[str, Tensor], active: Sequence[bool]) -> dict[str, Tensor]:
        self.warmed += 1
        self.side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.side):
            losses = self.step(batch, active)
        torch.cuda.current_stream(self.device).wait_stream(self.side)
        return losses

    def _record(self, batch: Mapping[str, Tensor], active: Sequence[bool]) -> bool:
        """Records one step without running it; returns whether that worked."""
        groups = self.step.update.optimizer.param_groups
        floats = [group['lr'] for group in groups]
        self.inputs = {name: value.clone() for name, value in batch.items()}
        self.step.update.zero_grad()  # gradients are allocated anew, from the graph's own memory
        graph = torch.cuda.CUDAGraph()
        try:
            for group, rate in zip(groups, self.rates):
                group['lr'] = rate  # read at every replay
            with torch.cuda.graph(graph, capture_error_mode='thread_local'):  # the feed's thread pins memory meanwhile
                self.losses = self.step(self.inputs, active)
        except RuntimeError as error:
            self.usable = False
            self.warn(f'train.cuda_graph: this step cannot be recorded, going on without: {str(error).splitlines()[0]}')
            return False
        finally:
            for group, value in zip(groups, floats):
                group['lr'] = value
        self.graph = graph
        return True
