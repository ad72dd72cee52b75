"""What an evaluation found: one JSON file that tables and reports are made of."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pisr_plugin import __version__
from pisr_plugin.evaluation.measure import Result
from pisr_plugin.evaluation.protocol import Protocol
from pisr_plugin.files import write_whole


@dataclass
class Entry:
    """One row: a network, measured on every set, once for each seed.

    Attributes:
        name: What files and differences call it.
        title: What tables call it.
        role: ``student``, ``teacher`` or ``bicubic``.
        network: Its type.
        parameters: How many it has.
        multi_adds: For an output of 1280x720, convention A of docs/networks.md; None where unknown.
        results: By seed and test set.
        runs: Where its runs are: ``seed``, ``stage``, ``folder``, ``checkpoint``.
        published: By test set, what the paper says.
    """

    name: str
    title: str
    role: str
    network: str
    parameters: int
    multi_adds: int | None
    results: dict[int, dict[str, Result]]
    runs: list[dict[str, Any]] = field(default_factory=list)
    published: Mapping[str, float] = field(default_factory=dict)

    @property
    def sets(self) -> list[str]:
        """Names of the test sets."""
        return list(next(iter(self.results.values())))

    def mean(self, dataset: str, metric: str) -> float:
        """Mean over images and seeds."""
        return statistics.fmean(self._by_seed(dataset, metric))

    def spread(self, dataset: str, metric: str) -> float | None:
        """Standard deviation over seeds; None with one alone."""
        values = self._by_seed(dataset, metric)
        return statistics.stdev(values) if len(values) > 1 else None

    def _by_seed(self, dataset: str, metric: str) -> list[float]:
        return [results[dataset].mean[metric] for results in self.results.values()]


@dataclass
class Evaluation:
    """All rows of a table and how they were measured.

    Attributes:
        title: Heading.
        scale: Upscaling factor.
        protocol: How it was measured.
        metrics: By name whether ``higher`` or ``lower`` is better.
        borders: By metric the pixels that it leaves out at each border.
        entries: The rows.
        against: Name of the row that differences are taken from.
        device: Where networks ran.
        self_ensemble: Whether outputs are means over eight symmetries.
        ground_truth: By test set and image, a saved picture.
    """

    title: str
    scale: int
    protocol: Protocol
    metrics: dict[str, str]
    borders: dict[str, int]
    entries: list[Entry]
    against: str | None = None
    device: str = 'cpu'
    self_ensemble: bool = False
    ground_truth: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def sets(self) -> list[str]:
        """Names of the test sets."""
        return self.entries[0].sets

    def difference(self, entry: Entry, dataset: str, metric: str) -> float | None:
        """An entry's mean less that of the row to compare with, of the same role."""
        base = next((one for one in self.entries if one.name == self.against and one.role == entry.role), None)
        if base is None or base is entry:
            return None
        return entry.mean(dataset, metric) - base.mean(dataset, metric)

    @property
    def how(self) -> str:
        """A sentence on how it was measured."""
        borders = self.borders.values()
        border = ' / '.join(map(str, borders if len(set(borders)) > 1 else set(borders)))
        ensemble = ', mean over the eight symmetries' if self.self_ensemble else ''
        return (
            f'{" / ".join(self.metrics)} at x{self.scale}, {self.protocol.text}; {border} pixels left out at each '
            f'border{ensemble}, mean over images (protocol {self.protocol.name}; torch {torch.__version__}, '
            f'{self.device}, fp32)'
        )


def save(evaluation: Evaluation, folder: Path) -> None:
    """Writes ``evaluation.json``, ``evaluation.csv`` (each image) and ``table.md`` into a folder."""
    write_whole(folder / 'evaluation.json', json.dumps(to_json(evaluation, folder), indent=1))
    write_whole(folder / 'evaluation.csv', to_csv(evaluation))
    write_whole(folder / 'table.md', to_markdown(evaluation))


