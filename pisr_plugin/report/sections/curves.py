"""Training curves: loss terms and validation metrics over iterations, each on its own scale."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bokeh.resources import Resources

from pisr_plugin.evaluation.results import Evaluation
from pisr_plugin.report.section import ReportData, Section
from pisr_plugin.utils.errors import OptionsError
from pisr_plugin.utils.text_files import read_records

LOG = 'metrics.jsonl'
Series = dict[str, tuple[list[int], list[float]]]
_GRID_MARK = re.compile('_[0-9a-f]{6}$')  # a grid adds it to a stage's name to tell the stages of its rows apart
LARGEST = 1e300  # a larger value is no loss; sums of these stay finite
MOST_POINTS = 600  # of one curve; a screen cannot show more


class CurvesSection(Section):
    """The curves of all runs that left a log."""

    position = 30
    label = 'Training'
    heading = 'Loss terms and validation over iterations'

    def __init__(self, report: ReportData) -> None:
        self.curves = all_curves(report.evaluation)
        if not self.curves:
            raise OptionsError('None of the runs left a log of its training.')

    def script_data(self) -> list[dict[str, Any]]:
        return [vars(curves) for curves in self.curves]

    def libraries(self) -> list[str]:
        return [Resources(mode='inline', components=['bokeh']).js_raw[0]]


@dataclass
class Curves:
    """Curves of one run.

    Attributes:
        label: Name of the run for readers.
        row: Index of the run's row, which decides about its colour.
        early: Whether a later stage of the row builds on the run.
        losses: ``{loss term: (iterations, values)}``.
        metrics: ``{"test set metric": (iterations, values)}``.
    """

    label: str
    row: int = 0
    early: bool = False
    losses: Series = field(default_factory=dict)
    metrics: Series = field(default_factory=dict)


def all_curves(evaluation: Evaluation) -> list[Curves]:
    """Reads the logs of all runs. A run that several rows share is read once."""
    curves: dict[Path, Curves] = {}
    for index, row in enumerate(evaluation.rows):
        several = len({run.seed for run in row.runs}) > 1
        last = {run.seed: run.stage for run in row.runs}  # the stages of a grid differ from seed to seed
        for run in row.runs:
            folder = run.folder.resolve()
            log = folder / LOG
            if folder in curves or not log.is_file():
                continue
            stage = _GRID_MARK.sub('', run.stage)
            label = f'{row.title}, {stage}' if stage and stage != row.role else row.title
            label = f'{label}, seed {run.seed}' if several else label
            curves[folder] = Curves(label, index, run.stage != last[run.seed], *read_log(log))
    return [curve for curve in curves.values() if curve.losses or curve.metrics]


def read_log(path: Path) -> tuple[Series, Series]:
    """Reads loss terms and metrics from a ``metrics.jsonl``."""
    losses: dict[str, dict[int, float]] = {}
    metrics: dict[str, dict[int, float]] = {}
    for record in read_records(path):
        if type(record.get('iter')) is not int or not 0 <= record['iter'] < 2**53:  # the largest that a page can tell
            continue
        for key, value in record.items():
            if type(value) not in (int, float) or not abs(value) <= LARGEST:
                continue
            # A resumed run logs some iterations twice. The later line is that of the run that went on.
            if key.startswith('l_'):
                losses.setdefault(key, {})[record['iter']] = value
            elif isinstance(record.get('dataset'), str) and key != 'iter':
                metrics.setdefault(f'{record["dataset"]} {key}', {})[record['iter']] = value
    return _thinned(losses), _thinned(metrics)


def _thinned(series: dict[str, dict[int, float]]) -> Series:
    """Sorts points. Neighbours on a long curve are averaged, because picking single points would show noise."""
    result = {}
    for name, points in series.items():
        iterations = sorted(points)
        step = math.ceil(len(iterations) / MOST_POINTS)
        groups = [iterations[i : i + step] for i in range(0, len(iterations), step)]
        result[name] = ([g[-1] for g in groups], [sum(points[i] for i in g) / len(g) for g in groups])
    return result
