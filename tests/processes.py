"""Processes that tests start, signal and kill."""

from __future__ import annotations

import functools
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from tests.conftest import ROOT

TRAIN = ROOT / 'tools/train.py'
ENVIRONMENT = {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
ADDRESS = 'PISR_TESTS_WARM_PYTHON'  # variable that tells a child where the server listens


def start(*arguments: object, cwd: Path, **variables: object) -> WarmProcess:
    """Starts ``python <arguments>``, forked from a process with the imports done.

    Args:
        arguments: Script, or ``-c`` and code, or ``-m`` and a module; then its arguments.
        cwd: Folder to run in.
        variables: Environment variables to add.
    """
    return WarmProcess([sys.executable, *map(str, arguments)], cwd, env=_environment(variables))


def start_fresh(*arguments: object, cwd: Path, **variables: object) -> subprocess.Popen:
    """Starts ``python <arguments>`` as a user does; for tests of the start itself and of what outlives a parent."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_environment(variables),
        preexec_fn=_take_ctrl_c,
    )


def _environment(variables: Mapping[str, object]) -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT, **{key: str(value) for key, value in variables.items()}}


def _take_ctrl_c() -> None:
    """What a shell starts in the background, the tests perhaps, ignores Ctrl-C and hands that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class WarmProcess:
    """A Python process forked by :mod:`tests.warm_python`, with the interface of ``subprocess.Popen``.

    It leads a session of its own. Its standard output and error are one. It gets SIGTERM when
    this process ends, and SIGKILL ten seconds later.

    Args:
        command: What ``Popen`` takes: the interpreter, then script, code or module, then arguments.
        cwd: Folder to run in.
        stdout: File that gets the output, else a pipe does.
        env: All environment variables.
    """

    def __init__(
        self,
        command: Sequence[str],
        cwd: Path | None = None,
        stdout: IO | None = None,
        env: Mapping[str, str] | None = None,
        **_: object,
    ) -> None:
        self.args, self.returncode = command, None
        environment = {**(env or os.environ)}
        if ADDRESS not in environment:  # else this process was itself forked from the server
            environment[ADDRESS] = _start_warm_python()[0]
        request = {'arguments': command[1:], 'cwd': str(cwd or Path.cwd()), 'environment': environment}
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(environment[ADDRESS])
        reader, writer = os.pipe()
        self.stdout = open(reader)
        with open(writer) as output:
            socket.send_fds(self._connection, [f'{json.dumps(request)}\n'.encode()], [(stdout or output).fileno()])
        self._lines = self._connection.makefile()
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        """The exit code, or minus the signal that ended the process; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end and returns what :meth:`poll` does. Raises TimeoutExpired after ``timeout`` seconds."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._lines.readline())
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Waits for the end and returns what the process wrote."""
        found = []
        reading = threading.Thread(target=lambda: found.append(self.stdout.read()), daemon=True)
        reading.start()
        reading.join(timeout)
        if reading.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait()
        return found[0], None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@functools.cache
def _start_warm_python() -> tuple[str, object, object]:
    """Starts the server, one for each worker of pytest-xdist; it ends with this process.

    Returns:
        Its address, and what has to live as long as it.
    """
    folder = tempfile.TemporaryDirectory()
    address = f'{folder.name}/socket'
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        server = subprocess.Popen(
            [sys.executable, '-m', 'tests.warm_python', str(listener.fileno())],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
        )
    return address, server, folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def start_ranks(count: int, *arguments: object, cwd: Path) -> list[WarmProcess]:
    """Starts training processes as torchrun would, without one that looks after them."""
    meeting = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': free_port(), 'WORLD_SIZE': count}
    return [
        start(TRAIN, *arguments, '--launcher', 'pytorch', cwd=cwd, RANK=rank, LOCAL_RANK=rank, **meeting)
        for rank in range(count)
    ]


def outputs(processes: Iterable[WarmProcess], timeout: float = 300) -> list[str]:
    """What each process wrote, once all have ended; kills them if they have not after ``timeout`` seconds."""
    processes = list(processes)
    try:
        return [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


def written(folder: Path) -> int:
    """How much the runs in a folder have reported so far."""
    size = 0
    for place, _, files in os.walk(folder):  # a run may remove folders meanwhile
        with suppress(FileNotFoundError):
            size += Path(place, 'metrics.jsonl').stat().st_size if 'metrics.jsonl' in files else 0
    return size


def wait_for_progress(processes: Iterable[WarmProcess], folder: Path, more: float = 0.0) -> None:
    """Waits until a run in ``folder`` reports something or has ended, and ``more`` seconds."""
    before, deadline = written(folder), time.monotonic() + 300
    # a resumed run may first cut its report back
    while written(folder) <= before and time.monotonic() < deadline:
        if all(process.poll() is not None for process in processes):
            return
        before = min(before, written(folder))
        time.sleep(0.002)
    time.sleep(more)


def random_seconds(seed: int, longest: float) -> Iterable[float]:
    """Endless waiting times that are the same in every run of a test."""
    generator = random.Random(seed)
    while True:
        yield generator.uniform(0, longest)
