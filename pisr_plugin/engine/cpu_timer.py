"""CPU time of training alone, which other processes of the machine and validation do not count in."""

from __future__ import annotations

import time
from pathlib import Path

from pisr_plugin.utils.text_files import read_records


class CpuTimer:
    """Sums up the CPU seconds of this process, its threads included, between :meth:`start` and :meth:`record`."""

    def __init__(self) -> None:
        self._seconds, self._count = 0.0, 0
        self.start()

    def start(self) -> None:
        """Begins an iteration."""
        self._started = time.process_time()

    def record(self) -> None:
        """Ends an iteration."""
        self._seconds += time.process_time() - self._started
        self._count += 1

    def mean(self) -> float:
        """Seconds per iteration since the last call."""
        mean = self._seconds / max(self._count, 1)
        self._seconds, self._count = 0.0, 0
        return mean


def cpu_seconds(folder: Path) -> float:
    """Returns the CPU seconds of all iterations of a run.

    Args:
        folder: The run folder. Iterations after the last report in its ``metrics.jsonl`` do not count.
    """
    seconds, last = 0.0, 0
    for record in read_records(folder / 'metrics.jsonl'):
        if 'cpu_time' in record:  # a mean over the iterations since the last report
            seconds, last = seconds + record['cpu_time'] * (record['iter'] - last), record['iter']
    return seconds
