"""Start and end distributed runs, on GPUs (NCCL) and CPUs (gloo) alike."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import distributed as dist

from pisr_plugin.errors import OptionsError


@contextmanager
def process_group(launcher: str, backend: str | None = None, port: int | None = None) -> Iterator[None]:
    """Joins the processes that a launcher started, and parts from them together.

    BasicSR's own initialisation needs a GPU, and for SLURM runs a shell command made from environment variables.

    Args:
        launcher: ``none``; ``pytorch`` for torchrun; ``slurm`` for srun, one task per GPU.
        backend: ``nccl`` or ``gloo``; by default NCCL where there is a GPU.
        port: Where SLURM tasks meet, 29500 by default.

    Raises:
        OptionsError: the launcher's environment variables are missing.
    """
    if launcher == 'none':
        yield
        return
    local_rank = _slurm(os.environ, port) if launcher == 'slurm' else _torchrun(os.environ)
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    dist.init_process_group(backend or ('nccl' if torch.cuda.is_available() else 'gloo'))
    try:
        yield
        dist.barrier()  # a process that leaves early aborts the others
    finally:
        dist.destroy_process_group()


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
        hosts = subprocess.run(
            ['scontrol', 'show', 'hostnames', environment['SLURM_NODELIST']], check=True, text=True, capture_output=True
        )
        os.environ['MASTER_ADDR'] = hosts.stdout.split()[0]
    os.environ.setdefault('MASTER_PORT', str(port or 29500))
    os.environ.update(RANK=environment['SLURM_PROCID'], WORLD_SIZE=environment['SLURM_NTASKS'])
    return int(environment['SLURM_LOCALID'])
