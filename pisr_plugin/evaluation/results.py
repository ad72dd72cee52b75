"""The record of an evaluation: its fields, its writer and its validating reader.

``evaluation.json`` holds a record, ``evaluation.csv`` the values of each image and seed, ``table.md`` the means.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import statistics
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pisr_plugin.utils.errors import DataError, shown
from pisr_plugin.utils.files import write_whole
from pisr_plugin.utils.text_files import read_json

if TYPE_CHECKING:
    from pisr_plugin.evaluation.measure import DatasetResult

FILE = 'evaluation.json'
KIND = {'kind': 'evaluation', 'version': 1}
LARGEST_FILE = 64 * 2**20  # bytes
LARGEST_NUMBER = 1e18
LONGEST = {str: 4096, list: 10_000, dict: 100_000}  # characters or entries


@dataclass
class ImageRecord:
    """One image of one row.

    Attributes:
        values: Value of each metric, the mean over the seeds.
        picture: The saved reconstruction of the first seed, if there is one.
    """

    values: dict[str, float]
    picture: Path | None = None


@dataclass
class SetRecord:
    """One row on one test set.

    Attributes:
        mean: By metric the mean over images and seeds.
        spread: By metric the standard deviation over seeds; empty for a single seed.
        images: The record of each image, by the image's name.
    """

    mean: dict[str, float]
    spread: dict[str, float] = field(default_factory=dict)
    images: dict[str, ImageRecord] = field(default_factory=dict)


@dataclass
class Run:
    """One training run of a row.

    Attributes:
        folder: The run folder.
        stage: Name of the stage.
        seed: The stage's ``manual_seed``.
        checkpoint: The checkpoint that was measured.
    """

    folder: Path
    stage: str = ''
    seed: int | None = None
    checkpoint: Path | None = None


@dataclass
class Row:
    """One network, measured on every test set, once for each seed.

    Attributes:
        name: Name of the row in files; no two rows share one.
        sets: The record of each test set, by the set's name.
        title: Name of the row in tables; by default the name.
        role: ``student``, ``teacher`` or ``bicubic``.
        network: The network's type.
        parameters: Number of parameters.
        multi_adds: For an output of 1280x720, convention A of docs/networks.md; None: unknown.
        published: By test set the published value, or the values in the order of the metrics.
        seeds: The seeds that were measured.
        seconds: By test set the median seconds for an image.
        training_seconds: CPU seconds of all stages that the row trains, mean over the seeds; None: unknown.
        runs: The training runs.
        measured: By seed and test set the values that the record sums up. They are not part of ``evaluation.json``.
    """

    name: str
    sets: dict[str, SetRecord]
    title: str = ''
    role: str = 'student'
    network: str = ''
    parameters: int | None = None
    multi_adds: float | None = None
    published: dict[str, float | list[float]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    training_seconds: float | None = None
    runs: list[Run] = field(default_factory=list)
    measured: Mapping[int, Mapping[str, DatasetResult]] = field(default_factory=dict, metadata={'in_file': False})

    def __post_init__(self) -> None:
        self.title = self.title or self.name

    @classmethod
    def of(cls, name: str, measured: Mapping[int, Mapping[str, DatasetResult]], **columns: Any) -> Row:
        """Sums up measurements.

        Args:
            name: Name of the row.
            measured: By seed and test set the values of each image.
            **columns: Other fields of the row.
        """
        first = next(iter(measured.values()))
        sets = {dataset: _sum_up([results[dataset] for results in measured.values()]) for dataset in first}
        seconds = {dataset: statistics.median(result.seconds) for dataset, result in first.items() if result.seconds}
        return cls(name, sets, seeds=list(measured), seconds=seconds, measured=measured, **columns)

    def mean(self, dataset: str, metric: str) -> float | None:
        """Mean of a metric over a test set; None: it was not measured."""
        return self.sets[dataset].mean.get(metric) if dataset in self.sets else None

    def published_values(self, dataset: str) -> list[float]:
        """Published values for a test set in the order of the metrics, perhaps for the first few only."""
        values = self.published.get(dataset, [])
        return values if isinstance(values, list) else [values]


def _sum_up(seeds: list[DatasetResult]) -> SetRecord:
    """Means over images and seeds, and the spread over seeds."""
    means = [result.mean for result in seeds]
    images = {
        image: ImageRecord(
            {metric: statistics.fmean(result.images[image][metric] for result in seeds) for metric in values},
            seeds[0].pictures.get(image),
        )
        for image, values in seeds[0].images.items()
    }
    mean = {metric: statistics.fmean(one[metric] for one in means) for metric in means[0]}
    several = len(seeds) > 1 and all(map(math.isfinite, mean.values()))
    spread = {metric: statistics.stdev(one[metric] for one in means) for metric in mean} if several else {}
    return SetRecord(mean, spread, images)


@dataclass
class ProtocolRecord:
    """How images were compared.

    Attributes:
        name: Name of the protocol.
        text: What it compares.
        borders: By metric the pixels that it leaves out at each border.
    """

    name: str = ''
    text: str = ''
    borders: dict[str, int] = field(default_factory=dict)


@dataclass
class Evaluation:
    """All rows of a table and how they were measured.

    Attributes:
        scale: Upscaling factor.
        metrics: By metric whether ``higher`` or ``lower`` is better.
        rows: The rows.
        title: Heading.
        protocol: How images were compared.
        self_ensemble: Whether outputs are means over the eight symmetries of the input.
        environment: Versions, device, precision and threads.
        against: Name of the row that differences refer to.
        ground_truth: By test set and image the saved ground truth.
        path: The file that the record was read from.
        missing: Pictures that the file names and that do not exist.
    """

    scale: int
    metrics: dict[str, str]
    rows: list[Row]
    title: str = ''
    protocol: ProtocolRecord = field(default_factory=ProtocolRecord)
    self_ensemble: bool = False
    environment: dict[str, float | str] = field(default_factory=dict)
    against: str | None = None
    ground_truth: dict[str, dict[str, Path]] = field(default_factory=dict)
    path: Path = field(default=Path(FILE), metadata={'in_file': False})
    missing: list[str] = field(default_factory=list, metadata={'in_file': False})

    @property
    def sets(self) -> list[str]:
        """Names of the test sets in the order in which the rows name them."""
        return list(dict.fromkeys(name for row in self.rows for name in row.sets))

    @property
    def first_metric(self) -> str:
        """The metric that the report chooses by and that differences in ``table.md`` are in."""
        return next(iter(self.metrics))

    def row(self, name: str | None) -> Row | None:
        """The row of a name."""
        return next((row for row in self.rows if row.name == name), None)

    def gain(self, value: float, reference: float, metric: str) -> float:
        """By how much a value is better than a reference; negative: it is worse."""
        return value - reference if self.metrics[metric] == 'higher' else reference - value

    def best(self, rows: Iterable[Row], dataset: str, metric: str) -> Row | None:
        """The row with the best mean; None: no row has one."""
        measured = [(mean, row) for row in rows if (mean := row.mean(dataset, metric)) is not None]
        choose = max if self.metrics[metric] == 'higher' else min
        return choose(measured, key=lambda pair: pair[0])[1] if measured else None

    def best_student(self, dataset: str, metric: str) -> Row | None:
        """The student with the best mean; None: no student has one."""
        return self.best([row for row in self.rows if row.role == 'student'], dataset, metric)

    def difference(self, row: Row, dataset: str, metric: str) -> float | None:
        """A row's mean minus that of the row to compare with, which has the same role; None: there is no such row."""
        base = self.row(self.against)
        if base is None or base is row or base.role != row.role:
            return None
        mean, reference = row.mean(dataset, metric), base.mean(dataset, metric)
        return None if mean is None or reference is None else mean - reference

    @property
    def how(self) -> str:
        """A sentence that says how the figures were measured."""
        borders = self.protocol.borders.values()
        border = ' / '.join(map(str, borders if len(set(borders)) > 1 else set(borders)))
        ensemble = ', mean over the eight symmetries' if self.self_ensemble else ''
        facts = self.environment
        return (
            f'{" / ".join(self.metrics)} at x{self.scale}, {self.protocol.text}; {border} pixels left out at each '
            f'border{ensemble}, mean over images (protocol {self.protocol.name}; torch {facts.get("torch")}, '
            f'{facts.get("device")}, {facts.get("precision")})'
        )


