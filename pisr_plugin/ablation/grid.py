"""Read a grid: a base recipe, and rows or axes of changes to it.

.. code-block:: yaml

    name: losses_x2
    recipe: ../pisr_fsrcnn_x2.yml         # relative to this file
    common: {train: {total_iter: 20000}}  # changes for all rows
    seeds: [0, 1, 2]                      # default: the recipe's manual_seed alone
    against: baseline                     # row that differences are taken from; default: the first
    rows:
      baseline: {recipe: ../baseline_fsrcnn_x2.yml}
      laplace: {}
      gaussian: {changes: {train: {distill_opt: {body: {loss: {type: VIDGaussianLoss}}}}}}
    axes:                                 # besides rows, or instead: one row for each combination
      weight: {1e-6: {...}, 1e-5: {...}}
    published: {laplace: {Set5: 37.33}}   # shown beside the measured figures
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from pisr_plugin.engine.recipe import compose, override
from pisr_plugin.errors import OptionsError, choice

_KEYS = ('name', 'title', 'recipe', 'common', 'seeds', 'against', 'rows', 'axes', 'published')
_ROW_KEYS = ('recipe', 'changes', 'seeds', 'title')


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What overrides and files call it.
        title: What the table calls it.
        recipes: A composed recipe for each seed.
        published: Figures to show beside, by test set.
    """

    name: str
    title: str
    recipes: dict[int, dict]
    published: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """A grid as read.

    Attributes:
        name: Names the folder of its results.
        title: Heading of its table.
        rows: In order.
        against: Name of the row that differences are taken from.
    """

    name: str
    title: str
    rows: list[Row]
    against: str


def read_grid(path: str | Path, overrides: Iterable[str] = ()) -> Grid:
    """Reads a grid file; a grid may have a ``_base_``, as recipes do.

    Args:
        path: The YAML file.
        overrides: ``a:b=c`` entries, applied to every row's recipe after all else.

    Raises:
        OptionsError: keys are unknown or missing, a recipe cannot be read, names or values do not fit.
    """
    path = Path(path)
    grid = compose(path)
    _check_keys(grid, _KEYS, str(path))
    name = grid.get('name')
    if not isinstance(name, str) or not name or '/' in name or name.startswith('.'):
        raise OptionsError(f'{path}: name: {name!r}; a grid needs a name to file its results under, without slashes.')
    rows = _rows(grid, path)
    if not rows:
        raise OptionsError(f'{path}: neither rows nor axes: there is nothing to compare.')
    published = _mapping(grid.get('published'), f'{path}: published')
    against = grid.get('against', next(iter(rows)))
    for what, names in (('published', published), ('against', [against])):
        for wanted in names:
            if wanted not in rows:
                raise OptionsError(f'{path}: {what}: there is no row {wanted!r}. {choice(str(wanted), rows)}')
    overrides = list(overrides)
    built = [_build_row(key, row, grid, path, overrides, published.get(key) or {}) for key, row in rows.items()]
    return Grid(name, grid.get('title', name), built, against)


def _rows(grid: dict, path: Path) -> dict[str, dict]:
    """All rows by name, those of ``axes`` multiplied out; each as ``rows`` would have it."""
    rows = {}
    for name, row in _mapping(grid.get('rows'), f'{path}: rows').items():
        row = _mapping(row, f'{path}: rows.{name}')
        _check_keys(row, _ROW_KEYS, f'{path}: rows.{name}')
        rows[str(name)] = row
    axes = {key: _mapping(axis, f'{path}: axes.{key}') for key, axis in _mapping(grid.get('axes'), 'axes').items()}
    for point in itertools.product(*(axis.items() for axis in axes.values())) if axes else ():
        changes: dict = {}
        for key, (value, change) in zip(axes, point):
            changes = merge(changes, _mapping(change, f'{path}: axes.{key}.{value}'), f'{path}: axes.{key}.{value}')
        rows['_'.join(f'{key}-{value}' for key, (value, _) in zip(axes, point))] = {
            'changes': changes,
            'title': ', '.join(f'{key} {value}' for key, (value, _) in zip(axes, point)),
        }
    return rows


def _build_row(name: str, row: dict, grid: dict, path: Path, overrides: list[str], published: dict) -> Row:
    source = row.get('recipe') or grid.get('recipe')
    if not source:
        raise OptionsError(f'{path}: recipe: missing; rows.{name} names none of its own either.')
    recipe = compose(path.parent / source)
    for key, changes in (('common', grid.get('common')), (f'rows.{name}.changes', row.get('changes'))):
        recipe = merge(recipe, _mapping(changes, f'{path}: {key}'), f'{path}: {key}')
    seeds = row.get('seeds') or grid.get('seeds') or [recipe.get('manual_seed', 0)]
    if not isinstance(seeds, list) or not all(isinstance(seed, int) for seed in seeds) or len(set(seeds)) < len(seeds):
        raise OptionsError(f'{path}: seeds: {seeds!r}; a list of different whole numbers is needed.')
    recipes = {}
    for seed in seeds:
        recipes[seed] = override(deepcopy(recipe), overrides)
        recipes[seed]['manual_seed'] = seed
    return Row(name, row.get('title', name), recipes, published)


def merge(options: dict, changes: Mapping, place: str) -> dict:
    """``changes`` over ``options``, as a recipe over its base; neither is altered.

    Raises:
        OptionsError: a mapping meets something else.
    """
    merged = Config(deepcopy(options))
    try:
        merged.merge_from_dict(deepcopy(dict(changes)))
    except (TypeError, AttributeError, KeyError) as error:
        raise OptionsError(f'{place}: {error}') from None
    return merged.to_dict()


def _mapping(value: Any, place: str) -> dict:
    if not isinstance(value, (Mapping, type(None))):
        raise OptionsError(f'{place}: a mapping is needed, not {value!r}.')
    return dict(value or {})


def _check_keys(options: Mapping, known: Iterable[str], place: str) -> None:
    for key in options:
        if key not in known:
            raise OptionsError(f'{place}: unknown key {key!r}. {choice(str(key), known)}')
