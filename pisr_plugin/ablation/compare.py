"""Measure the trained rows of a grid, one beside the other."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

from pisr_plugin.ablation.grid import Grid
from pisr_plugin.ablation.plan import Plan
from pisr_plugin.engine.cpu_timer import cpu_seconds
from pisr_plugin.engine.test import bicubic, describe, evaluate, save_ground_truth, test_stage, weights_of
from pisr_plugin.evaluation.protocol import protocol_of
from pisr_plugin.evaluation.results import Evaluation, Row


def compare(grid: Grid, plan: Plan, protocol_name: str | None, folder: Path, save_img: bool = False) -> Evaluation:
    """Measures the products of all rows: the student of each, and each different teacher.

    Args:
        grid: The grid.
        plan: Its stages, all finished.
        protocol_name: How to measure; None: as the recipe says.
        folder: Existing folder of results.
        save_img: Whether reconstructions are saved there.
    """
    measured: dict[str, Row] = {}

    def entry_of(name: str) -> Row:
        if name not in measured:
            stage = test_stage(plan.stages[name])
            protocol = protocol_of(stage.options, protocol_name)
            measured[name] = evaluate(stage, weights_of(stage), protocol, folder, save_img=save_img)
        return measured[name]

    first_row = next(iter(plan.rows.values()))
    example = test_stage(plan.stages[next(iter(first_row.values()))[-1]])
    protocol = protocol_of(example.options, protocol_name)
    entries = [evaluate(bicubic(example), None, protocol, folder, save_img=save_img)]
    teachers: dict[tuple[str, ...], Row] = {}
    for row in grid.rows:
        by_seed = plan.rows[row.name]
        entries.append(_join(row.name, row.title, [(seed, entry_of(names[-1])) for seed, names in by_seed.items()]))
        entries[-1].published = dict(row.published)
        spent = [sum(cpu_seconds(plan.stages[name].folder) for name in names) for names in by_seed.values()]
        entries[-1].training_seconds = statistics.fmean(spent) or None
        for position in range(len(next(iter(by_seed.values()))) - 1):
            names = tuple(names[position] for names in by_seed.values())
            found = [(seed, entry_of(name)) for seed, name in zip(by_seed, names)]
            if names in teachers:
                teachers[names].title += f', {row.name}'
            else:
                stage = plan.stages[names[0]].name.rpartition('_')[0]
                teachers[names] = _join(f'{row.name}_{stage}', f'{stage} of {row.name}', found)
    rows = [*entries, *teachers.values()]
    evaluation = describe(example, grid.title, protocol, rows, against=grid.against)
    if save_img:
        evaluation.ground_truth = save_ground_truth(example.options, folder / 'pictures' / 'gt')
    return evaluation


def _join(name: str, title: str, seeds: list[tuple[int, Row]]) -> Row:
    """Makes one row of the measurements for its seeds."""
    first = seeds[0][1]
    return Row.of(
        name,
        {seed: next(iter(row.measured.values())) for seed, row in seeds},
        title=title,
        role=first.role,
        network=first.network,
        parameters=first.parameters,
        multi_adds=first.multi_adds,
        runs=[replace(run, seed=seed) for seed, row in seeds for run in row.runs],
    )
