"""The values of every image, as a table that the page's reader chooses."""

from __future__ import annotations

from typing import Any

from pisr_plugin.evaluation.results import digits
from pisr_plugin.report.section import ReportData, Section
from pisr_plugin.utils.errors import OptionsError


class ImagesSection(Section):
    """One table for each test set and metric."""

    position = 70
    label = 'Images'
    heading = 'Values of every image'

    def __init__(self, report: ReportData) -> None:
        self.evaluation = report.evaluation
        self.sets = {
            name: {row.name: row.sets[name].images for row in self.evaluation.rows if name in row.sets}
            for name in self.evaluation.sets
        }
        self.sets = {name: rows for name, rows in self.sets.items() if any(rows.values())}
        if not self.sets:
            raise OptionsError('The results hold no values of single images.')

    def script_data(self) -> dict[str, Any]:
        metrics = self.evaluation.metrics
        return {
            'metrics': {name: {'better': better, 'digits': digits(name)} for name, better in metrics.items()},
            'titles': {row.name: row.title for row in self.evaluation.rows},
            'sets': {
                name: {row: {image: record.values for image, record in images.items()} for row, images in rows.items()}
                for name, rows in self.sets.items()
            },
        }
