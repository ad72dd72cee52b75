"""Train and compare the rows of a grid.

``python tools/ablate.py -opt options/ablation/table1_x2.yml``
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
import yaml

from pisr_plugin.ablation.estimate import estimate
from pisr_plugin.ablation.grid import Grid, read_grid
from pisr_plugin.ablation.plan import Plan, make_plan, write_recipe
from pisr_plugin.ablation.run import ClusterJobs, LocalJobs, train_plan
from pisr_plugin.engine import cli
from pisr_plugin.engine.runtime import make_folder
from pisr_plugin.engine.stages import Stage
from pisr_plugin.engine.train import is_finished, preflight
from pisr_plugin.errors import OptionsError, choice
from pisr_plugin.evaluation.protocol import protocol_of
from pisr_plugin.evaluation.record import Entry, Evaluation, save, to_markdown
from pisr_plugin.evaluation.test import bicubic, describe, evaluate, save_ground_truth, test_stage, weights_of


def main(argv: list[str] | None = None) -> int:
    """Command line of ``tools/ablate.py`` and ``pisr-ablate``."""
    parser = argparse.ArgumentParser(description='Train and compare the rows of a grid.')
    parser.add_argument('-opt', required=True, metavar='GRID', help='grid file (YAML), see options/ablation')
    parser.add_argument(
        '--force_yml', nargs='+', default=[], metavar='A:B=C', help="change options of every row's recipe"
    )
    parser.add_argument('--dry-run', action='store_true', help='show what would be trained, and for how long')
    parser.add_argument('--jobs', type=int, metavar='N', help='stages to train at once (default: one per GPU, else 1)')
    parser.add_argument('--protocol', help="how to measure (default: the recipe's)")
    parser.add_argument('--save_img', action='store_true', help='save the reconstructions, for the report')
    parser.add_argument('--cluster', metavar='NAME', help='train through submitit, e.g. on slurm')
    parser.add_argument(
        '--cluster_args', nargs='+', default=[], metavar='KEY=VALUE', help="submitit's, e.g. slurm_partition=gpu"
    )
    cli.add_plugin_flag(parser)
    args = parser.parse_args(argv)
    return cli.run(lambda: ablate(args))


def ablate(args: argparse.Namespace) -> int:
    """Trains what is missing, compares the rows and returns the exit code."""
    cli.import_plugins(args.plugin)
    grid = read_grid(args.opt, args.force_yml)
    plan = make_plan(grid)
    pending = [stage for stage in plan.stages.values() if not is_finished(stage)]
    jobs = args.jobs or (1 if args.cluster else max(1, torch.cuda.device_count()))
    if jobs < 1:
        raise OptionsError(f'--jobs {args.jobs}: at least 1.')
    print(describe_plan(grid, plan))
    if args.dry_run:
        print(describe_time(pending, jobs))
        return 0
    preflight(pending)
    folder = Path('experiments') / grid.name
    make_folder(folder)
    write_recipe(plan, grid, folder / 'recipe.yml')
    if args.cluster:
        runner = ClusterJobs(folder / 'logs', args.cluster, dict(_parameter(entry) for entry in args.cluster_args))
    else:
        runner = LocalJobs(jobs, folder / 'logs')
    if pending:
        finished = len(plan.stages) - len(pending)
        print(f'{finished} of {len(plan.stages)} stages are finished, {len(pending)} to train.')
    if not train_plan(pending, folder / 'recipe.yml', runner, jobs, args.plugin):
        print('Stopped; go on with the same command.')
        return cli.STOPPED
    results = Path.cwd() / 'results' / grid.name
    evaluation = compare(grid, plan, args.protocol, results / 'pictures' if args.save_img else None)
    make_folder(results)
    save(evaluation, results)
    print(to_markdown(evaluation))
    print(f'Saved in {results}; a page of it: pisr-report {os.path.relpath(results)}')
    return 0


def describe_plan(grid: Grid, plan: Plan) -> str:
    """What the rows need: a line for each, the stages marked that several share."""
    users: dict[str, int] = {}
    for seeds in plan.rows.values():
        for names in seeds.values():
            for name in names:
                users[name] = users.get(name, 0) + 1
    lines = [f'{grid.title}: {len(grid.rows)} rows, {plan.asked} stages, of which {len(plan.stages)} differ']
    width = max(len(row.name) for row in grid.rows)
    for row in grid.rows:
        for seed, names in plan.rows[row.name].items():
            shown = ' -> '.join(f'{name}{" (shared)" if users[name] > 1 else ""}' for name in names)
            lines.append(f'  {row.name:{width}}  seed {seed}  {shown}')
    return '\n'.join(lines)


def describe_time(pending: list[Stage], jobs: int) -> str:
    """How long the stages that are left will take."""
    seconds = estimate(pending)
    lines = [f'  {name}: {value / 3600:.2f} h' for name, value in seconds.items()]
    total = sum(seconds.values()) / 3600
    at_best = max([total / jobs, *(value / 3600 for value in seconds.values())], default=0)
    lines.append(
        f'{len(pending)} stages to train: {total:.2f} h of steps on this machine, {at_best:.2f} h or more with {jobs} '
        'at once; validation comes on top'
    )
    return '\n'.join(lines)


def compare(grid: Grid, plan: Plan, protocol_name: str | None, pictures: Path | None) -> Evaluation:
    """Measures the products of all rows: the student of each, and each different teacher.

    Args:
        grid: The grid.
        plan: Its stages, all finished.
        protocol_name: How to measure; None: as the recipe says.
        pictures: Folder for reconstructions.
    """
    measured: dict[str, Entry] = {}

    def entry_of(name: str) -> Entry:
        if name not in measured:
            stage = test_stage(plan.stages[name])
            protocol = protocol_of(stage.options, protocol_name)
            measured[name] = evaluate(stage, weights_of(stage), protocol, pictures=pictures)
        return measured[name]

    first_row = next(iter(plan.rows.values()))
    example = test_stage(plan.stages[next(iter(first_row.values()))[-1]])
    protocol = protocol_of(example.options, protocol_name)
    entries = [evaluate(bicubic(example), None, protocol, pictures=pictures)]
    teachers: dict[tuple[str, ...], Entry] = {}
    for row in grid.rows:
        by_seed = plan.rows[row.name]
        entries.append(_join(row.name, row.title, [(seed, entry_of(names[-1])) for seed, names in by_seed.items()]))
        entries[-1].published = row.published
        for position in range(len(next(iter(by_seed.values()))) - 1):
            names = tuple(names[position] for names in by_seed.values())
            found = [(seed, entry_of(name)) for seed, name in zip(by_seed, names)]
            if names in teachers:
                teachers[names].title += f', {row.name}'
            else:
                stage = plan.stages[names[0]].name.rpartition('_')[0]
                teachers[names] = _join(f'{row.name}_{stage}', f'{stage} of {row.name}', found)
    evaluation = describe(example, grid.title, protocol, [*entries, *teachers.values()], False)
    evaluation.against = grid.against
    if pictures:
        evaluation.ground_truth = save_ground_truth(example.options, pictures / 'gt')
    return evaluation


def _join(name: str, title: str, seeds: list[tuple[int, Entry]]) -> Entry:
    """One row of the measurements for its seeds."""
    first = seeds[0][1]
    return Entry(
        name,
        title,
        first.role,
        first.network,
        first.parameters,
        first.multi_adds,
        {seed: next(iter(entry.results.values())) for seed, entry in seeds},
        [{**run, 'seed': seed} for seed, entry in seeds for run in entry.runs],
    )


def _parameter(entry: str) -> tuple[str, Any]:
    key, equals, value = entry.partition('=')
    if not equals or not key:
        raise OptionsError(
            f'--cluster_args {entry}: write KEY=VALUE. {choice(key, ("slurm_partition", "timeout_min"))}'
        )
    return key, yaml.safe_load(value)
