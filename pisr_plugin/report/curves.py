"""What runs logged while they trained: loss terms and validation metrics over iterations."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from pisr_plugin.report.evaluation import Evaluation

LOG = 'metrics.jsonl'
Series = dict[str, tuple[list[int], list[float]]]
_MARK = re.compile('_[0-9a-f]{6}$')  # what a grid adds to a stage's name to tell it from the other rows'
MOST_POINTS = 600  # of one curve; more than a screen has pixels to tell them apart


@dataclass
class Curves:
    """One run's curves.

    Attributes:
        label: Which run this is, for people.
        row: Index of the row that it belongs to, which gives its colour.
        early: Whether a later stage of the row builds on it.
        losses: ``{loss term: (iterations, values)}``.
        metrics: ``{"test set metric": (iterations, values)}``.
    """

    label: str
    row: int = 0
    early: bool = False
    losses: Series = field(default_factory=dict)
    metrics: Series = field(default_factory=dict)


def all_curves(evaluation: Evaluation) -> list[Curves]:
    """Curves of all runs that left a log, each run once though several rows may share it."""
    curves: dict[Path, Curves] = {}
    for index, row in enumerate(evaluation.rows):
        several = len({run.seed for run in row.runs}) > 1
        last = {run.seed: run.stage for run in row.runs}  # a grid's stages differ from seed to seed
        for run in row.runs:
            folder = run.folder.resolve()
            log = folder / LOG
            if folder in curves or not log.is_file():
                continue
            stage = _MARK.sub('', run.stage)
            label = f'{row.title}, {stage}' if stage and stage != row.role else row.title
            label = f'{label}, seed {run.seed}' if several else label
            curves[folder] = Curves(label, index, run.stage != last[run.seed], *read_log(log))
    return [curve for curve in curves.values() if curve.losses or curve.metrics]


def read_log(path: Path) -> tuple[Series, Series]:
    """Reads loss terms and metrics from a ``metrics.jsonl``; a last line cut off by a kill is left out."""
    losses: dict[str, dict[int, float]] = {}
    metrics: dict[str, dict[int, float]] = {}
    for line in path.read_text(encoding='utf-8').splitlines():
        try:
            entry = json.loads(line)
            iteration = int(entry['iter'])
        except (ValueError, KeyError, TypeError):
            continue
        for key, value in entry.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            # A resumed run logs some iterations twice; the later line is the one that went on.
            if key.startswith('l_'):
                losses.setdefault(key, {})[iteration] = value
            elif 'dataset' in entry and key != 'iter':
                metrics.setdefault(f'{entry["dataset"]} {key}', {})[iteration] = value
    return _thinned(losses), _thinned(metrics)


def _thinned(series: dict[str, dict[int, float]]) -> Series:
    """Sorted points; of long curves the means of neighbours, so that noise is not picked at random."""
    result = {}
    for name, points in series.items():
        iterations = sorted(points)
        step = math.ceil(len(iterations) / MOST_POINTS)
        groups = [iterations[i : i + step] for i in range(0, len(iterations), step)]
        result[name] = ([g[-1] for g in groups], [sum(points[i] for i in g) / len(g) for g in groups])
    return result
