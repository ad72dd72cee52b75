"""The same function over many jobs: in processes, in order, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
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

_JOBS_PER_WORKER = 16  # a process starts in seconds, which fewer jobs do not win back


def run_jobs(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, label: str) -> Iterator[Result]:
    """Yields ``function(job)`` for every job, in the order of the jobs.

    Few jobs run in this process. Otherwise processes are spawned, never forked: torch's threads do not survive a fork.

    Args:
        function: A function that can be pickled.
        jobs: Its arguments, which can be pickled.
        workers: Most processes to use.
        label: What the progress bar says.

    Raises:
        DataError: a process died. What ``function`` raises is raised here, after the jobs in progress.
    """
    workers = min(workers, len(jobs) // _JOBS_PER_WORKER)
    if workers <= 1:
        with _one_thread():
            yield from with_progress(map(function, jobs), len(jobs), label)
        return
    context = multiprocessing.get_context('spawn')
    executor = ProcessPoolExecutor(workers, context, _start_worker)
    try:
        yield from with_progress(executor.map(function, jobs), len(jobs), label)
    except BrokenProcessPool:
        raise DataError(f'{label}: a worker process was killed, perhaps for want of memory. Fewer need less: '
                        f'--workers {workers // 2}') from None
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Sets up a worker: quiet on Ctrl-C, one thread, gone when its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the jobs
    torch.set_num_threads(1)

    def leave_with_parent() -> None:
        multiprocessing.parent_process().join()  # a killed parent cannot stop its workers: they would wait for ever
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


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
