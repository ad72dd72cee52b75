"""Start and end distributed runs, on GPUs (NCCL) and CPUs (gloo) alike."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed as dist

from pisr_plugin.engine.peers import Peers, RankError, shared_store
from pisr_plugin.errors import OptionsError, PISRError

T = TypeVar('T')


@contextmanager
def process_group(
    launcher: str, backend: str | None = None, port: int | None = None, timeout: float | None = None
) -> Iterator[None]:
    """Joins the processes that a launcher started, and parts from them together.

    BasicSR's own initialisation needs a GPU, and for SLURM runs a shell command made from environment variables.

    Args:
        launcher: ``none``; ``pytorch`` for torchrun; ``slurm`` for srun, one task per GPU.
        backend: ``nccl`` or ``gloo`` for tensors on a GPU; by default NCCL where there is a GPU. What ranks tell each
            other about the run goes over gloo, so that no device has to be waited for.
        port: Where SLURM tasks meet, 29500 by default.
        timeout: Seconds after which a rank no longer waits for the others; by default torch's, 10 minutes or more.

    Raises:
        OptionsError: the launcher's environment variables are missing.
        RankError: another rank has ended; its text is empty when another rank has told it already.
        PISRError: what went wrong in the block; its text is empty when another rank has told the same already.
    """
    if launcher == 'none':
        yield
        return
    local_rank = _slurm(os.environ, port) if launcher == 'slurm' else _torchrun(os.environ)
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    _meet(backend, timedelta(seconds=timeout) if timeout else None)
    try:
        if dist.get_world_size() == 1:
            yield
        else:
            with _watching():
                yield
                dist.barrier()  # a process that leaves early aborts the others
    finally:
        dist.destroy_process_group()


@contextmanager
def _watching() -> Iterator[None]:
    peers = Peers(shared_store, dist.get_rank(), dist.get_world_size())
    try:
        yield
    except BaseException as error:
        explained = peers.explain(error)
        if explained is error:
            raise
        raise explained from None
    finally:
        peers.leave()


def from_first_rank(function: Callable[[], T]) -> T:
    """Calls ``function`` on rank 0 alone and gives its result to all ranks.

    Raises:
        PISRError: what ``function`` raised, on all ranks.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return function()
    answer: list = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = function()
        except PISRError as error:
            answer[1] = error
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def _meet(backend: str | None, timeout: timedelta | None) -> None:
    if backend is None:
        backend = 'nccl' if torch.cuda.is_available() else 'gloo'
    where = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}'
    try:
        dist.init_process_group('cpu:gloo,cuda:nccl' if backend == 'nccl' else backend, timeout=timeout)
    except (dist.DistError, ValueError) as error:
        raise RankError(
            f'rank {os.environ["RANK"]} of {os.environ["WORLD_SIZE"]} did not meet the others at {where} '
            f'(MASTER_ADDR, MASTER_PORT): {str(error).splitlines()[0]}'
        ) from None


def _torchrun(environment: Mapping[str, str]) -> int:
    missing = [
        name for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT') if name not in environment
    ]
    if missing:
        raise OptionsError(
            f'--launcher pytorch: {", ".join(missing)} not set. Start with torchrun --nproc_per_node N '
            'tools/train.py -opt RECIPE --launcher pytorch'
        )
    return int(environment['LOCAL_RANK'])


def _slurm(environment: Mapping[str, str], port: int | None) -> int:
    missing = [
        name for name in ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID', 'SLURM_NODELIST') if name not in environment
    ]
    if missing:
        raise OptionsError(f'--launcher slurm: {", ".join(missing)} not set. Start with srun.')
    if 'MASTER_ADDR' not in environment:
        os.environ['MASTER_ADDR'] = _first_host(environment['SLURM_NODELIST'])
    os.environ.setdefault('MASTER_PORT', str(port or 29500))
    os.environ.update(RANK=environment['SLURM_PROCID'], WORLD_SIZE=environment['SLURM_NTASKS'])
    return int(environment['SLURM_LOCALID'])


def _first_host(nodes: str) -> str:
    try:
        found = subprocess.run(['scontrol', 'show', 'hostnames', nodes], check=True, text=True, capture_output=True)
        return found.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise OptionsError(
            f'--launcher slurm: scontrol does not tell the first host of SLURM_NODELIST {nodes!r} ({error}). '
            'Set MASTER_ADDR.'
        ) from None
