"""Starts and ends distributed runs, on GPUs (NCCL) and CPUs (gloo)."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed as dist

from pisr_plugin.engine.watchdog import RankError, RankWatchdog, shared_store
from pisr_plugin.utils.errors import OptionsError, PISRError, first_line
from pisr_plugin.utils.logging import notice

T = TypeVar('T')


@contextmanager
def process_group(
    launcher: str, backend: str | None = None, port: int | None = None, timeout: float | None = None
) -> Iterator[None]:
    """Joins the processes that a launcher started, and leaves them together with the others.

    BasicSR's own initialisation needs a GPU, and runs a shell command made from environment variables under SLURM.

    Args:
        launcher: ``none``; ``pytorch`` for torchrun; ``slurm`` for srun, one task per GPU.
        backend: ``nccl`` or ``gloo``, for tensors on a GPU; by default NCCL where there is a GPU. Without a GPU it is
            always gloo. Tensors on the CPU go through gloo, so that no rank waits for its device.
        port: Port at which SLURM tasks meet, 29500 by default.
        timeout: Seconds that a rank waits for the others; by default torch's, 10 minutes or more.

    Raises:
        OptionsError: The launcher's environment variables are missing or contradict each other.
        RankError: Another rank has ended. Its text is empty when another rank prints the same message.
        PISRError: What went wrong in the block. Its text is empty when another rank prints the same message.
    """
    if launcher == 'none':
        yield
        return
    if launcher == 'slurm':
        _translate_slurm(port)
    local_rank = _check_environment(f'--launcher {launcher}')
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
    watchdog = RankWatchdog(shared_store, dist.get_rank(), dist.get_world_size())
    try:
        yield
    except BaseException as error:
        explained = watchdog.explain(error)
        if explained is error:
            raise
        raise explained from None
    finally:
        watchdog.leave()


def from_first_rank(function: Callable[[], T]) -> T:
    """Calls ``function`` on rank 0 only and returns its result on all ranks.

    Raises:
        PISRError: What ``function`` raised. All ranks raise it.
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
    on_gpu = torch.cuda.is_available()
    if backend == 'nccl' and not on_gpu and os.environ['RANK'] == '0':
        notice('dist_params.backend: nccl needs a GPU, and there is none. The ranks use gloo.')
    backend = (backend or 'nccl') if on_gpu else 'gloo'
    where = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}'
    try:
        dist.init_process_group('cpu:gloo,cuda:nccl' if backend == 'nccl' else backend, timeout=timeout)
    except (dist.DistError, ValueError) as error:
        raise RankError(
            f'rank {os.environ["RANK"]} of {os.environ["WORLD_SIZE"]} did not meet the others at {where} '
            f'(MASTER_ADDR, MASTER_PORT): {first_line(error)}'
        ) from None


_EXPECTED = {  # environment variable: smallest and largest value
    'RANK': (0, 10**6),
    'WORLD_SIZE': (1, 10**6),
    'LOCAL_RANK': (0, 10**6),
    'MASTER_PORT': (1, 65535),
}


def _check_environment(flag: str) -> int:
    """Checks what torch reads from the environment, where it would wait for ranks that cannot come.

    Args:
        flag: The flag that asked for the launcher, for messages.

    Returns:
        The local rank.
    """
    missing = [name for name in (*_EXPECTED, 'MASTER_ADDR') if name not in os.environ]
    if missing:
        raise OptionsError(
            f'{flag}: {", ".join(missing)} not set. Start with torchrun --no-python --nproc_per_node N pisr-train '
            f'-opt RECIPE {flag}'
        )
    values = {}
    for name, (least, most) in _EXPECTED.items():
        text = os.environ[name]
        if not (text.isascii() and text.isdecimal() and len(text) < 8 and least <= int(text) <= most):
            raise OptionsError(f'{flag}: {name} (found {text!r}). Expected a whole number from {least} to {most}.')
        values[name] = int(text)
    if values['RANK'] >= values['WORLD_SIZE']:
        raise OptionsError(
            f'{flag}: RANK (found {values["RANK"]}). Expected 0 to {values["WORLD_SIZE"] - 1}, because WORLD_SIZE is '
            f'{values["WORLD_SIZE"]}.'
        )
    try:
        socket.getaddrinfo(os.environ['MASTER_ADDR'], values['MASTER_PORT'])
    except (OSError, UnicodeError) as error:
        raise OptionsError(
            f'{flag}: MASTER_ADDR (found {os.environ["MASTER_ADDR"]!r}) cannot be resolved: {error}. Expected the name '
            'or address of the host of rank 0.'
        ) from None
    return values['LOCAL_RANK']


def _translate_slurm(port: int | None) -> None:
    """Sets the variables that torch reads from those that srun sets."""
    names = {'RANK': 'SLURM_PROCID', 'WORLD_SIZE': 'SLURM_NTASKS', 'LOCAL_RANK': 'SLURM_LOCALID'}
    missing = [name for name in (*names.values(), 'SLURM_NODELIST') if name not in os.environ]
    if missing:
        raise OptionsError(f'--launcher slurm: {", ".join(missing)} not set. Start with srun.')
    if 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _first_host(os.environ['SLURM_NODELIST'])
    os.environ.setdefault('MASTER_PORT', str(port or 29500))
    os.environ.update({name: os.environ[source] for name, source in names.items()})


def _first_host(nodes: str) -> str:
    try:
        found = subprocess.run(['scontrol', 'show', 'hostnames', nodes], check=True, text=True, capture_output=True)
        return found.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise OptionsError(
            f'--launcher slurm: scontrol does not name the first host of SLURM_NODELIST {nodes!r} ({error}). '
            'Set MASTER_ADDR.'
        ) from None
