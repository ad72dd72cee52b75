"""What a grid has to train: stages that resolve to the same options are one stage."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from pisr_plugin.ablation.grid import Grid
from pisr_plugin.engine.schema import check_options
from pisr_plugin.engine.stages import HAND_OFF, Stage, decisive, unroll
from pisr_plugin.files import write_whole


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
                check_options(stage.options, f'rows.{row.name}: {stage.place}'.rstrip(': '))
                described = _describe(stage, names)
                name = f'{stage.name or "train"}_{_digest(described)}'
                names[stage.checkpoint] = name
                options.setdefault(name, described)
            rows[row.name][seed] = list(names.values())
    stages = unroll({'name': grid.name, 'stages': options})
    return Plan({stage.name: stage for stage in stages}, rows)


def write_recipe(plan: Plan, grid: Grid, path: Path) -> None:
    """Writes all stages as one recipe, from which ``tools/train.py --stage`` trains any of them."""
    shared = {name: _describe(stage, _names(plan)) for name, stage in plan.stages.items()}
    text = yaml.safe_dump({'name': grid.name, 'stages': shared}, sort_keys=False, allow_unicode=True)
    write_whole(path, f'# All different stages of the grid {grid.name}; written by tools/ablate.py.\n{text}')


def _names(plan: Plan) -> dict[Path, str]:
    return {stage.checkpoint: name for name, stage in plan.stages.items()}


def _describe(stage: Stage, names: dict[Path, str]) -> dict:
    """A stage's options without its name, a hand-off written as that of a recipe."""
    described = {key: value for key, value in stage.options.items() if key != 'name'}
    described['path'] = {
        key: f'{HAND_OFF}{names[stage.needs[f"path.{key}"]]}' if f'path.{key}' in stage.needs else value
        for key, value in stage.options.get('path', {}).items()
    }
    return described


def _digest(described: dict) -> str:
    """Six letters that differ when the stage's weights would."""
    text = json.dumps(decisive(described), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:6]