def digits(metric: str) -> int:
    """Digits after the point in which tables give a metric, as papers do: two for PSNR, else four."""
    return 2 if 'psnr' in metric.lower() else 4


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Writes ``evaluation.json``, ``evaluation.csv`` and ``table.md``.

    Args:
        evaluation: The record.
        folder: An existing folder. Paths in the file are relative to it.
    """
    write_whole(folder / FILE, json.dumps(to_json(evaluation, folder), indent=1, allow_nan=False))
    write_whole(folder / 'evaluation.csv', to_csv(evaluation))
    write_whole(folder / 'table.md', to_markdown(evaluation))


def to_json(evaluation: Evaluation, folder: Path) -> dict[str, Any]:
    """The content of ``evaluation.json``.

    Args:
        evaluation: The record. An infinite value, such as the PSNR of equal images, becomes ``null``.
        folder: The folder that paths are made relative to.
    """
    content = {**KIND, **_encode(evaluation, folder)}
    for row, entry in zip(evaluation.rows, content['rows']):
        for name, values in entry['sets'].items():
            found = {metric: evaluation.difference(row, name, metric) for metric in evaluation.metrics}
            values['difference'] = None if None in found.values() else _encode(found, folder)
    return content


def _encode(value: Any, folder: Path) -> Any:
    if isinstance(value, ImageRecord):  # the file has the picture among the values
        value = {**value.values, **({'picture': value.picture} if value.picture else {})}
    if is_dataclass(value):
        value = {one.name: getattr(value, one.name) for one in _in_file(type(value))}
    if isinstance(value, Mapping):
        return {key: _encode(one, folder) for key, one in value.items()}
    if isinstance(value, list):
        return [_encode(one, folder) for one in value]
    if isinstance(value, Path):
        return os.path.relpath(value, folder)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _in_file(kind: type) -> list:
    return [one for one in fields(kind) if one.metadata.get('in_file', True)]


def to_csv(evaluation: Evaluation) -> str:
    """A line for each row, seed, test set and image that was measured just now."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['row', 'role', 'seed', 'set', 'image', *evaluation.metrics])
    for row in evaluation.rows:
        for seed, results in row.measured.items():
            for dataset, result in results.items():
                for image, values in result.images.items():
                    writer.writerow([row.name, row.role, seed, dataset, image, *values.values()])
    return text.getvalue()


