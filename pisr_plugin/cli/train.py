"""Train a recipe: every stage in order, each as one BasicSR run.

``pisr-train -opt pisr_rfdn_x4``
"""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING

from pisr_plugin.cli import common
from pisr_plugin.version import __version__

if TYPE_CHECKING:
    from pisr_plugin.config.stages import Stage
    from pisr_plugin.engine.signals import GracefulStop


def main(argv: list[str] | None = None) -> int:
    """Command line of ``pisr-train`` and ``tools/train.py``."""
    parser = common.recipe_parser('Train a recipe, stage by stage.')
    parser.add_argument('--auto_resume', action='store_true', help='go on from the newest saved state of a stage')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='job launcher')
    parser.add_argument(
        '--debug', action='store_true', help='a run of its own that prints every iteration and saves every 8'
    )
    parser.add_argument('--verbose', action='store_true', help='show all options and networks on the terminal')
    parser.add_argument('--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        '--print_options', action='store_true', help='print the resolved options of each stage and exit'
    )
    args = parser.parse_args(argv)
    return common.run(lambda: print_options(args) if args.print_options else train(args))


def print_options(args: argparse.Namespace) -> int:
    """Prints the resolved options of the stages that the flags ask for, as YAML; returns the exit code."""
    from pisr_plugin.config.parse import dump
    from pisr_plugin.config.schema import check_options
    from pisr_plugin.config.stages import select, unroll

    for stage in select(unroll(common.load_recipe(args)), args.stage):
        check_options(stage.options, stage.option_path)
        print(f'--- # stage {stage.name or stage.options["name"]}\n{dump(stage.options)}', end='')
    return 0


def train(args: argparse.Namespace) -> int:
    """Trains the stages that the flags ask for; returns the exit code."""
    from pisr_plugin.config.compose import override
    from pisr_plugin.config.schema import check_dist_params
    from pisr_plugin.engine.distributed import process_group
    from pisr_plugin.engine.signals import GracefulStop

    with GracefulStop() as stop:
        recipe = common.load_recipe(args)
        if args.debug:
            recipe['name'] = f'debug_{recipe.get("name")}'
            override(recipe, ['logger:print_freq=1', 'logger:save_checkpoint_freq=8', 'val:val_freq=8'])
        with process_group(args.launcher, **check_dist_params(recipe.get('dist_params'))):
            return _train_stages(recipe, args, stop)


def _train_stages(recipe: dict, args: argparse.Namespace, stop: GracefulStop) -> int:
    from basicsr.utils.dist_util import get_dist_info

    from pisr_plugin.config.schema import check_options
    from pisr_plugin.config.stages import select, unroll
    from pisr_plugin.engine.loop import run_stage
    from pisr_plugin.engine.train import is_finished, preflight

    first_rank = get_dist_info()[0] == 0
    stages = unroll(recipe)
    chosen = select(stages, args.stage)
    for stage in stages:
        check_options(stage.options, stage.option_path, is_train=True)
    pending = [stage for stage in chosen if not is_finished(stage)]
    preflight(pending)
    command = f'pisr_plugin {__version__}, {args.opt} {" ".join(args.force_yml)}'.rstrip()
    # torchrun --max-restarts starts all ranks again after a failure
    auto_resume = args.auto_resume or os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') != '0'
    for stage in chosen:
        if stage not in pending:
            if first_rank:
                print(f'Stage {stage.name or stage.options["name"]} is finished: {stage.checkpoint}')
            continue
        header = f'{command}\nstage {stage.name}'
        if not run_stage(stage, stop, auto_resume, header, args.verbose):
            if first_rank:
                print(f'Stopped; saved in {stage.folder}. Go on with --auto_resume.')
            return common.STOPPED
    if first_rank and pending:
        for line in _describe_results(pending, args):
            print(line)
    return 0


def _describe_results(stages: list[Stage], args: argparse.Namespace) -> list[str]:
    """Lines that say what the stages left, where, and what to run next."""
    lines = []
    for stage in stages:
        metrics = json.loads((stage.folder / 'result.json').read_text(encoding='utf-8'))['metrics']
        figures = [f'{name} {key} {value:.4g}' for name, values in metrics.items() for key, value in values.items()]
        lines.append(f'Trained {stage.checkpoint}{": " if figures else ""}{", ".join(figures)}')
    changes = f' --force_yml {" ".join(args.force_yml)}' if args.force_yml else ''
    lines.append(f'Next: pisr-test -opt {args.opt}{changes}')
    if stages[-1].network == 'network_g':
        lines.append(f'      pisr-upscale PHOTO --model {os.path.relpath(stages[-1].folder)}')
    return lines
