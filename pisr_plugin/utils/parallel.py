"""Runs a function over many jobs: in processes, in order, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import torch
from tqdm import tqdm

from pisr_plugin.utils.errors import DataError
from pisr_plugin.utils.logging import notice

Job = TypeVar('Job')
Result = TypeVar('Result')

_START_SECONDS = 10  # a worker first imports torch and BasicSR


def run_jobs(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, label: str) -> Iterator[Result]:
    """Yields ``function(job)`` for every job, in the order of the jobs, and shows how many are done.

    The first jobs run in this process; the others in worker processes if the time saved exceeds that of starting them.

    Args:
        function: A function that can be pickled.
        jobs: Arguments of the calls, which can be pickled.
        workers: Largest number of processes, at least 1.
        label: Text beside the progress bar.

    Raises:
        DataError: a process died. An error of ``function`` is raised here, after the jobs in progress.
    """
    try:
        yield from with_progress(_results(function, jobs, workers), len(jobs), label)
    except BrokenProcessPool:
        raise DataError(
            f'{label}: a worker process was killed, perhaps because memory ran out (found --workers {workers}). '
            f'Expected fewer, such as --workers {max(1, workers // 2)}.'
        ) from None


def _results(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    done, started = 0, 0.0
    with _one_thread():
        while done < len(jobs):
            yield function(jobs[done])
            done += 1
            if done == 1:
                started = time.monotonic()  # the first job also warms up, so its time means nothing
                continue
            seconds_left = (time.monotonic() - started) / (done - 1) * (len(jobs) - done)
            if workers > 1 and seconds_left > 2 * _START_SECONDS:
                break
    if done == len(jobs):
        return
    # Spawned, not forked: torch's threads do not survive a fork.
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'), _start_worker)
    try:
        yield from executor.map(function, jobs[done:])
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Sets up a worker, which ignores Ctrl-C, uses one thread and ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the jobs
    torch.set_num_threads(1)
    leave_with_parent()


def leave_with_parent() -> None:
    """Ends this process as soon as its parent has ended, because a killed parent cannot stop its workers."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent  # this is a process that multiprocessing started
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limits torch to one thread: on a busy machine several threads wait for each other and take five times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def available_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def with_progress(items: Iterable[Job], total: int, label: str) -> Iterator[Job]:
    """Yields the items and shows how many: a progress bar on a terminal, else a line for every tenth of them."""
    if sys.stderr.isatty():
        yield from tqdm(items, desc=label, total=total, unit='', dynamic_ncols=True)
        return
    for done, item in enumerate(items, 1):
        yield item
        if done * 10 // total > (done - 1) * 10 // total:
            notice(f'{label}: {done}/{total}')
