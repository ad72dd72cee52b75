"""The head of the page: title, conditions, the best student of each test set, and rows below bicubic."""

from __future__ import annotations

from typing import Any

from pisr_plugin.evaluation.results import Evaluation, Row
from pisr_plugin.report.section import ReportData, Section


class SummarySection(Section):
    """Title, conditions and headline."""

    position = 0

    def __init__(self, report: ReportData) -> None:
        self.evaluation = report.evaluation
        self.environment = environment_facts(report.evaluation)
        self.below = below_bicubic(report.evaluation)

    def best(self) -> list[tuple[str, Row]]:
        """The best student of each test set in the first metric."""
        metric = self.evaluation.first_metric
        found = [(name, self.evaluation.best_student(name, metric)) for name in self.evaluation.sets]
        return [(name, row) for name, row in found if row]


def below_bicubic(evaluation: Evaluation) -> list[tuple[Row, str, float]]:
    """Rows that are worse than bicubic interpolation in the first metric: row, test set, difference of the means."""
    metric = evaluation.first_metric
    bicubic = next((row for row in evaluation.rows if row.role == 'bicubic'), None)
    if bicubic is None:
        return []
    found = []
    for row in evaluation.rows:
        for name in row.sets:
            mean, reference = row.mean(name, metric), bicubic.mean(name, metric)
            if mean is not None and reference is not None and evaluation.gain(mean, reference, metric) < 0:
                found.append((row, name, mean - reference))
    return found


def environment_facts(evaluation: Evaluation) -> dict[str, Any]:
    """Versions, device and precision; the number of threads only where the device does not name it too."""
    facts = evaluation.environment
    named = 'thread' in str(facts.get('device', ''))
    return {key: value for key, value in facts.items() if not (named and key == 'threads')}
