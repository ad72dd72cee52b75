"""The training of one stage, from its options to its result."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model
from basicsr.utils import AvgTimer, check_resume, get_root_logger, get_time_str, init_wandb_logger, set_random_seed
from basicsr.utils.dist_util import get_dist_info
from basicsr.utils.options import dict2str
from basicsr.utils.registry import DATASET_REGISTRY

from pisr_plugin import checkpoint, random_state
from pisr_plugin.data.feed import Feed, make_feed
from pisr_plugin.engine.allocator import keep_freed_memory
from pisr_plugin.engine.distributed import from_first_rank
from pisr_plugin.engine.finite import FiniteCheck
from pisr_plugin.engine.progress import Progress
from pisr_plugin.engine.runtime import make_folder, open_log, runtime_options, write_options
from pisr_plugin.engine.stages import Stage
from pisr_plugin.engine.states import Found, States, archive
from pisr_plugin.engine.stopping import Agreement, Stop
from pisr_plugin.errors import PISRError
from pisr_plugin.files import locked, write_whole


def run_stage(stage: Stage, stop: Stop, auto_resume: bool = False, header: str = '') -> bool:
    """Trains one stage.

    Args:
        stage: What to train.
        stop: Says when the run is to stop before its end.
        auto_resume: Go on from the newest complete state in the stage's folder.
        header: Comment for the saved options.

    Returns:
        False when it was stopped before its end; its state is saved then.

    Raises:
        PISRError: options, data or files do not allow it, or the losses are no longer finite.
    """
    make_folder(stage.folder.parent)
    lock = stage.folder.parent / f'.{stage.folder.name}.lock'  # not inside, because the folder may be moved aside
    with locked(lock) if get_dist_info()[0] == 0 else nullcontext(True) as free:
        if not free:
            raise PISRError(f'{stage.folder}: another process trains this stage. Wait for it, or stop it first.')
        return _run_stage(stage, stop, auto_resume, header)


def _run_stage(stage: Stage, stop: Stop, auto_resume: bool, header: str) -> bool:
    opt = runtime_options(stage, stage.folder, is_train=True)
    states = States(stage.folder, f'net_{stage.network[-1]}')
    found = from_first_rank(lambda: _prepare_folder(stage, states, auto_resume, header))
    logger = open_log(stage.folder / f'train_{opt["name"]}_{get_time_str()}.log', opt['rank'])
    logger.info(dict2str(deepcopy(opt)))
    for line in found.skipped:
        logger.warning(f'Skipped: {line}')

    share_cores(opt)
    if opt['num_gpu'] == 0 and opt.get('keep_memory', True):
        keep_freed_memory()
    set_random_seed(opt['manual_seed'] + opt['rank'])
    torch.backends.cudnn.benchmark = True
    state = None
    if found.iteration is not None:
        state = checkpoint.load_file_safely(states.file(found.iteration))
        opt['path']['resume_state'] = str(states.file(found.iteration))
        check_resume(opt, found.iteration)
    model = build_model(opt)
    start_iter = 0
    if state is not None:
        model.resume_training(state)
        start_iter = state['iter']
        states.best = best_iterations(model)
        logger.info(f'Resuming training from iter: {start_iter}.')

    progress = Progress(
        opt['name'],
        start_iter,
        opt['train']['total_iter'],
        stage.folder,
        _tb_logger(opt, stage.folder, start_iter),
        opt['rank'] == 0,
    )
    try:
        with stop.deferred() as stopping, _make_feed(opt, model.device, start_iter) as feed:
            model.stop_asked = lambda: stop.asked
            results = _Training(model, opt, feed, states, progress, stopping).run()
    finally:
        progress.close()
    if results is not None and opt['rank'] == 0:
        write_whole(
            stage.folder / 'result.json', json.dumps({'iter': progress.total_iter, 'metrics': results}, indent=1)
        )
    return results is not None


def share_cores(opt: dict) -> None:
    """On a CPU, leaves the data workers cores of their own; ``OMP_NUM_THREADS`` overrides it.

    Compute threads that wait for each other while a worker holds their core slow a step down several times over.
    """
    if opt['num_gpu'] == 0 and 'OMP_NUM_THREADS' not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        data_opt = opt['datasets']['train']
        makes_batches = hasattr(DATASET_REGISTRY.get(data_opt['type']), 'batch')  # in a thread, without workers
        workers = 0 if makes_batches else data_opt['num_worker_per_gpu']
        torch.set_num_threads(max(1, cores // opt['world_size'] - workers))


def best_iterations(model) -> set[int]:
    """Iterations at which a model's validation figures were best."""
    best = getattr(model, 'best_metric_results', {})
    return {record['iter'] for metrics in best.values() for record in metrics.values()}


