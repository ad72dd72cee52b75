"""Trains the stages of a plan: each in a process of its own, several at once, on this machine or a cluster."""

from __future__ import annotations

import ctypes
import itertools
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from pisr_plugin.engine.stages import Stage
from pisr_plugin.engine.stopping import Stop
from pisr_plugin.errors import InstallError, PISRError

_POLL_SECONDS = 0.5


class Job(Protocol):
    """A stage in training."""

    def poll(self) -> int | None:
        """The exit code, None while it runs."""

    def stop(self) -> None:
        """Asks it to save and end."""


class LocalJobs:
    """Starts processes on this machine, spread over its GPUs; on a CPU they share the cores.

    Args:
        at_once: How many run at once.
        folder: Where each one's output is kept, as ``<stage>.log``.
    """

    def __init__(self, at_once: int, folder: Path) -> None:
        self.folder = folder
        self.devices = itertools.cycle(range(torch.cuda.device_count())) if torch.cuda.is_available() else None
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        self.threads = max(1, cores // at_once)

    def start(self, name: str, command: Sequence[str]) -> Job:
        """Starts a command; it ends when this process does."""
        environment = {'OMP_NUM_THREADS': str(self.threads), **os.environ}
        if self.devices and 'CUDA_VISIBLE_DEVICES' not in os.environ:
            environment['CUDA_VISIBLE_DEVICES'] = str(next(self.devices))
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f'{name}.log', 'ab') as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=_end_with_parent if platform.system() == 'Linux' else None,
            )
        process.stop = process.terminate
        return process


class ClusterJobs:
    """Starts jobs through submitit, on SLURM or wherever else it can.

    Args:
        folder: Where submitit keeps scripts and logs.
        cluster: ``slurm``, or ``local`` to try it out.
        parameters: What submitit's ``update_parameters`` takes, such as ``slurm_partition=gpu``.

    Raises:
        InstallError: submitit is not installed.
        PISRError: the cluster is not reachable, or a parameter is unknown.
    """

    def __init__(self, folder: Path, cluster: str, parameters: dict[str, str | int]) -> None:
        try:
            import submitit
        except ImportError:
            raise InstallError('--cluster needs submitit: pip install submitit') from None
        self.folder = folder
        try:
            self.executor = submitit.AutoExecutor(folder, cluster=cluster)
            self.executor.update_parameters(**parameters)
        except (RuntimeError, NameError, TypeError) as error:
            raise PISRError(f'--cluster {cluster}: {error}') from None
        self.function = submitit.helpers.CommandFunction

    def start(self, name: str, command: Sequence[str]) -> Job:
        """Submits a command."""
        self.executor.update_parameters(name=name)
        return _ClusterJob(self.executor.submit(self.function(list(command), cwd=str(Path.cwd()))))


class _ClusterJob:
    def __init__(self, job) -> None:
        self.job = job

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        return 0 if self.job.exception() is None else 1

    def stop(self) -> None:
        self.job.cancel()


def train_plan(
    stages: Iterable[Stage],
    recipe: Path,
    jobs: LocalJobs | ClusterJobs,
    at_once: int,
    plugins: Iterable[str] = (),
    tell: Callable[[str], None] = print,
) -> bool:
    """Trains stages, each as soon as what it needs is there.

    A stage that fails takes with it only those that need it. Ctrl-C and SIGTERM stop the stages in training, which
    save; the same call goes on with them.

    Args:
        stages: What to train.
        recipe: The file that holds them, see :func:`~pisr_plugin.ablation.plan.write_recipe`.
        jobs: Where stages run.
        at_once: How many run at once.
        plugins: Modules to import first.
        tell: Gets a line for each event.

    Returns:
        False when a signal ended it.

    Raises:
        PISRError: stages failed; all others are finished.
    """
    waiting = list(stages)
    total, done, stopping = len(waiting), 0, False
    running: dict[str, tuple[Job, float]] = {}
    failed: list[str] = []
    with Stop() as stop, stop.deferred():
        while True:
            startable = (
                [] if stop.asked else [stage for stage in waiting if all(p.is_file() for p in stage.needs.values())]
            )
            for stage in startable[: at_once - len(running)]:
                waiting.remove(stage)
                running[stage.name] = (jobs.start(stage.name, _command(recipe, stage, plugins)), time.monotonic())
            if stop.asked and not stopping:
                stopping = True
                tell('Stopping; the stages in training save first.')
                for job, _ in running.values():
                    job.stop()
            for name, (job, started) in list(running.items()):
                code = job.poll()
                if code is None:
                    continue
                del running[name]
                if code == 0:
                    done += 1
                    tell(f'{name}: finished, {(time.monotonic() - started) / 60:.1f} min ({done} of {total})')
                elif not stopping:
                    failed.append(name)
                    tell(f'{name}: failed with exit code {code}')
            if not running and (stop.asked or not startable):
                break
            time.sleep(_POLL_SECONDS)
    if failed:
        raise PISRError(_complaint(failed, [stage.name for stage in waiting], jobs.folder))
    return not stop.asked


def _command(recipe: Path, stage: Stage, plugins: Iterable[str]) -> list[str]:
    command = [sys.executable, '-c', 'from pisr_plugin.engine.train import main; raise SystemExit(main())']
    command += ['-opt', str(recipe), '--stage', stage.name, '--auto_resume']
    return command + [word for plugin in plugins for word in ('--plugin', plugin)]


def _complaint(failed: list[str], left: list[str], folder: Path) -> str:
    lines = [f'{len(failed)} stages failed; the end of what each said:']
    for name in failed:
        log = folder / f'{name}.log'
        said = log.read_text(errors='replace').strip().splitlines()[-3:] if log.is_file() else []
        lines += [f'  {name} ({log}):', *(f'    {line}' for line in said)]
    if left:
        lines.append(f'  Not trained for want of these: {", ".join(left)}')
    return '\n'.join([*lines, 'Run the same command again when that is mended.'])


def _end_with_parent() -> None:
    """Has the system send SIGTERM to this process, which then saves, when its parent dies (Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
