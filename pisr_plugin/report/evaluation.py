"""Read an ``evaluation.json``: what was measured, on which images, from which runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pisr_plugin.errors import DataError

FILE = 'evaluation.json'
VERSION = 1


@dataclass
class Image:
    """Figures of one image, and where its reconstruction lies, if it was saved."""

    values: dict[str, float]
    picture: Path | None = None


@dataclass
class SetResult:
    """Figures of one row on one test set, by metric; ``spread`` is over seeds."""

    mean: dict[str, float]
    spread: dict[str, float]
    difference: dict[str, float]
    images: dict[str, Image]


@dataclass
class Run:
    """One training run behind a row."""

    seed: int | None
    stage: str
    folder: Path
    checkpoint: Path | None


@dataclass
class Row:
    """One network, trained in one way with one or more seeds."""

    name: str
    title: str
    role: str
    network: str
    parameters: int | None
    multi_adds: float | None
    published: dict[str, float]
    seeds: list[int]
    seconds: dict[str, float]
    sets: dict[str, SetResult]
    runs: list[Run]


@dataclass
class Evaluation:
    """Everything that a report shows.

    Attributes:
        path: The file.
        metrics: ``higher`` or ``lower``, whichever is better, by metric.
        against: Name of the row that differences refer to.
        ground_truth: Pictures by test set and image.
        missing: Pictures that the file names but that are not there.
    """

    path: Path
    title: str
    scale: int
    protocol: dict[str, str]
    environment: dict[str, Any]
    metrics: dict[str, str]
    against: str | None
    ground_truth: dict[str, dict[str, Path]]
    rows: list[Row]
    missing: list[str] = field(default_factory=list)

    @property
    def sets(self) -> list[str]:
        """Test sets in the order in which they first appear."""
        return list(dict.fromkeys(name for row in self.rows for name in row.sets))

    def row(self, name: str | None) -> Row | None:
        """The row called ``name``."""
        return next((row for row in self.rows if row.name == name), None)


def read_evaluation(path: str | Path) -> Evaluation:
    """Reads an evaluation.

    Args:
        path: The file, or the folder that holds an ``evaluation.json``.

    Raises:
        DataError: there is no such file, or it is not an evaluation; the message names the place in it.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise DataError(f'{path} does not exist. Name a folder of results that has an {FILE}, or the file itself.')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise DataError(f'{path} is not JSON: {error}') from None
    return _Reader(path).evaluation(content)