def _prepare_folder(stage: Stage, states: States, auto_resume: bool, header: str) -> Found:
    """Makes the run folder ready to write to, and finds what to go on from."""
    states.remove_leftovers()
    found = states.newest() if auto_resume else Found(None)
    if found.iteration is None:
        moved = archive(stage.folder)
        if moved:
            print(f'An earlier run was moved to {moved}. (--auto_resume would have gone on with it.)')
    for folder in (stage.folder, stage.folder / 'models', stage.folder / 'training_states'):
        make_folder(folder)
    write_options(stage.options, stage.folder / 'options.yml', header)
    return found


def _make_feed(opt: dict, device: torch.device, start_iter: int) -> Feed:
    data_opt = opt['datasets']['train']
    dataset = build_dataset(data_opt)
    get_root_logger().info(
        'Training statistics:\n'
        f'\tNumber of train images: {len(dataset)}\n'
        f'\tBatch size per gpu: {data_opt["batch_size_per_gpu"]}\n'
        f'\tWorld size (gpu number): {opt["world_size"]}\n'
        f'\tSamples per iteration: {data_opt["batch_size_per_gpu"] * opt["world_size"]}\n'
        f'\tTotal iters: {opt["train"]["total_iter"]}'
    )
    return make_feed(
        dataset,
        data_opt,
        seed=opt['manual_seed'],
        rank=opt['rank'],
        world_size=opt['world_size'],
        device=device,
        start_iter=start_iter,
    )


def _val_loaders(opt: dict) -> list:
    return [
        build_dataloader(build_dataset(data_opt), data_opt, num_gpu=opt['num_gpu'], dist=False)
        for phase, data_opt in opt['datasets'].items()
        if phase.split('_')[0] == 'val'
    ]


def _tb_logger(opt: dict, folder: Path, start_iter: int):
    if opt['rank'] != 0 or not opt['logger']['use_tb_logger']:
        return None
    from torch.utils.tensorboard import SummaryWriter

    if (opt['logger'].get('wandb') or {}).get('project'):
        init_wandb_logger(opt)
    return SummaryWriter(str(folder / 'tb_logger'), purge_step=start_iter + 1 if start_iter else None)


