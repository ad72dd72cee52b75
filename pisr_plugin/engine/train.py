"""Train a recipe: every stage in order, each as one BasicSR run.

``python tools/train.py -opt options/pisr_rfdn_x4.yml``
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Container, Iterator
from pathlib import Path

import torch
import yaml
from basicsr.models import build_model
from basicsr.utils.dist_util import get_dist_info

from pisr_plugin import __version__
from pisr_plugin.engine import cli
from pisr_plugin.engine.distributed import process_group
from pisr_plugin.engine.loop import run_stage
from pisr_plugin.engine.runtime import check_data, quiet, runtime_options
from pisr_plugin.engine.schema import check_options
from pisr_plugin.engine.stages import Stage, decisive, select, unroll
from pisr_plugin.engine.stopping import Stop
from pisr_plugin.errors import CheckpointError, OptionsError


def main(argv: list[str] | None = None) -> int:
    """Command line of ``tools/train.py`` and ``pisr-train``."""
    parser = cli.recipe_parser('Train a recipe, stage by stage.')
    parser.add_argument('--auto_resume', action='store_true', help='go on from the newest saved state of a stage')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='job launcher')
    parser.add_argument(
        '--debug', action='store_true', help='a run of its own that prints every iteration and saves every 8'
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    return cli.run(lambda: train(args))


def train(args: argparse.Namespace) -> int:
    """Trains the stages that the flags ask for; returns the exit code."""
    recipe = cli.load_recipe(args)
    if args.debug:
        recipe['name'] = f'debug_{recipe.get("name")}'
        cli.override(recipe, ['logger:print_freq=1', 'logger:save_checkpoint_freq=8', 'val:val_freq=8'])
    with Stop() as stop, process_group(args.launcher, **recipe.get('dist_params') or {}):
        return _train_stages(recipe, args, stop)


def _train_stages(recipe: dict, args: argparse.Namespace, stop: Stop) -> int:
    rank, _ = get_dist_info()
    stages = unroll(recipe)
    chosen = select(stages, args.stage)
    for stage in stages:
        check_options(stage.options, stage.place)
    pending = [stage for stage in chosen if not is_finished(stage)]
    preflight(pending)
    for stage in chosen:
        if stage not in pending:
            if rank == 0:
                print(f'Stage {stage.name or stage.options["name"]} is finished: {stage.checkpoint}')
            continue
        command = f'pisr_plugin {__version__}, {args.opt} {" ".join(args.force_yml)}'.rstrip()
        if not run_stage(stage, stop, args.auto_resume, header=f'{command}\nstage {stage.name}'):
            if rank == 0:
                print(f'Stopped; saved in {stage.folder}. Go on with --auto_resume.')
            return cli.STOPPED
    return 0


# -------------------------------------------------------------------------------------------------- before a stage


def is_finished(stage: Stage) -> bool:
    """Whether the stage was trained to its end before.

    Raises:
        OptionsError: it was, with other options.
    """
    if not all(
        file.is_file() for file in (stage.folder / 'result.json', stage.folder / 'options.yml', stage.checkpoint)
    ):
        return False
    saved = yaml.safe_load((stage.folder / 'options.yml').read_text(encoding='utf-8'))
    differing = list(_differences(decisive(saved), decisive(stage.options)))
    if differing:
        lines = '\n'.join(f'  {path}: {old!r} then, {new!r} now' for path, old, new in differing[:10])
        raise OptionsError(
            f'{stage.folder} holds this stage, finished with other options:\n{lines}\n'
            'Choose another name (--force_yml name=...), or move that folder away.'
        )
    return True


def _differences(old: object, new: object, path: str = '') -> Iterator[tuple[str, object, object]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _differences(old.get(key), new.get(key), f'{path}.{key}' if path else str(key))
    elif old != new:
        yield path, old, new


def preflight(stages: list[Stage]) -> None:
    """Checks everything that can be checked before the first stage writes its first file.

    Data, hand-offs and the networks with their taps, links and losses, on one noise patch.

    Raises:
        PISRError: the first mistake found.
    """
    to_come = {path for stage in stages for path in stage.products.values()}
    for stage in stages:
        for place, path in stage.needs.items():
            if path not in to_come and not path.is_file():
                raise CheckpointError(
                    f'{place}: {path} does not exist. Train that stage first, or name a file: '
                    f'--force_yml {place.replace(".", ":")}=FILE'
                )
        check_data(stage)
        if stage.options['logger'].get('use_tb_logger') and importlib.util.find_spec('tensorboard') is None:
            raise OptionsError(
                'logger.use_tb_logger: true needs TensorBoard. pip install tensorboard, or set it to false.'
            )
        opt = runtime_options(stage, stage.folder, is_train=True)
        if 'train' not in opt['datasets']:
            raise OptionsError('datasets.train: missing; there is nothing to train on.')
        check_schedule(opt['train'])
        build_trial(opt, to_come)


def build_trial(opt: dict, to_come: Container[Path]):
    """Builds the model of a stage on the CPU, without leaving a trace.

    Args:
        opt: From :func:`~pisr_plugin.engine.runtime.runtime_options`.
        to_come: Checkpoints that are not there yet; their networks keep random weights.

    Raises:
        PISRError: its networks, taps, losses, checkpoints and data do not fit together.
    """
    path = {
        key: value
        for key, value in opt['path'].items()
        if not (key.startswith('pretrain_network') and Path(str(value)) in to_come)
    }
    with quiet(), torch.random.fork_rng(devices=[]):
        return build_model({**opt, 'path': path, 'dist': False, 'num_gpu': 0})


def check_schedule(train_opt: dict) -> None:
    """Checks that a cosine schedule lasts as long as the training, where BasicSR's would fail at its end.

    Raises:
        OptionsError: its periods end before.
    """
    periods, total_iter = (train_opt.get('scheduler') or {}).get('periods'), train_opt['total_iter']
    if periods and sum(periods) < total_iter - 1:
        raise OptionsError(
            f'train.scheduler.periods: {periods} end before train.total_iter, {total_iter}. '
            f'Make them add up to it, e.g. [{total_iter}].'
        )
