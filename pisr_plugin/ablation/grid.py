"""Read a grid: a base recipe, and rows or axes of changes to it.

.. code-block:: yaml

    name: losses_x2
    recipe: pisr_fsrcnn_x2                # file relative to this one, or name of a recipe of the package
    common: {train: {total_iter: 20000}}  # changes for all rows; or a file with them, or a list of files
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
import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pisr_plugin.config.compose import compose, merge, override
from pisr_plugin.config.plugins import import_plugins
from pisr_plugin.config.recipes import find_recipe
from pisr_plugin.utils.checks import is_number, is_whole
from pisr_plugin.utils.errors import OptionsError, did_you_mean, shown
from pisr_plugin.utils.files import name_as_folder

_KEYS = ('name', 'title', 'recipe', 'common', 'seeds', 'against', 'rows', 'axes', 'published')
MAX_ROWS = 1000  # axes multiply
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
        path: The YAML file, or the name of a grid of the package.
        overrides: ``a:b=c`` entries, applied to every row's recipe after all else.

    Raises:
        OptionsError: keys are unknown or missing, a recipe cannot be read, names or values do not fit.
    """
    path = find_recipe(path)
    grid = compose(path)
    _check_keys(grid, _KEYS, str(path))
    name = name_as_folder(grid.get('name'), f'{path}: name', Path('experiments'))
    rows = _rows(grid, path)
    if not rows:
        raise OptionsError(f'{path}: neither rows nor axes. Expected at least one row to train.')
    published = _mapping(grid.get('published'), f'{path}: published')
    against = grid.get('against', next(iter(rows)))
    for what, names in (('published', published), ('against', [against])):
        for wanted in names:
            if not isinstance(wanted, str) or wanted not in rows:
                raise OptionsError(f'{path}: {what}: there is no row {wanted!r}. {did_you_mean(str(wanted), rows)}')
    for key, figures in published.items():
        _check_figures(_mapping(figures, f'{path}: published.{key}'), f'{path}: published.{key}')
    for key in rows:
        name_as_folder(key, f'{path}: rows')
    overrides = list(overrides)
    built = [_build_row(key, row, grid, path, overrides, published.get(key) or {}) for key, row in rows.items()]
    return Grid(name, _text(grid, 'title', f'{path}', name), built, against)


def _rows(grid: dict, path: Path) -> dict[str, dict]:
    """All rows by name, those of ``axes`` multiplied out; each as ``rows`` would have it."""
    rows = {}
    for name, row in _mapping(grid.get('rows'), f'{path}: rows').items():
        row = _mapping(row, f'{path}: rows.{name}')
        _check_keys(row, _ROW_KEYS, f'{path}: rows.{name}')
        rows[str(name)] = row
    axes = {key: _mapping(axis, f'{path}: axes.{key}') for key, axis in _mapping(grid.get('axes'), 'axes').items()}
    if len(rows) + math.prod(map(len, axes.values())) > MAX_ROWS:
        raise OptionsError(f'{path}: axes: too many rows. Expected at most {MAX_ROWS} rows.')
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
    source = _text(row, 'recipe', f'{path}: rows.{name}', '') or _text(grid, 'recipe', f'{path}', '')
    if not source:
        raise OptionsError(f'{path}: recipe: missing. rows.{name} has no recipe of its own either.')
    recipe = compose(source, path.parent, f'{path}: recipe')
    for changes in _common(grid, path):
        recipe = merge(recipe, changes, f'{path}: common')
    recipe = merge(recipe, _mapping(row.get('changes'), f'{path}: rows.{name}.changes'), f'{path}: rows.{name}.changes')
    seeds = row.get('seeds') or grid.get('seeds') or [recipe.get('manual_seed', 0)]
    if (
        not isinstance(seeds, list)
        or not all(is_whole(seed, 0, 2**32 - 1) for seed in seeds)
        or len(set(seeds)) < len(seeds)
    ):
        raise OptionsError(
            f'{path}: seeds: wrong value (found {shown(seeds)}). Expected a list of different whole numbers from 0 on.'
        )
    recipe = override(recipe, overrides)
    import_plugins(recipe.get('plugins'), f'{path}: rows.{name}: plugins')
    recipes = {seed: {**deepcopy(recipe), 'manual_seed': seed} for seed in seeds}
    return Row(name, _text(row, 'title', f'{path}: rows.{name}', name), recipes, published)


def _common(grid: dict, path: Path) -> list[dict]:
    """The changes for all rows: a mapping, or the files that hold them."""
    common = grid.get('common')
    files = [common] if isinstance(common, str) else common
    if isinstance(files, list) and all(isinstance(file, str) for file in files):
        return [compose(file, path.parent, f'{path}: common') for file in files]
    return [_mapping(common, f'{path}: common')]


def _check_figures(figures: Mapping[str, Any], option_path: str) -> None:
    """Checks what is published for a row: by test set a PSNR, or a list of PSNR and SSIM."""
    for name, found in figures.items():
        numbers = found if isinstance(found, list) else [found]
        if not 1 <= len(numbers) <= 2 or not all(map(is_number, numbers)):
            raise OptionsError(
                f'{option_path}.{name}: wrong value (found {shown(found)}). Expected PSNR, or [PSNR, SSIM].'
            )


def _text(options: Mapping, key: str, option_path: str, default: str) -> str:
    value = default if options.get(key) is None else options[key]
    if not isinstance(value, str):
        raise OptionsError(f'{option_path}: {key}: wrong value (found {shown(value)}). Expected text.')
    return value


def _mapping(value: Any, option_path: str) -> dict:
    if not isinstance(value, (Mapping, type(None))):
        raise OptionsError(f'{option_path}: wrong value (found {shown(value)}). Expected a mapping.')
    return dict(value or {})


def _check_keys(options: Mapping, known: Iterable[str], option_path: str) -> None:
    for key in options:
        if key not in known:
            raise OptionsError(f'{option_path}: unknown key {key!r}. {did_you_mean(str(key), known)}')
