"""The table of results: every row on every test set, one table for each metric."""

from __future__ import annotations

from dataclasses import dataclass

from pisr_plugin.evaluation.results import Evaluation
from pisr_plugin.report.section import ReportData, Section


@dataclass
class Table:
    """The table of one metric.

    Attributes:
        metric: Name of the metric.
        better: Whether ``higher`` or ``lower`` is better.
        sets: Test sets, one for each column.
        published: Test sets that have a column of published values.
        best: By test set the name of the best student.
    """

    metric: str
    better: str
    sets: list[str]
    published: list[str]
    best: dict[str, str | None]


class ResultsSection(Section):
    """The tables, with a switch between the metrics."""

    position = 10
    label = 'Results'
    heading = 'Results'

    def __init__(self, report: ReportData) -> None:
        self.trained = any(row.training_seconds for row in report.evaluation.rows)
        self.tables = [table(report.evaluation, metric) for metric in report.evaluation.metrics]


def table(evaluation: Evaluation, metric: str) -> Table:
    """Chooses the columns of a metric's table."""
    rows = evaluation.rows
    sets = [name for name in evaluation.sets if any(row.mean(name, metric) is not None for row in rows)]
    # Published values are shown in the first metric.
    published = [name for name in sets if any(row.published_values(name) for row in rows)]
    best = {name: evaluation.best_student(name, metric) for name in sets}
    return Table(
        metric,
        evaluation.metrics[metric],
        sets,
        published if metric == evaluation.first_metric else [],
        {name: row.name if row else None for name, row in best.items()},
    )