def to_markdown(evaluation: Evaluation) -> str:
    """A table of means below a sentence that says how they were measured."""
    sets = evaluation.sets
    published = [name for name in sets if any(name in row.published for row in evaluation.rows)]
    timed = any(row.seconds for row in evaluation.rows)
    headings = ['network', 'parameters', *sets, *(f'{name}, published' for name in published)]
    trained = any(row.training_seconds for row in evaluation.rows)
    headings += ['ms per image'] if timed else []
    headings += ['CPU s of training'] if trained else []
    lines = [evaluation.how, '', f'| {" | ".join(headings)} |', '|---' * len(headings) + '|']
    for row in evaluation.rows:
        cells = [row.title, f'{row.parameters:,}' if row.parameters else '-']
        cells += [' / '.join(_cell(evaluation, row, name, metric) for metric in evaluation.metrics) for name in sets]
        cells += [' / '.join(map(str, row.published_values(name))) or '-' for name in published]
        cells += [' / '.join(f'{1000 * value:.0f}' for value in row.seconds.values())] if timed else []
        cells += [f'{row.training_seconds:,.0f}' if row.training_seconds else '-'] if trained else []
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def _cell(evaluation: Evaluation, row: Row, dataset: str, metric: str) -> str:
    mean, difference = row.mean(dataset, metric), evaluation.difference(row, dataset, metric)
    if mean is None:
        return '-'
    text = f'{mean:.{digits(metric)}f}'
    if metric in row.sets[dataset].spread:
        text += f' ± {row.sets[dataset].spread[metric]:.{digits(metric)}f}'
    if difference is not None and metric == evaluation.first_metric:
        text += f' ({difference:+.{digits(metric)}f})'
    return text


