"""Train and compare the rows of a grid.

``pisr-ablate -opt ablation/table1_x2``
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pisr_plugin.cli import common
from pisr_plugin.utils.errors import OptionsError, did_you_mean

if TYPE_CHECKING:
    from pisr_plugin.ablation.grid import Grid
    from pisr_plugin.ablation.plan import Plan
    from pisr_plugin.config.stages import Stage


def main(argv: list[str] | None = None) -> int:
    """Command line of ``pisr-ablate`` and ``tools/ablate.py``."""
    parser = common.Parser(description='Train and compare the rows of a grid.')
    parser.add_argument(
        '-opt', required=True, metavar='GRID', help='grid file (YAML), or a name that pisr-list recipes shows'
    )
    common.add_override_flag(parser)
    parser.add_argument('--dry-run', action='store_true', help='show what would be trained, and for how long')
    parser.add_argument('--jobs', type=int, metavar='N', help='stages to train at once (default: one per GPU, else 1)')
    common.add_protocol_flag(parser)
    parser.add_argument('--save_img', action='store_true', help='save the reconstructions, for the report')
    parser.add_argument('--cluster', metavar='NAME', help='train through submitit, e.g. on slurm')
    parser.add_argument(
        '--cluster_args', nargs='+', default=[], metavar='KEY=VALUE', help="submitit's, e.g. slurm_partition=gpu"
    )
    common.add_plugin_flag(parser)
    args = parser.parse_args(argv)
    return common.run(lambda: ablate(args))


def ablate(args: argparse.Namespace) -> int:
    """Trains what is missing, compares the rows and returns the exit code."""
    import torch

    from pisr_plugin.ablation.compare import compare
    from pisr_plugin.ablation.grid import read_grid
    from pisr_plugin.ablation.jobs import ClusterJobs, LocalJobs, train_plan
    from pisr_plugin.ablation.plan import make_plan, write_recipe
    from pisr_plugin.config.runtime import make_folder
    from pisr_plugin.engine.train import is_finished, preflight
    from pisr_plugin.evaluation.results import to_markdown, write_evaluation

    common.import_plugins(args.plugin)
    grid = read_grid(args.opt, args.force_yml)
    plan = make_plan(grid)
    pending = [stage for stage in plan.stages.values() if not is_finished(stage)]
    jobs = args.jobs or (1 if args.cluster else max(1, torch.cuda.device_count()))
    if jobs < 1:
        raise OptionsError(f'--jobs {args.jobs}: expected at least 1.')
    print(describe_plan(grid, plan))
    if args.dry_run:
        print(describe_time(pending, jobs))
        return 0
    preflight(pending)
    folder = Path('experiments') / grid.name
    make_folder(folder)
    write_recipe(plan, grid, folder / 'recipe.yml')
    runner: ClusterJobs | LocalJobs
    if args.cluster:
        runner = ClusterJobs(folder / 'logs', args.cluster, dict(_parameter(entry) for entry in args.cluster_args))
    else:
        runner = LocalJobs(jobs, folder / 'logs')
    if pending:
        finished = len(plan.stages) - len(pending)
        print(f'{finished} of {len(plan.stages)} stages are finished, {len(pending)} to train.')
    if not train_plan(pending, folder / 'recipe.yml', runner, jobs, args.plugin):
        print('Stopped; go on with the same command.')
        return common.STOPPED
    results = Path.cwd() / 'results' / grid.name
    with common.results_folder(results) as unfinished:
        evaluation = compare(grid, plan, args.protocol, unfinished, args.save_img)
        write_evaluation(evaluation, unfinished)
    print(to_markdown(evaluation))
    print(f'Saved in {results}; a page of it: pisr-report {os.path.relpath(results)}')
    return 0


def describe_plan(grid: Grid, plan: Plan) -> str:
    """Returns one line for each row: its stages, with a mark on those that several rows share."""
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
    """Returns lines that say how long the stages that are left will take."""
    from pisr_plugin.ablation.estimate import estimate

    seconds = estimate(pending)
    lines = [f'  {name}: {value / 3600:.2f} h' for name, value in seconds.items()]
    total = sum(seconds.values()) / 3600
    at_best = max([total / jobs, *(value / 3600 for value in seconds.values())], default=0)
    lines.append(
        f'{len(pending)} stages to train: {total:.2f} h of steps on this machine, {at_best:.2f} h or more with {jobs} '
        'at once; validation comes on top'
    )
    return '\n'.join(lines)


def _parameter(entry: str) -> tuple[str, Any]:
    key, equals, value = entry.partition('=')
    if not equals or not key:
        raise OptionsError(
            f'--cluster_args {entry}: expected KEY=VALUE. {did_you_mean(key, ("slurm_partition", "timeout_min"))}'
        )
    from pisr_plugin.config.parse import parse

    return key, parse(value, f'--cluster_args {entry}')
