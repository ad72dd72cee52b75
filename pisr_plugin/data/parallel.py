"""The same function over many jobs: in processes, in order, with a progress bar."""

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

from ..errors import DataError

Job = TypeVar('Job')
Result = TypeVar('Result')

_START_SECONDS = 10  # a worker imports torch and BasicSR before it does anything


def run_jobs(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, label: str) -> Iterator[Result]:
    """Yields ``function(job)`` for every job, in the order of the jobs, and tells how many are done.

    Begins in this process, and goes on in others once it is clear that starting them saves time.

    Args:
        function: A function that can be pickled.
        jobs: Its arguments, which can be pickled.
        workers: Most processes to use.
        label: What the progress bar says.

    Raises:
        DataError: a process died. What ``function`` raises is raised here, after the jobs in progress.
    """
    try:
        yield from with_progress(_results(function, jobs, workers), len(jobs), label)
    except BrokenProcessPool:
        raise DataError(
            f'{label}: a worker process was killed, perhaps for want of memory. Fewer need less: '
            f'--workers {workers // 2}'
        ) from None


def _results(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    done, started = 0, 0.0
    with _one_thread():
        while done < len(jobs):
            yield function(jobs[done])
            done += 1
            if done == 1:
                started = time.monotonic()  # the first job is no measure: it also warms up
                continue
            seconds_left = (time.monotonic() - started) / (done - 1) * (len(jobs) - done)
            if workers > 1 and seconds_left > 2 * _START_SECONDS:
                break
    if done == len(jobs):
        return
    # Spawned, never forked: torch's threads do not survive a fork.
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'), _start_worker)
    try:
        yield from executor.map(function, jobs[done:])
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Sets up a worker: quiet on Ctrl-C, one thread, gone when its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the jobs
    torch.set_num_threads(1)
    leave_with_parent()


def leave_with_parent() -> None:
    """Ends this process as soon as the one that started it is gone: a killed parent cannot stop its workers."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps torch to one thread: on a busy machine several that wait for each other take five times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def with_progress(items: Iterable[Job], total: int, label: str) -> Iterator[Job]:
    """Passes items on and tells how many: a bar on a terminal, elsewhere a line for every tenth part."""
    if sys.stderr.isatty():
        yield from tqdm(items, desc=label, total=total, unit='', dynamic_ncols=True)
        return
    for done, item in enumerate(items, 1):
        yield item
        if done * 10 // total > (done - 1) * 10 // total:
            print(f'{label}: {done}/{total}', file=sys.stderr, flush=True)