class _Training:
    """The iterations of a stage and what happens between them.

    Args:
        model: What is trained.
        opt: Options of the stage, completed for this machine.
        feed: The batches, from the first iteration to come.
        states: Where it is saved.
        progress: Where it is reported; knows the first and the last iteration.
        stopping: Asked after each iteration whether to stop.
    """

    def __init__(self, model, opt: dict, feed: Feed, states: States, progress: Progress, stopping: Agreement) -> None:
        self.model, self.opt, self.feed = model, opt, feed
        self.states, self.progress, self.stopping = states, progress, stopping
        self.val_freq = opt.get('val', {}).get('val_freq')
        self.val_loaders = _val_loaders(opt)
        self.finite = FiniteCheck(model, states, progress.start_iter)
        self.saved_iter = progress.start_iter

    def run(self) -> dict[str, dict[str, float]] | None:
        """Runs the iterations that are left; returns the last metrics, or None when asked to stop."""
        start_iter, total_iter = self.progress.start_iter, self.progress.total_iter
        # A kill between saving and validating leaves the validation of the resumed iteration to be done.
        if start_iter < total_iter and self._validation_due(start_iter) and self._validate(start_iter) is None:
            return None
        if not self._iterate(start_iter, total_iter):
            return None
        self._save(total_iter)
        self.model.save(-1, -1)
        return self._validate(total_iter)

    def _iterate(self, start_iter: int, total_iter: int) -> bool:
        """Runs the iterations; False when asked to stop, all saved."""
        model, feed, progress = self.model, self.feed, self.progress
        print_freq, save_freq = self.opt['logger']['print_freq'], self.opt['logger']['save_checkpoint_freq']
        warmup_iter = self.opt['train'].get('warmup_iter', -1)
        data_timer, iter_timer = AvgTimer(), AvgTimer()
        for current_iter in range(start_iter + 1, total_iter + 1):
            batch = next(feed)
            data_timer.record()
            model.update_learning_rate(current_iter, warmup_iter=warmup_iter)
            model.feed_data(batch)
            model.optimize_parameters(current_iter)
            iter_timer.record()
            progress.step()
            if current_iter % print_freq == 0:
                self._report(current_iter, iter_timer, data_timer)
            if current_iter % save_freq == 0:
                self._save(current_iter)
            validated = True
            if self._validation_due(current_iter) and current_iter < total_iter:
                validated = self._validate(current_iter) is not None
            if (self.stopping(current_iter) or not validated) and current_iter < total_iter:
                self._save(current_iter)
                return False
            data_timer.start()
            iter_timer.start()
        return True

    def _validation_due(self, current_iter: int) -> bool:
        return bool(self.val_freq and current_iter and current_iter % self.val_freq == 0)

    def _epoch(self, current_iter: int) -> int:
        """The epoch that an iteration belongs to, as BasicSR counts them: over the enlarged dataset."""
        return self.feed.epoch(current_iter - 1) // self.opt['datasets']['train'].get('dataset_enlarge_ratio', 1)

    def _report(self, current_iter: int, iter_timer: AvgTimer, data_timer: AvgTimer) -> None:
        losses = self.model.get_current_log()
        self.finite.losses(current_iter, losses)
        self.progress.losses(
            self._epoch(current_iter),
            current_iter,
            self.model.get_current_learning_rate(),
            iter_timer.get_avg_time(),
            data_timer.get_avg_time(),
            losses,
        )

    def _save(self, current_iter: int) -> None:
        if current_iter <= self.saved_iter:
            return
        self.finite.weights(current_iter)
        self.model.save(self._epoch(current_iter), current_iter)
        self.saved_iter = current_iter
        logger = self.opt['logger']
        if logger.get('keep_checkpoints') and self.opt['rank'] == 0:
            best = best_iterations(self.model)
            self.states.prune(logger['keep_checkpoints'], current_iter, logger['save_checkpoint_freq'], best)

    def _validate(self, current_iter: int) -> dict[str, dict[str, float]] | None:
        """Validates on every set; returns ``{set: {metric: value}}``, or None when asked to stop meanwhile."""
        results = {}
        for loader in self.val_loaders:
            name = loader.dataset.opt['name']
            values = None
            if current_iter == self.progress.start_iter:  # perhaps done before the run was killed; rank 0 knows
                values = from_first_rank(lambda name=name: self.progress.validated(name))
            if values is not None and values.keys() == (self.opt['val'].get('metrics') or {}).keys():
                self._take_over(name, values, current_iter)
            else:
                with random_state.preserved():  # whether it is repeated after a kill must not change the training
                    self.model.validation(
                        loader, current_iter, self.progress.tb_logger, self.opt['val'].get('save_img', False)
                    )
                values = getattr(self.model, 'metric_results', {})
                if values is None:
                    return None
                values = {key: float(value) for key, value in values.items()}
                self.progress.metrics(current_iter, name, values)
            results[name] = values
        return results

    def _take_over(self, dataset: str, values: dict[str, float], current_iter: int) -> None:
        """Lets metrics that were recorded before the run was killed count for the best ones."""
        self.model._initialize_best_metric_results(dataset)
        for metric, value in values.items():
            self.model._update_best_metric_result(dataset, metric, value, current_iter)