class _Reader:
    """Turns JSON into an :class:`Evaluation`; every method takes the place it reads for messages."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.parent
        self.missing: list[str] = []

    def evaluation(self, content: Any) -> Evaluation:
        if not isinstance(content, Mapping) or content.get('kind') != 'evaluation':
            raise DataError(f"{self.path} is not an evaluation: kind 'evaluation' expected.")
        if content.get('version') != VERSION:
            raise DataError(f'{self.path}: version: found {content.get("version")!r}, possible: {VERSION}')
        metrics = self.get(content, 'metrics', dict, 'the file')
        for name, better in metrics.items():
            if better not in ('higher', 'lower'):
                raise DataError(f'{self.path}: metrics.{name}: found {better!r}, possible: higher, lower')
        rows = self.get(content, 'rows', list, 'the file')
        if not rows or not metrics:
            raise DataError(f'{self.path}: there is nothing to report, {"metrics" if rows else "rows"} is empty.')
        truth = self.get(content, 'ground_truth', dict, 'the file', {})
        result = Evaluation(
            path=self.path,
            title=self.get(content, 'title', str, 'the file', self.folder.name),
            scale=self.get(content, 'scale', int, 'the file'),
            protocol=self.get(content, 'protocol', dict, 'the file', {}),
            environment=self.get(content, 'environment', dict, 'the file', {}),
            metrics=dict(metrics),
            against=self.get(content, 'against', str, 'the file', None),
            ground_truth={name: self.pictures(images, f'ground_truth.{name}') for name, images in truth.items()},
            rows=[self.row(row, f'rows[{i}]') for i, row in enumerate(rows)],
        )
        names = [row.name for row in result.rows]
        if len(set(names)) < len(names):
            raise DataError(f'{self.path}: rows: two rows have the same name, one of {", ".join(names)}')
        if result.against is not None and result.against not in names:
            raise DataError(f'{self.path}: against: found {result.against!r}, possible: {", ".join(names)}')
        result.missing = self.missing
        return result

    def row(self, content: Any, place: str) -> Row:
        name = self.get(content, 'name', str, place)
        place = f'{place} ({name})'
        sets = self.get(content, 'sets', dict, place)
        runs = self.get(content, 'runs', list, place, [])
        return Row(
            name=name,
            title=self.get(content, 'title', str, place, name),
            role=self.get(content, 'role', str, place, 'student'),
            network=self.get(content, 'network', str, place, ''),
            parameters=self.get(content, 'parameters', int, place, None),
            multi_adds=self.get(content, 'multi_adds', (int, float), place, None),
            published=self.numbers(self.published(content), f'{place}.published'),
            seeds=self.get(content, 'seeds', list, place, []),
            seconds=self.numbers(content.get('seconds'), f'{place}.seconds'),
            sets={key: self.set_result(value, f'{place}.sets.{key}') for key, value in sets.items()},
            runs=[self.run(run, f'{place}.runs[{i}]') for i, run in enumerate(runs)],
        )

    @staticmethod
    def published(content: Mapping) -> Any:
        """Published figures in the first metric; a grid may list those in the others after it."""
        published = content.get('published')
        if not isinstance(published, Mapping):
            return published
        return {name: value[0] if isinstance(value, list) and value else value for name, value in published.items()}

    def set_result(self, content: Any, place: str) -> SetResult:
        images = self.get(content, 'images', dict, place, {})
        return SetResult(
            mean=self.numbers(self.get(content, 'mean', dict, place), f'{place}.mean'),
            spread=self.numbers(content.get('spread'), f'{place}.spread'),
            difference=self.numbers(content.get('difference'), f'{place}.difference'),
            images={name: self.image(image, f'{place}.images.{name}') for name, image in images.items()},
        )

    def image(self, content: Any, place: str) -> Image:
        picture = self.get(content, 'picture', str, place, None)
        values = {key: value for key, value in content.items() if key != 'picture'}
        return Image(self.numbers(values, place), self.picture(picture))

    def pictures(self, content: Any, place: str) -> dict[str, Path]:
        if not isinstance(content, Mapping):
            raise DataError(f'{self.path}: {place}: a mapping of images to pictures is needed, not {content!r}')
        found = {name: self.picture(self.get(content, name, str, place)) for name in content}
        return {name: picture for name, picture in found.items() if picture}

    def picture(self, name: str | None) -> Path | None:
        if name is None:
            return None
        path = self.folder / name
        if path.is_file():
            return path
        self.missing.append(name)
        return None

    def run(self, content: Any, place: str) -> Run:
        checkpoint = self.get(content, 'checkpoint', str, place, None)
        return Run(
            seed=self.get(content, 'seed', int, place, None),
            stage=self.get(content, 'stage', str, place, ''),
            folder=self.folder / self.get(content, 'folder', str, place),
            checkpoint=self.folder / checkpoint if checkpoint else None,
        )

    def numbers(self, content: Any, place: str) -> dict[str, float]:
        """Finite numbers by name; null, and what is infinite or not a number, is left out."""
        if content is None:
            return {}
        if not isinstance(content, Mapping):
            raise DataError(f'{self.path}: {place}: a mapping of names to numbers is needed, not {content!r}')
        for key, value in content.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise DataError(f'{self.path}: {place}.{key}: a number is needed, not {value!r}')
        return {key: value for key, value in content.items() if value is not None and math.isfinite(value)}

    _REQUIRED = object()

    def get(self, content: Any, key: str, kind: type | tuple, place: str, default: Any = _REQUIRED) -> Any:
        if not isinstance(content, Mapping):
            raise DataError(f'{self.path}: {place}: a mapping is needed, not {content!r}')
        value = content.get(key)
        if value is None and default is not self._REQUIRED:
            return default
        if not isinstance(value, kind) or isinstance(value, bool):
            kinds = ' or '.join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise DataError(f'{self.path}: {place}: {key}: {kinds} needed, not {value!r}')
        return value
