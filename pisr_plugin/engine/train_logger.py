"""Reports a training run while it runs: log lines, a progress bar on a terminal, TensorBoard, metrics.jsonl."""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from pathlib import Path

from basicsr.utils import get_root_logger
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pisr_plugin.utils.files import sync_folder, write_whole
from pisr_plugin.utils.text_files import read_records


class TrainLogger:
    """Reports a stage's losses and metrics.

    Log lines have BasicSR's form, so that scripts that read its logs go on working.

    Args:
        name: The run's name.
        start_iter: Number of iterations already done.
        total_iter: Number of iterations in all.
        folder: The run folder. Records of ``metrics.jsonl`` up to ``start_iter`` are kept, new ones are appended.
        tb_logger: TensorBoard writer, or None.
        active: Whether this rank reports; False on all ranks but one.
    """

    def __init__(
        self, name: str, start_iter: int, total_iter: int, folder: Path, tb_logger=None, active: bool = True
    ) -> None:
        self.name, self.start_iter, self.total_iter = name, start_iter, total_iter
        self.tb_logger, self.active = tb_logger, active
        self.started = time.monotonic()
        self.metrics_file = folder / 'metrics.jsonl'
        self._validated: dict[str, dict[str, float]] = {}
        if active:
            self._go_back()
        on_terminal = active and sys.stderr.isatty()
        self.bar = tqdm(
            total=total_iter, initial=start_iter, unit='it', desc=name, dynamic_ncols=True, disable=not on_terminal
        )
        self._redirect = logging_redirect_tqdm([get_root_logger()]) if on_terminal else None
        if self._redirect:
            self._redirect.__enter__()

    def step(self) -> None:
        """Moves the progress bar by one iteration."""
        self.bar.update()

    def losses(
        self,
        epoch: int,
        current_iter: int,
        lrs: list[float],
        iter_time: float,
        data_time: float,
        losses: dict[str, float],
        cpu_time: float | None = None,
    ) -> None:
        """Reports the losses of an iteration.

        Args:
            epoch: Epoch of the iteration, from 0.
            current_iter: The iteration, from 1.
            lrs: Learning rate of each parameter group.
            iter_time: Mean seconds of an iteration.
            data_time: Mean seconds that an iteration waited for its batch.
            losses: Values by name.
            cpu_time: Mean CPU seconds of an iteration since the last report.
        """
        if not self.active:
            return
        done = current_iter - self.start_iter
        left = (time.monotonic() - self.started) / max(done, 1) * (self.total_iter - current_iter)
        rates = ''.join(f'{lr:.3e},' for lr in lrs)
        terms = ' '.join(f'{key}: {value:.4e}' for key, value in losses.items())
        get_root_logger().info(
            f'[{self.name}][epoch:{epoch:3d}, iter:{current_iter:8,d}, lr:({rates})] '
            f'[eta: {datetime.timedelta(seconds=int(left))}, time (data): {iter_time:.3f} '
            f'({data_time:.3f})] {terms}'
        )
        times = {'time': iter_time, 'data_time': data_time, **({} if cpu_time is None else {'cpu_time': cpu_time})}
        self._write({'iter': current_iter, 'epoch': epoch, 'lr': lrs[0], **times, **losses})
        if self.tb_logger:
            for key, value in losses.items():
                self.tb_logger.add_scalar(f'losses/{key}' if key.startswith('l_') else key, value, current_iter)

    def validated(self, dataset: str) -> dict[str, float] | None:
        """Returns the metrics of a set that an earlier process recorded for ``start_iter``, or None."""
        return self._validated.get(dataset)

    def metrics(self, current_iter: int, dataset: str, values: dict[str, float]) -> None:
        """Records the metrics of one set in metrics.jsonl; the model has logged them."""
        if self.active:
            self._write(
                {'iter': current_iter, 'dataset': dataset, **{key: float(value) for key, value in values.items()}}
            )

    def sync(self) -> None:
        """Waits until the disk holds metrics.jsonl. A state saved next finds the records that lead to it."""
        if self.active and self.metrics_file.exists():
            with open(self.metrics_file, 'ab') as file:
                os.fsync(file.fileno())
            sync_folder(self.metrics_file.parent)

    def close(self) -> None:
        """Closes the progress bar and the TensorBoard file."""
        self.bar.close()
        if self._redirect:
            self._redirect.__exit__(None, None, None)
        if self.tb_logger:
            self.tb_logger.close()

    def _go_back(self) -> None:
        """Drops the records beyond ``start_iter``, which the run will write again."""
        records = [record for record in read_records(self.metrics_file) if isinstance(record.get('iter'), int)]
        kept = [record for record in records if record['iter'] <= self.start_iter]
        text = ''.join(f'{json.dumps(record)}\n' for record in kept).encode()
        if self.metrics_file.exists() and text != self.metrics_file.read_bytes():
            write_whole(self.metrics_file, text)
        for record in kept:
            if record['iter'] == self.start_iter and isinstance(record.get('dataset'), str):
                values = {key: value for key, value in record.items() if key not in ('iter', 'dataset')}
                self._validated[record['dataset']] = values

    def _write(self, record: dict) -> None:
        with open(self.metrics_file, 'a', encoding='utf-8') as file:
            file.write(json.dumps(record) + '\n')