def to_json(evaluation: Evaluation, folder: Path) -> dict[str, Any]:
    """The content of ``evaluation.json``; paths are relative to its folder."""

    def relative(path: str) -> str:
        return os.path.relpath(path, folder)

    rows = []
    for entry in evaluation.entries:
        first = next(iter(entry.results.values()))
        rows.append(
            {
                'name': entry.name,
                'title': entry.title,
                'role': entry.role,
                'network': entry.network,
                'parameters': entry.parameters,
                'multi_adds': entry.multi_adds,
                'published': dict(entry.published),
                'seeds': list(entry.results),
                'seconds': {name: statistics.median(result.seconds) for name, result in first.items()},
                'sets': {name: _set_json(evaluation, entry, name, relative) for name in entry.sets},
                'runs': [
                    {**run, 'folder': relative(run['folder']), 'checkpoint': relative(run['checkpoint'])}
                    for run in entry.runs
                ],
            }
        )
    return {
        'kind': 'evaluation',
        'version': 1,
        'title': evaluation.title,
        'scale': evaluation.scale,
        'protocol': {'name': evaluation.protocol.name, 'text': evaluation.protocol.text, 'borders': evaluation.borders},
        'self_ensemble': evaluation.self_ensemble,
        'environment': {
            'pisr_plugin': __version__,
            'torch': torch.__version__,
            'device': evaluation.device,
            'precision': 'fp32',
            'threads': torch.get_num_threads(),
        },
        'metrics': evaluation.metrics,
        'against': evaluation.against,
        'ground_truth': {
            name: {image: relative(path) for image, path in images.items()}
            for name, images in evaluation.ground_truth.items()
        },
        'rows': rows,
    }


def _set_json(evaluation: Evaluation, entry: Entry, dataset: str, relative) -> dict[str, Any]:
    seeds = [results[dataset] for results in entry.results.values()]
    images = {}
    for image in seeds[0].images:
        values = {
            metric: statistics.fmean(result.images[image][metric] for result in seeds) for metric in evaluation.metrics
        }
        picture = seeds[0].pictures.get(image)
        images[image] = {**values, **({'picture': relative(picture)} if picture else {})}

    def each(function) -> dict[str, float] | None:
        values = {metric: function(entry, dataset, metric) for metric in evaluation.metrics}
        return None if None in values.values() else values

    return {
        'mean': each(Entry.mean),
        'spread': each(Entry.spread),
        'difference': each(evaluation.difference),
        'images': images,
    }


def to_csv(evaluation: Evaluation) -> str:
    """A line for each row, seed, test set and image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['row', 'role', 'seed', 'set', 'image', *evaluation.metrics])
    for entry in evaluation.entries:
        for seed, results in entry.results.items():
            for dataset, result in results.items():
                for image, values in result.images.items():
                    writer.writerow([entry.name, entry.role, seed, dataset, image, *values.values()])
    return text.getvalue()


def to_markdown(evaluation: Evaluation) -> str:
    """A table of means, how they were measured above it."""
    sets, metrics = evaluation.sets, list(evaluation.metrics)
    seconds = any(
        result.seconds for entry in evaluation.entries for result in next(iter(entry.results.values())).values()
    )
    published = [name for name in sets if any(name in entry.published for entry in evaluation.entries)]
    headings = ['network', 'parameters', *sets]
    headings += [f'{name}, published' for name in published]
    headings += ['ms per image'] if seconds else []
    lines = [evaluation.how, '', f'| {" | ".join(headings)} |', '|---' * len(headings) + '|']
    for entry in evaluation.entries:
        cells = [entry.title, f'{entry.parameters:,}' if entry.parameters else '-']
        cells += [' / '.join(_cell(evaluation, entry, name, metric) for metric in metrics) for name in sets]
        cells += [_published(entry.published.get(name)) for name in published]
        if seconds:
            times = [statistics.median(result.seconds) for result in next(iter(entry.results.values())).values()]
            cells.append(' / '.join(f'{1000 * value:.0f}' for value in times))
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def _cell(evaluation: Evaluation, entry: Entry, dataset: str, metric: str) -> str:
    text = figure(entry.mean(dataset, metric))
    spread, difference = entry.spread(dataset, metric), evaluation.difference(entry, dataset, metric)
    if spread is not None:
        text += f' ± {figure(spread, like=entry.mean(dataset, metric))}'
    if difference is not None and metric == next(iter(evaluation.metrics)):
        text += f' ({difference:+.2f})'
    return text


def _published(value: Any) -> str:
    return '-' if value is None else ' / '.join(map(str, value)) if isinstance(value, Sequence) else str(value)


def figure(value: float, like: float | None = None) -> str:
    """A number as tables show it: PSNR with two digits, SSIM with four."""
    small = abs(value if like is None else like) < 2
    return f'{value:.4f}' if small and not math.isinf(value) else f'{value:.2f}'