def read_evaluation(path: str | Path) -> Evaluation:
    """Reads an evaluation and checks all of it.

    Args:
        path: The file, or the folder that holds an ``evaluation.json``.

    Raises:
        DataError: the file does not exist or is not a valid evaluation; the message names the place in it.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    hint = f'Expected a folder of results that has an {FILE}, or the file itself.'
    content = read_json(path, hint, LARGEST_FILE, KIND)
    reader = _Reader(path)
    evaluation = reader.read(Evaluation, content, '')
    evaluation.path, evaluation.missing = path, reader.missing
    evaluation.title = evaluation.title or path.parent.name
    reader.check(evaluation)
    return evaluation


class _Reader:
    """Reads JSON by the types of the record's fields.

    Args:
        path: The file, for messages; pictures lie in its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.parent
        self.missing: list[str] = []

    def read(self, kind: Any, value: Any, place: str) -> Any:
        """Returns ``value`` as ``kind``; ``place`` is its path in the file."""
        if is_dataclass(kind):
            return self._record(kind, value, place)
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is types.UnionType:
            if value is None and type(None) in arguments:
                return None
            kinds = [one for one in arguments if one is not type(None)]
            chosen = next((one for one in kinds if isinstance(value, typing.get_origin(one) or one)), kinds[0])
            return self.read(chosen, value, place)
        if kind is Path:
            return self._path(value, place)
        if kind is float:
            return self._number(value, place)
        self._expect((origin or kind), value, place)
        if origin is list:
            return [self.read(arguments[0], one, f'{place}[{i}]') for i, one in enumerate(value)]
        if origin is dict:
            found = {
                self.read(str, key, place): self._entry(arguments[1], one, f'{place}.{key}')
                for key, one in value.items()
            }
            return {key: one for key, one in found.items() if one is not None}
        return value

    def _entry(self, kind: Any, value: Any, place: str) -> Any:
        """An entry of a mapping. A value that is null or infinite, and a picture that does not exist, become None."""
        if kind is float and (value is None or value in (math.inf, -math.inf)):
            return None
        return self.read(kind, value, place)

    def _record(self, kind: Any, value: Any, place: str) -> Any:
        self._expect(dict, value, place)
        if kind is ImageRecord:
            value = {
                'values': {key: one for key, one in value.items() if key != 'picture'},
                'picture': value.get('picture'),
            }
        hints, found = typing.get_type_hints(kind, localns={'DatasetResult': Any}), {}
        for one in _in_file(kind):
            inside = f'{place}.{one.name}'.lstrip('.') if kind is not ImageRecord else place
            required = one.default is MISSING and one.default_factory is MISSING
            if value.get(one.name) is not None or required:
                found[one.name] = self.read(hints[one.name], value.get(one.name), inside)
        return kind(**found)

    def _expect(self, kind: Any, value: Any, place: str) -> None:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self._error(place, f'wrong type (found {shown(value)}). Expected {_WORDS[kind]}.')
        if kind is int and abs(value) > LARGEST_NUMBER:
            raise self._error(place, f'the number is too large. Expected at most {LARGEST_NUMBER:g}.')
        if kind in LONGEST and len(value) > LONGEST[kind]:
            raise self._error(place, f'too long (found {len(value)}). Expected at most {LONGEST[kind]}.')
        if kind is str and _CONTROL.search(value):
            raise self._error(place, f'it holds control characters (found {shown(value)}).')

    def _number(self, value: Any, place: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST_NUMBER:
            raise self._error(place, f'not a finite number (found {shown(value)}). Expected one up to 1e18.')
        return value

    def _path(self, value: Any, place: str) -> Path | None:
        """A path relative to the file. A picture lies inside the file's folder; None: it does not exist."""
        self._expect(str, value, place)
        path = self.folder / value
        if place.startswith('rows') and '.runs[' in place:  # run folders lie in experiments/
            if Path(value).is_absolute():
                raise self._error(place, f'an absolute path (found {shown(value)}). Expected one relative to the file.')
            return path
        try:
            if not path.resolve().is_relative_to(self.folder.resolve()):
                raise self._error(place, f'outside of the folder of results (found {shown(value)}).')
            if path.is_file():
                return path
        except (OSError, ValueError, RuntimeError):  # too long a name; a link that leads to itself
            pass
        self.missing.append(value)
        return None

    def check(self, evaluation: Evaluation) -> None:
        """Checks what types alone do not say."""
        metrics, names = evaluation.metrics, [row.name for row in evaluation.rows]
        for name, better in metrics.items():
            if better not in ('higher', 'lower'):
                raise self._error(f'metrics.{name}', f'unknown (found {better!r}). Expected higher or lower.')
        for what in ('rows', 'metrics'):
            if not getattr(evaluation, what):
                raise self._error(what, 'empty. Expected at least one.')
        if not 1 <= evaluation.scale <= 64:
            raise self._error('scale', f'out of range (found {evaluation.scale}). Expected 1 to 64.')
        if len(set(names)) < len(names):
            raise self._error('rows', f'two rows have the same name (found {shown(", ".join(names))}).')
        if evaluation.against not in (None, *names):
            raise self._error(
                'against', f'no such row (found {evaluation.against!r}). Expected one of {shown(", ".join(names))}.'
            )
        for i, row in enumerate(evaluation.rows):
            numbers = {key: getattr(row, key) for key in ('parameters', 'multi_adds', 'training_seconds')}
            for key, value in {**numbers, **row.seconds}.items():
                if value is not None and value < 0:
                    raise self._error(f'rows[{i}].{key}', f'negative (found {value}).')

    def _error(self, place: str, problem: str) -> DataError:
        return DataError(f'{self.path}: {place or "the file"}: {problem}')


_CONTROL = re.compile('[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]')  # and halves of surrogate pairs
_WORDS = {dict: 'a mapping', list: 'a list', str: 'text', int: 'a whole number', bool: 'true or false'}
