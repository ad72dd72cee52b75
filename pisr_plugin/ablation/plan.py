"""What a grid has to train: stages that resolve to the same options are one stage."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pisr_plugin.ablation.grid import Grid
from pisr_plugin.config.parse import dump
from pisr_plugin.config.schema import check_options
from pisr_plugin.config.stages import HAND_OFF, WATCHED, Stage, unroll, weight_options
from pisr_plugin.utils.files import write_whole


@dataclass(frozen=True)
class Plan:
    """The stages of a grid.

    Attributes:
        stages: All different stages by name, each after those that it takes something from.
        rows: By row and seed the names of its stages, in order.
    """

    stages: dict[str, Stage]
    rows: dict[str, dict[int, list[str]]]

    @property
    def asked(self) -> int:
        """Stages of all rows and seeds, were none shared."""
        return sum(len(names) for seeds in self.rows.values() for names in seeds.values())


def make_plan(grid: Grid) -> Plan:
    """Unrolls the rows of a grid and finds the stages that they share.

    Raises:
        OptionsError: a row's options are wrong; the message names the row.
    """
    options: dict[str, dict] = {}
    rows: dict[str, dict[int, list[str]]] = {}
    for row in grid.rows:
        rows[row.name] = {}
        for seed, recipe in row.recipes.items():
            names: dict[Path, str] = {}
            for stage in unroll(recipe):
                check_options(stage.options, f'rows.{row.name}: {stage.option_path}'.rstrip(': '), is_train=True)
                described = _describe(stage, names)
                names[stage.checkpoint] = name = _name(stage.name or 'train', described, options)
                options.setdefault(name, described)
            rows[row.name][seed] = list(names.values())
    stages = unroll({'name': grid.name, 'stages': options})
    return Plan({stage.name: stage for stage in stages}, rows)


def write_recipe(plan: Plan, grid: Grid, path: Path) -> None:
    """Writes all stages as one recipe, from which ``pisr-train --stage`` trains any of them."""
    names = {stage.checkpoint: name for name, stage in plan.stages.items()}
    shared = {name: _describe(stage, names) for name, stage in plan.stages.items()}
    plugins = {name: None for options in shared.values() for name in options.pop('plugins', [])}
    recipe = {'name': grid.name, **({'plugins': list(plugins)} if plugins else {}), 'stages': shared}
    write_whole(path, f'# All different stages of the grid {grid.name}; written by pisr-ablate.\n{dump(recipe)}')


def _describe(stage: Stage, names: dict[Path, str]) -> dict:
    """A stage's options without its name, a hand-off written as that of a recipe."""
    described = {key: value for key, value in stage.options.items() if key != 'name'}
    described['path'] = {
        key: f'{HAND_OFF}{names[stage.needs[f"path.{key}"]]}' if f'path.{key}' in stage.needs else value
        for key, value in stage.options.get('path', {}).items()
    }
    return described


def _name(stage_name: str, described: dict, known: dict[str, dict]) -> str:
    """The name of the stage in ``known`` that yields the same weights, else a new one that ends in a digest."""
    wanted = weight_options(described)
    for name, other in known.items():
        if name.rpartition('_')[0] == stage_name and weight_options(other) == wanted:
            return name
    # Not of wanted: a name must not change when the table in config/stages.py grows.
    text = json.dumps(weight_options(described, WATCHED), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    names = (f'{stage_name}_{digest[:length]}' for length in range(6, len(digest) + 1))
    return next(name for name in names if name not in known)
