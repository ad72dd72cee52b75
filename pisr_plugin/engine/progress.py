"""What a training run tells while it runs: log lines, a bar on a terminal, TensorBoard and metrics.jsonl."""

from __future__ import annotations

import datetime
import json
import sys
import time
from pathlib import Path

from basicsr.utils import get_root_logger
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pisr_plugin.files import write_whole


class Progress:
    """Reports a stage's losses and metrics.

    Lines have BasicSR's form, so that scripts that read its logs go on working. On a terminal a bar shows the time
    left; elsewhere there are only lines.

    Args:
        name: The run's name.
        start_iter: Iterations already done.
        total_iter: Iterations in all.
        folder: The run folder. Lines of ``metrics.jsonl`` up to ``start_iter`` are kept and new ones appended.
        tb_logger: TensorBoard writer or None.
        active: False on ranks that stay silent.
    """

    def __init__(
        self, name: str, start_iter: int, total_iter: int, folder: Path, tb_logger=None, active: bool = True
    ) -> None:
        self.name, self.start_iter, self.total_iter = name, start_iter, total_iter
        self.tb_logger, self.active = tb_logger, active
        self.started = time.monotonic()
        self.metrics_file = folder / 'metrics.jsonl'
        self._validated: dict[str, dict[str, float]] = {}
        if active and self.metrics_file.exists():
            self._go_back()
        on_terminal = active and sys.stderr.isatty()
        self.bar = tqdm(
            total=total_iter, initial=start_iter, unit='it', desc=name, dynamic_ncols=True, disable=not on_terminal
        )
        self._redirect = logging_redirect_tqdm([get_root_logger()]) if on_terminal else None
        if self._redirect:
            self._redirect.__enter__()

    def step(self) -> None:
        """Counts one iteration."""
        self.bar.update()

    def losses(
        self,
        epoch: int,
        current_iter: int,
        lrs: list[float],
        iter_time: float,
        data_time: float,
        losses: dict[str, float],
    ) -> None:
        """Reports the latest iteration."""
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
        self._write(
            {'iter': current_iter, 'epoch': epoch, 'lr': lrs[0], 'time': iter_time, 'data_time': data_time, **losses}
        )
        if self.tb_logger:
            for key, value in losses.items():
                self.tb_logger.add_scalar(f'losses/{key}' if key.startswith('l_') else key, value, current_iter)

    def validated(self, dataset: str) -> dict[str, float] | None:
        """The metrics recorded for ``start_iter`` before the run was resumed there, or None."""
        return self._validated.get(dataset)

    def metrics(self, current_iter: int, dataset: str, values: dict[str, float]) -> None:
        """Records a validation; the model has logged it already."""
        if self.active:
            self._write(
                {'iter': current_iter, 'dataset': dataset, **{key: float(value) for key, value in values.items()}}
            )

    def close(self) -> None:
        """Ends the bar and the TensorBoard file."""
        self.bar.close()
        if self._redirect:
            self._redirect.__exit__(None, None, None)
        if self.tb_logger:
            self.tb_logger.close()

    def _go_back(self) -> None:
        """Drops what was recorded beyond the iteration that the run goes on from, which will be recorded again."""
        records = [(line, _parse(line)) for line in self.metrics_file.read_text(encoding='utf-8').splitlines(True)]
        kept = [(line, record) for line, record in records if record and record['iter'] <= self.start_iter]
        if len(kept) < len(records):
            write_whole(self.metrics_file, ''.join(line for line, _ in kept))
        for _, record in kept:
            if record['iter'] == self.start_iter and 'dataset' in record:
                name = record['dataset']
                self._validated[name] = {key: v for key, v in record.items() if key not in ('iter', 'dataset')}

    def _write(self, record: dict) -> None:
        with open(self.metrics_file, 'a', encoding='utf-8') as file:
            file.write(json.dumps(record) + '\n')


def _parse(line: str) -> dict | None:
    """A line of metrics.jsonl; None for one that a kill or a full disk cut off."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = line.endswith('\n') and isinstance(record, dict) and isinstance(record.get('iter'), int)
    return record if whole else None
