"""Train a recipe: every stage in order, each as one BasicSR run.

``python tools/train.py -opt options/pisr_rfdn_x4.yml``
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
import yaml
from basicsr.data.prefetch_dataloader import CPUPrefetcher, CUDAPrefetcher
from basicsr.models import build_model
from basicsr.train import create_train_val_dataloader
from basicsr.utils import AvgTimer, check_resume, get_time_str, init_tb_logger, init_wandb_logger, set_random_seed
from basicsr.utils.dist_util import get_dist_info
from basicsr.utils.options import dict2str

from pisr_plugin import __version__, checkpoint
from pisr_plugin.engine import cli
from pisr_plugin.engine.distributed import process_group
from pisr_plugin.engine.progress import Progress
from pisr_plugin.engine.runtime import check_data, make_folder, open_log, quiet, runtime_options, write_options
from pisr_plugin.engine.schema import check_options
from pisr_plugin.engine.stages import Stage, select, unroll
from pisr_plugin.errors import CheckpointError, DataError, OptionsError
from pisr_plugin.files import write_whole

# Options that change neither the weights nor what they are evaluated on: they may differ on a finished stage.
_INCIDENTAL = ('logger', 'val', 'num_gpu', 'dist_params')


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
    with process_group(args.launcher, **recipe.get('dist_params') or {}):
        return _train_stages(recipe, args)


def _train_stages(recipe: dict, args: argparse.Namespace) -> int:
    rank, _ = get_dist_info()
    stages = unroll(recipe)
    chosen = select(stages, args.stage)
    for stage in stages:
        check_options(stage.options, stage.place)
    pending = [stage for stage in chosen if not is_finished(stage)]
    preflight(pending)
    for stage in chosen:
        if stage not in pending:
            print(f'Stage {stage.name or stage.options["name"]} is finished: {stage.checkpoint}')
            continue
        command = f'pisr_plugin {__version__}, {args.opt} {" ".join(args.force_yml)}'.rstrip()
        if not run_stage(stage, args.auto_resume, header=f'{command}\nstage {stage.name}'):
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
    differing = [
        (path, old, new)
        for path, old, new in _differences(saved, stage.options)
        if path.split('.')[0] not in _INCIDENTAL and not path.startswith(('datasets.val', 'datasets.test'))
    ]
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
    to_come = {stage.checkpoint for stage in stages}
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
        opt.update(dist=False, num_gpu=0)
        opt['path'] = {
            key: value
            for key, value in opt['path'].items()
            if not (key.startswith('pretrain_network') and Path(str(value)) in to_come)
        }
        with quiet(), torch.random.fork_rng(devices=[]):
            build_model(opt)


@contextmanager
def stop_on_signal():
    """Yields a list that is filled when Ctrl-C or SIGTERM asks the run to stop; a second Ctrl-C stops at once."""
    asked: list[int] = []

    def ask(number: int, _) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -------------------------------------------------------------------------------------------------- one stage


def run_stage(stage: Stage, auto_resume: bool = False, header: str = '') -> bool:
    """Trains one stage.

    Args:
        stage: What to train.
        auto_resume: Go on from the newest state in the stage's folder.
        header: Comment for the saved options.

    Returns:
        False when a signal stopped it before its end; its state is saved then.
    """
    opt = runtime_options(stage, stage.folder, is_train=True)
    state = newest_state(stage) if auto_resume else None
    if opt['rank'] == 0:
        if state is None:
            archive(stage.folder)
        for folder in (stage.folder, stage.folder / 'models', stage.folder / 'training_states'):
            make_folder(folder)
        write_options(stage.options, stage.folder / 'options.yml', header)
    if opt['dist']:
        torch.distributed.barrier()
    logger = open_log(stage.folder / f'train_{opt["name"]}_{get_time_str()}.log', opt['rank'])
    logger.info(dict2str(deepcopy(opt)))

    share_cores(opt)
    set_random_seed(opt['manual_seed'] + opt['rank'])
    torch.backends.cudnn.benchmark = True
    if state is not None:
        opt['path']['resume_state'] = str(stage.folder / 'training_states' / f'{state["iter"]}.state')
        check_resume(opt, state['iter'])
    train_loader, sampler, val_loaders, _, total_iter = create_train_val_dataloader(opt, logger)
    if len(train_loader) == 0:
        raise DataError(
            f'datasets.train: {len(train_loader.dataset)} images make no full batch of '
            f'{opt["datasets"]["train"]["batch_size_per_gpu"]}. Raise dataset_enlarge_ratio.'
        )
    model = build_model(opt)
    start_epoch = start_iter = 0
    if state is not None:
        model.resume_training(state)
        start_epoch, start_iter = state['epoch'], state['iter']
        logger.info(f'Resuming training from epoch: {start_epoch}, iter: {start_iter}.')

    tb_logger = _tb_logger(opt, stage.folder)
    progress = Progress(opt['name'], start_iter, total_iter, stage.folder, tb_logger, opt['rank'] == 0)
    try:
        with stop_on_signal() as asked:
            batches = _batches(opt, train_loader, sampler, start_epoch)
            finished = _iterate(model, opt, batches, val_loaders, progress, asked)
    finally:
        progress.close()
    if finished is not None and opt['rank'] == 0:
        write_whole(stage.folder / 'result.json', json.dumps({'iter': total_iter, 'metrics': finished}, indent=1))
    return finished is not None


def share_cores(opt: dict) -> None:
    """On a CPU, leaves the data workers cores of their own; ``OMP_NUM_THREADS`` overrides it.

    Compute threads that wait for each other while a worker holds their core slow a step down several times over.
    """
    if opt['num_gpu'] == 0 and 'OMP_NUM_THREADS' not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        workers = opt['datasets']['train']['num_worker_per_gpu']
        torch.set_num_threads(max(1, cores // opt['world_size'] - workers))


def _iterate(
    model, opt: dict, batches: Iterator[tuple[int, dict]], val_loaders: list, progress: Progress, asked: list
) -> dict | None:
    """Runs the iterations that ``progress`` still lacks; returns the last metrics, or None when asked to stop."""
    data_timer, iter_timer = AvgTimer(), AvgTimer()
    print_freq, save_freq = opt['logger']['print_freq'], opt['logger']['save_checkpoint_freq']
    val_freq = opt.get('val', {}).get('val_freq')
    saved_iter, total_iter = progress.start_iter, progress.total_iter
    for current_iter, (epoch, batch) in zip(range(saved_iter + 1, total_iter + 1), batches):
        data_timer.record()
        model.update_learning_rate(current_iter, warmup_iter=opt['train'].get('warmup_iter', -1))
        model.feed_data(batch)
        model.optimize_parameters(current_iter)
        iter_timer.record()
        progress.step()
        if current_iter % print_freq == 0:
            progress.losses(
                epoch,
                current_iter,
                model.get_current_learning_rate(),
                iter_timer.get_avg_time(),
                data_timer.get_avg_time(),
                model.get_current_log(),
            )
        if current_iter % save_freq == 0:
            model.save(epoch, current_iter)
            saved_iter = current_iter
        if val_freq and current_iter % val_freq == 0 and current_iter < total_iter:
            validate(model, opt, val_loaders, current_iter, progress)
        if asked and current_iter < total_iter:
            if saved_iter != current_iter:
                model.save(epoch, current_iter)
            return None
        data_timer.start()
        iter_timer.start()
    if saved_iter < total_iter:
        model.save(epoch, total_iter)
    model.save(-1, -1)
    return validate(model, opt, val_loaders, total_iter, progress)


def _batches(opt: dict, loader, sampler, start_epoch: int) -> Iterator[tuple[int, dict]]:
    """Yields ``(epoch, batch)`` without end."""
    mode = opt['datasets']['train'].get('prefetch_mode')
    if mode == 'cuda' and opt['num_gpu'] == 0:
        mode = None  # nothing to copy to
    prefetcher = CUDAPrefetcher(loader, opt) if mode == 'cuda' else CPUPrefetcher(loader)
    for epoch in itertools.count(start_epoch):
        sampler.set_epoch(epoch)
        prefetcher.reset()
        while (batch := prefetcher.next()) is not None:
            yield epoch, batch


def validate(model, opt: dict, loaders: list, current_iter: int, progress: Progress) -> dict[str, dict[str, float]]:
    """Validates on every set and returns ``{set: {metric: value}}``."""
    results = {}
    for loader in loaders:
        model.validation(loader, current_iter, progress.tb_logger, opt['val']['save_img'])
        name = loader.dataset.opt['name']
        results[name] = {key: float(value) for key, value in getattr(model, 'metric_results', {}).items()}
        progress.metrics(current_iter, name, results[name])
    return results


def newest_state(stage: Stage) -> dict | None:
    """The newest training state whose networks are there too, or None."""
    folder = stage.folder / 'training_states'
    iters = sorted((int(f.stem) for f in folder.glob('*.state') if f.stem.isdigit()), reverse=True)
    for number in iters:
        model = stage.folder / 'models' / f'net_{stage.network[-1]}_{number}.pth'
        try:
            state = checkpoint.load_file_safely(folder / f'{number}.state')
            checkpoint.load_weights(model)
            return state
        except CheckpointError as error:
            print(f'Skipped: {error}', file=sys.stderr)
    return None


def archive(folder: Path) -> None:
    """Moves an earlier run out of the way, as BasicSR does."""
    if any(folder.glob('metrics.jsonl')) or any(folder.glob('*/*.state')) or any(folder.glob('models/*.pth')):
        target = folder.with_name(f'{folder.name}_archived_{get_time_str()}')
        folder.rename(target)
        print(f'An earlier run was moved to {target}. (--auto_resume would have gone on with it.)')


def _tb_logger(opt: dict, folder: Path):
    if opt['rank'] != 0 or not opt['logger']['use_tb_logger']:
        return None
    if (opt['logger'].get('wandb') or {}).get('project'):
        init_wandb_logger(opt)
    return init_tb_logger(str(folder / 'tb_logger'))
