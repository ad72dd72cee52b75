"""Trains the stages of a plan: each in a process of its own, several at once, on this machine or a cluster."""

from __future__ import annotations

import ctypes
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

from pisr_plugin.config.stages import Stage
from pisr_plugin.engine.signals import GracefulStop
from pisr_plugin.utils.errors import InstallError, PISRError
from pisr_plugin.utils.parallel import available_cores

_POLL_SECONDS = 0.5


class Job(Protocol):
    """A stage in training; a process of this machine is one."""

    def poll(self) -> int | None:
        """Returns the exit code; None while the stage trains."""

    def terminate(self) -> None:
        """Asks the stage to save and end."""


class LocalJobs:
    """Starts processes on this machine, each on the GPU with the fewest; on a CPU they share the cores.

    Args:
        at_once: Number of processes that run at once, at least 1.
        folder: Folder for their output, ``<stage>.log``.
    """

    def __init__(self, at_once: int, folder: Path) -> None:
        self.folder = folder
        self.on_gpu: dict[int, list[subprocess.Popen]] = {gpu: [] for gpu in range(torch.cuda.device_count())}
        self.threads = max(1, available_cores() // at_once)

    def start(self, name: str, command: Sequence[str]) -> Job:
        """Starts a command; it is stopped when this process ends.

        Args:
            name: The stage's name.
            command: Program and arguments.
        """
        environment = {'OMP_NUM_THREADS': str(self.threads), **os.environ}
        gpu = self._free_gpu()
        if gpu is not None:
            chosen = os.environ.get('CUDA_VISIBLE_DEVICES')
            environment['CUDA_VISIBLE_DEVICES'] = chosen.split(',')[gpu].strip() if chosen else str(gpu)
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
        if gpu is not None:
            self.on_gpu[gpu].append(process)
        return process

    def _free_gpu(self) -> int | None:
        """Returns the GPU on which the fewest processes run; None without GPUs."""
        for gpu, processes in self.on_gpu.items():
            self.on_gpu[gpu] = [process for process in processes if process.poll() is None]
        return min(self.on_gpu, key=lambda gpu: len(self.on_gpu[gpu]), default=None)


class ClusterJobs:
    """Starts jobs through submitit, on SLURM or another cluster that it knows.

    Args:
        folder: Folder for submitit's scripts and logs.
        cluster: ``slurm``, or ``local`` to try it out.
        parameters: Arguments of submitit's ``update_parameters``, such as ``slurm_partition=gpu``.

    Raises:
        InstallError: submitit is not installed.
        PISRError: The cluster cannot be reached, or a parameter is unknown.
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

    def terminate(self) -> None:
        self.job.cancel()


def train_plan(
    stages: Iterable[Stage],
    recipe: Path,
    jobs: LocalJobs | ClusterJobs,
    at_once: int,
    plugins: Iterable[str] = (),
    tell: Callable[[str], None] = print,
) -> bool:
    """Trains stages, each as soon as the checkpoints that it needs exist.

    When a stage fails, only the stages that need it are left out. Ctrl-C and SIGTERM stop the stages in training, which
    save; the same call goes on with them.

    Args:
        stages: The stages to train.
        recipe: The recipe file that holds them, see :func:`~pisr_plugin.ablation.plan.write_recipe`.
        jobs: Starts a stage.
        at_once: Number of stages that train at once, at least 1.
        plugins: Modules that each stage imports first.
        tell: Called with one line for each event.

    Returns:
        False when a signal ended it.

    Raises:
        PISRError: Stages failed; all others that do not need them are finished.
    """
    waiting = list(stages)
    total, done, stopping = len(waiting), 0, False
    running: dict[str, tuple[Job, float]] = {}
    failed: list[str] = []
    with GracefulStop() as stop, stop.deferred():
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
                    job.terminate()
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
    # Python puts the current folder first where modules are looked for; there a file could replace a package.
    code = (
        f'import sys; sys.path[:] = [*filter(None, sys.path), {str(Path(__file__).parents[2])!r}]; '
        'from pisr_plugin.cli.train import main; raise SystemExit(main())'
    )
    command = [sys.executable, '-c', code]
    command += ['-opt', str(recipe), '--stage', stage.name, '--auto_resume']
    return command + [word for plugin in plugins for word in ('--plugin', plugin)]


def _complaint(failed: list[str], left: list[str], folder: Path) -> str:
    lines = [f'{len(failed)} stages failed; the end of what each said:']
    for name in failed:
        log = folder / f'{name}.log'
        said = log.read_text(errors='replace').strip().splitlines()[-3:] if log.is_file() else []
        lines += [f'  {name} ({log}):', *(f'    {line}' for line in said)]
    if left:
        lines.append(f'  Not trained, because they need those: {", ".join(left)}')
    return '\n'.join([*lines, 'Correct that, then run the same command again.'])


def _end_with_parent() -> None:
    """Makes Linux send SIGTERM to this process when its parent dies; the process then saves and ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
