"""Iterations per second of a student stage over gloo ranks on one machine, one thread each, the same batch per rank."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from basicsr.utils import get_root_logger
from torch import distributed as dist
from torch import multiprocessing

from benchmarks.harness import Settings
from benchmarks.machine import tune_allocator
from benchmarks.report import Table
from benchmarks.workload import build, iterate, make_batch, stage_options

_RANKS = (1, 2)


class Group:
    """Processes that train together when asked to, and sleep while another group has its turn."""

    def __init__(self, ranks: int, settings: Settings, folder: Path) -> None:
        self.ranks = ranks
        context = multiprocessing.get_context('spawn')
        pairs = [context.Pipe() for _ in range(ranks)]
        self.pipes = [ours for ours, _ in pairs]
        self.processes = [
            context.Process(target=_work, args=(rank, ranks, settings, folder / f'{ranks}', theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process, (_, theirs) in zip(self.processes, pairs):
            process.start()
            theirs.close()  # so that a rank that dies is seen as an end of file

    def seconds(self, steps: int) -> float:
        """Wall seconds of one step, by the slowest rank; all ranks take ``steps`` of them."""
        for pipe in self.pipes:
            pipe.send(steps)
        return max(pipe.recv() for pipe in self.pipes) / steps

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self.pipes:
            pipe.send(0)
        for process in self.processes:
            process.join()


def run(settings: Settings) -> list[Table]:
    """One table; ``efficiency`` is the samples per second of n ranks over n times those of one."""
    steps = 3 if settings.quick else 5
    with tempfile.TemporaryDirectory() as folder:
        groups = {ranks: Group(ranks, settings, Path(folder)) for ranks in _RANKS}
        seconds: dict[int, list[float]] = {ranks: [] for ranks in groups}
        for group in groups.values():
            group.seconds(2)
        for turn in range(settings.rounds):
            for ranks in sorted(groups, reverse=bool(turn % 2)):
                seconds[ranks].append(groups[ranks].seconds(steps))
        for group in groups.values():
            group.close()
    rows = []
    for ranks in _RANKS:
        over_one = statistics.median(ranks * one / own for one, own in zip(seconds[1], seconds[ranks]))
        rate = 1 / statistics.median(seconds[ranks])
        rows.append(
            {
                'ranks': ranks,
                'iterations_per_s': rate,
                'samples_per_s_times_one_rank': over_one,
                'efficiency': over_one / ranks,
            }
        )
    return [Table('Student stage, FSRCNN x2, over gloo ranks (wall time)', rows)]


def _work(rank: int, ranks: int, settings: Settings, meeting: Path, pipe: Connection) -> None:
    torch.set_num_threads(1)
    tune_allocator()
    get_root_logger(log_level=logging.WARNING)
    dist.init_process_group('gloo', init_method=f'file://{meeting}', rank=rank, world_size=ranks)
    opt = stage_options('pisr_fsrcnn_x2', 'student', settings)
    opt['dist'] = ranks > 1
    model, batch = build(opt), make_batch(opt)
    current_iter = 0
    while steps := pipe.recv():
        dist.barrier()
        start = time.perf_counter()
        for _ in range(steps):
            current_iter += 1
            iterate(model, batch, current_iter)
        pipe.send(time.perf_counter() - start)
    dist.barrier()
    dist.destroy_process_group()
