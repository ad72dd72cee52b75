"""Processes that train a student stage together, in turns with other such groups."""

from __future__ import annotations

import logging
import resource
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from basicsr.utils import get_root_logger
from torch import distributed as dist
from torch import multiprocessing

from benchmarks.harness import Settings
from benchmarks.workload import build, iterate, make_batch, stage_options
from pisr_plugin.utils.malloc import keep_freed_memory


class Cost(NamedTuple):
    """What one step takes of a process."""

    wall: float
    cpu: float
    page_faults: float


class Group:
    """Ranks that train when asked, and sleep while another group has its turn.

    On the CPU they use gloo and have one thread each; on CUDA they use NCCL and have one GPU each.

    Args:
        ranks: How many.
        settings: Sizes and device.
        meeting: A path where they find each other; must not exist.
        keep_freed: Whether they keep memory that they free.
    """

    def __init__(self, ranks: int, settings: Settings, meeting: Path, keep_freed: bool = True) -> None:
        context = multiprocessing.get_context('spawn')
        pairs = [context.Pipe() for _ in range(ranks)]
        self.pipes = [ours for ours, _ in pairs]
        self.processes = [
            context.Process(target=_work, args=(rank, ranks, settings, meeting, keep_freed, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process, (_, theirs) in zip(self.processes, pairs):
            process.start()
            theirs.close()  # so that a rank that dies is seen as an end of file

    def train(self, steps: int) -> Cost:
        """Makes all ranks take ``steps`` steps; returns what one costs the rank that it costs most."""
        for pipe in self.pipes:
            pipe.send(steps)
        return Cost(*(max(values) / steps for values in zip(*[pipe.recv() for pipe in self.pipes])))

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self.pipes:
            pipe.send(0)
        for process in self.processes:
            process.join()


def take_turns(groups: dict[object, Group], settings: Settings, steps: int) -> dict[object, list[Cost]]:
    """Lets groups train in turn, forth and back, after a warm-up; ends them afterwards."""
    costs: dict[object, list[Cost]] = {name: [] for name in groups}
    for group in groups.values():
        group.train(2)
    order = list(groups)
    for _ in range(settings.rounds):
        for name in order:
            costs[name].append(groups[name].train(steps))
        order.reverse()
    for group in groups.values():
        group.close()
    return costs


def _work(rank: int, ranks: int, settings: Settings, meeting: Path, keep_freed: bool, pipe: Connection) -> None:
    torch.set_num_threads(1)
    if keep_freed:
        keep_freed_memory()
    get_root_logger(log_level=logging.WARNING)
    on_gpu = settings.device == 'cuda'
    if on_gpu:
        torch.cuda.set_device(rank)
        torch.backends.cudnn.benchmark = True  # as training
    backend = 'cpu:gloo,cuda:nccl' if on_gpu else 'gloo'
    dist.init_process_group(backend, init_method=f'file://{meeting}', rank=rank, world_size=ranks)
    opt = stage_options('pisr_fsrcnn_x2', 'student', settings)
    opt['dist'] = ranks > 1
    model = build(opt)
    batch = {name: value.to(model.device) for name, value in make_batch(opt).items()}
    current_iter = 0
    while steps := pipe.recv():
        dist.barrier()
        before = _spent()
        for _ in range(steps):
            current_iter += 1
            iterate(model, batch, current_iter)
        if on_gpu:
            torch.cuda.synchronize()
        pipe.send([after - start for after, start in zip(_spent(), before)])
    dist.barrier()
    dist.destroy_process_group()


def _spent() -> Cost:
    return Cost(time.perf_counter(), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
