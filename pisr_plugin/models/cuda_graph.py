"""A training step recorded as one CUDA graph, which the host then launches with one call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pisr_plugin.models.step import TrainingStep
from pisr_plugin.utils.errors import first_line

WARM_UP = 3  # steps on a side stream before recording, in which cuDNN chooses algorithms and buffers are allocated
WARM_UP_OF_RANKS = 12  # DistributedDataParallel measures its first 10 steps, which cannot be recorded


@functools.cache
def side_stream() -> torch.cuda.Stream:
    """Returns the stream of the current GPU on which steps warm up and are recorded, and on which DDP must be built."""
    return torch.cuda.Stream()


class CUDAGraphStep:
    """Runs the first steps normally, then records one and replays the record.

    Every step, the first ones too, is a step of the training. When the batch's shape or the set of active links
    changes, a new record is made. The learning rate may change in every step.

    Args:
        step: The step to record: without a discriminator, its optimizer built with ``capturable=True``.
        warn: Called with one line when recording fails; all later steps then run normally.
    """

    def __init__(self, step: TrainingStep, warn: Callable[[str], None] = print) -> None:
        self.step, self.warn = step, warn
        self.device = step.optimizer_step.parameters[0].device
        self.side = side_stream()
        self.rates = [torch.zeros((), device=self.device) for _ in step.optimizer_step.optimizer.param_groups]
        ranks = isinstance(step.training_losses.linked, DistributedDataParallel)
        self.warm_up = WARM_UP_OF_RANKS if ranks else WARM_UP
        self.usable = True
        self.graph: torch.cuda.CUDAGraph | None = None
        self._begin(None)

    def __call__(self, batch: Mapping[str, Tensor], active: Sequence[bool]) -> dict[str, Tensor]:
        """Makes one step, as :meth:`TrainingStep.__call__`. The next step overwrites the losses that it returns."""
        if not self.usable:
            return self.step(batch, active)
        kind = (tuple((name, value.shape, value.dtype) for name, value in batch.items()), tuple(active))
        if kind != self.kind:
            self._begin(kind)
        if self.graph is None:
            if self.warmed < self.warm_up:
                return self._warm_up(batch, active)
            self.graph = self._record(batch, active)
            if self.graph is None:
                return self.step(batch, active)
        for name, value in batch.items():
            self.inputs[name].copy_(value, non_blocking=True)
        for rate, group in zip(self.rates, self.step.optimizer_step.optimizer.param_groups):
            rate.fill_(group['lr'])
        self.graph.replay()
        return self.losses

    def _begin(self, kind: object) -> None:
        self.kind, self.warmed = kind, 0
        self.graph = None
        self.inputs: dict[str, Tensor] = {}
        self.losses: dict[str, Tensor] = {}

    def _warm_up(self, batch: Mapping[str, Tensor], active: Sequence[bool]) -> dict[str, Tensor]:
        self.warmed += 1
        self.side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.side):
            losses = self.step(batch, active)
        torch.cuda.current_stream(self.device).wait_stream(self.side)
        return losses

    def _record(self, batch: Mapping[str, Tensor], active: Sequence[bool]) -> torch.cuda.CUDAGraph | None:
        """Records one step without running it; returns the record, or None if that failed."""
        groups = self.step.optimizer_step.optimizer.param_groups
        floats = [group['lr'] for group in groups]
        self.inputs = {name: value.clone() for name, value in batch.items()}
        self.step.optimizer_step.zero_grad()  # new gradients are allocated from the graph's own memory
        generator = torch.cuda.default_generators[self.device.index]
        random_state = generator.clone_state()
        graph = torch.cuda.CUDAGraph()
        try:
            for group, rate in zip(groups, self.rates):
                group['lr'] = rate  # a tensor, so that every replay reads the current value
            # thread_local, because the loader's thread may pin memory
            with torch.cuda.graph(graph, stream=self.side, capture_error_mode='thread_local'):
                self.losses = self.step(self.inputs, active)
        except RuntimeError as error:
            self.usable = False
            # The recording stopped halfway: the generator still waits for its end, and so does the loss scaling.
            generator.graphsafe_set_state(random_state)
            self.step.optimizer_step.restart_scaling()
            self.warn(f'train.cuda_graph: this step cannot be recorded, so it runs normally: {first_line(error)}')
            return None
        finally:
            for group, value in zip(groups, floats):
                group['lr'] = value
        return graph
