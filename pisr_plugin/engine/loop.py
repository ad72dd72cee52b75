"""The training of one stage, from its options to its result."""

from __future__ import annotations

import datetime
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model
from basicsr.utils import AvgTimer, check_resume, get_root_logger, get_time_str, init_wandb_logger, set_random_seed
from basicsr.utils.dist_util import get_dist_info
from basicsr.utils.options import dict2str
from basicsr.utils.registry import DATASET_REGISTRY

from pisr_plugin.config.runtime import make_folder, runtime_options, write_options
from pisr_plugin.config.stages import Stage
from pisr_plugin.data.loading.train_loader import TrainLoader, build_train_loader
from pisr_plugin.diagnostics.gradients import WEAK, weak_links
from pisr_plugin.engine.cpu_timer import CpuTimer
from pisr_plugin.engine.distributed import from_first_rank
from pisr_plugin.engine.nan_check import NaNGuard, check_start
from pisr_plugin.engine.signals import GracefulStop, StopConsensus
from pisr_plugin.engine.stage_card import stage_card
from pisr_plugin.engine.train import is_finished
from pisr_plugin.engine.train_logger import TrainLogger
from pisr_plugin.engine.training_states import ResumePoint, TrainingStates, archive
from pisr_plugin.inference.card import write_card
from pisr_plugin.utils import random_state
from pisr_plugin.utils.devices import device_name, fp32_precision
from pisr_plugin.utils.errors import PISRError
from pisr_plugin.utils.files import locked, sync_folder, write_whole
from pisr_plugin.utils.logging import file_only, notice, open_log
from pisr_plugin.utils.malloc import keep_freed_memory
from pisr_plugin.utils.parallel import available_cores


def run_stage(
    stage: Stage, stop: GracefulStop, auto_resume: bool = False, header: str = '', verbose: bool = False
) -> bool:
    """Trains one stage.

    Args:
        stage: The stage to train.
        stop: The requests to stop that this process gets.
        auto_resume: Whether to go on from the newest complete state in the stage's folder.
        header: Comment for the saved options.
        verbose: Whether the terminal shows all options and networks, as the log file does.

    Returns:
        False when a request stopped it before its end; its state is saved then.

    Raises:
        PISRError: Options, data or files do not allow the training, memory is too small, or a loss is not finite.
    """
    make_folder(stage.folder.parent)
    lock = stage.folder.parent / f'.{stage.folder.name}.lock'  # not inside, because the folder may be moved away
    with locked(lock) if get_dist_info()[0] == 0 else nullcontext(True) as free:
        if not free:
            raise PISRError(f'{stage.folder}: another process trains this stage. Wait for it, or stop it first.')
        with _memory_explained():
            return _run_stage(stage, stop, auto_resume, header, verbose)


def _run_stage(stage: Stage, stop: GracefulStop, auto_resume: bool, header: str, verbose: bool) -> bool:
    opt = runtime_options(stage, stage.folder, is_train=True)
    states = TrainingStates(stage.folder, f'net_{stage.network[-1]}')
    found = from_first_rank(lambda: _prepare_folder(stage, states, auto_resume, header))
    if found is None:
        return True
    logger = open_log(stage.folder / f'train_{opt["name"]}_{get_time_str()}.log', opt['rank'])
    for line in found.skipped:
        logger.warning(f'Skipped: {line}')

    share_cores(opt)
    if opt['num_gpu'] == 0 and opt.get('keep_memory', True):
        keep_freed_memory()
    set_random_seed(opt['manual_seed'] + opt['rank'])
    torch.backends.cudnn.benchmark = True
    start_iter = found.iteration or 0
    if found.state is not None:
        opt['path']['resume_state'] = str(states.file(start_iter))
        check_resume(opt, start_iter)
    with nullcontext() if verbose else file_only():
        logger.info(dict2str(deepcopy(opt)))
        model = build_model(opt)
        if found.state is not None:
            model.resume_training(found.state)
            states.best = best_iterations(model)
            found.state = None
    check_start(model)
    for line in _summary(stage, opt, model, start_iter):
        logger.info(line)

    train_logger = TrainLogger(
        opt['name'],
        start_iter,
        opt['train']['total_iter'],
        stage.folder,
        _tb_logger(opt, stage.folder, start_iter),
        opt['rank'] == 0,
    )
    try:
        with stop.deferred() as stopping, _build_loader(opt, model, start_iter) as loader:
            model.stop_asked = lambda: stop.asked
            results = _Training(model, opt, loader, states, train_logger, stopping).run()
    finally:
        train_logger.close()
    if results is not None and opt['rank'] == 0:
        train_logger.sync()  # before the file that says that the stage is finished
        write_card(stage_card(stage))
        result = {'iter': train_logger.total_iter, 'metrics': results}
        write_whole(stage.folder / 'result.json', json.dumps(result, indent=1))
    return results is not None


@contextmanager
def _memory_explained() -> Iterator[None]:
    """Raises one message in place of torch's errors about memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error) or 'out of memory'
        if not isinstance(error, MemoryError) and not re.search("out of memory|can't allocate memory", text):
            raise
        raise PISRError(
            f'training: the memory is too small ({text.splitlines()[0]}). Lower datasets.train.batch_size_per_gpu or '
            'gt_size, or set train.accumulate: 2, or train.amp: bf16. Then go on with --auto_resume.'
        ) from None


def _summary(stage: Stage, opt: dict, model, start_iter: int) -> list[str]:
    """Lines that tell what is trained, on what, from where and to where."""
    networks = ', '.join(f'{key} {value["type"]}' for key, value in opt.items() if key.startswith('network_'))
    trained = sum(p.numel() for one in model.optimizers for group in one.param_groups for p in group['params'])
    train_opt = opt['train']
    losses = ', '.join(key for key in train_opt if key.endswith('_opt'))
    optimizer = train_opt.get('optim_g') or {}
    lines = [
        f'Stage {stage.name or opt["name"]} of {stage.recipe}: {networks}, x{opt["scale"]}, {trained:,d} trained '
        f'parameters',
        *(f'  {key}: {value}' for key, value in opt['path'].items() if key.startswith('pretrain_network_')),
        f'  losses: {losses}; {optimizer.get("type")}, learning rate {optimizer.get("lr")}',
        f'  validation: {", ".join(v["name"] for v in opt["datasets"].values() if v["phase"] == "val") or "none"}',
        f'  iterations: {start_iter} of {train_opt["total_iter"]} done; on '
        f'{device_name(bool(opt["num_gpu"]))} in {train_opt.get("amp") or fp32_precision(bool(opt["num_gpu"]))}',
        f'  results and all options: {stage.folder}',
    ]
    if start_iter:
        lines.append(f'Resuming training from iter: {start_iter}.')
    return lines


def share_cores(opt: dict) -> None:
    """Sets the number of compute threads on a CPU so that the data workers have cores of their own.

    Compute threads that wait for each other while a worker uses their core slow a step down several times.
    ``OMP_NUM_THREADS`` overrides it.

    Args:
        opt: The stage's options, completed for this machine.
    """
    if opt['num_gpu'] == 0 and 'OMP_NUM_THREADS' not in os.environ:
        data_opt = opt['datasets']['train']
        makes_batches = hasattr(DATASET_REGISTRY.get(data_opt['type']), 'batch')  # in a thread, without workers
        workers = 0 if makes_batches else data_opt['num_worker_per_gpu']
        torch.set_num_threads(max(1, available_cores() // opt['world_size'] - workers))


def best_iterations(model) -> set[int]:
    """Returns the iterations at which a model's validation metrics were best."""
    best = getattr(model, 'best_metric_results', {})
    return {record['iter'] for metrics in best.values() for record in metrics.values()}


def _prepare_folder(stage: Stage, states: TrainingStates, auto_resume: bool, header: str) -> ResumePoint | None:
    """Creates the run folder and finds the state to go on from; None when the stage is finished."""
    if is_finished(stage):
        notice(f'{stage.folder}: another process has finished this stage meanwhile.')
        return None
    states.remove_leftovers()
    found = states.newest() if auto_resume else ResumePoint()
    if found.iteration is None:
        moved = archive(stage.folder)
        if moved:
            notice(f'An earlier run was moved to {moved}. (--auto_resume goes on with it instead.)')
    for folder in (stage.folder, stage.folder / 'models', stage.folder / 'training_states'):
        make_folder(folder)
    for folder in (stage.folder, *list(stage.folder.parents)[: 3 if stage.name else 2]):  # to that of experiments/
        sync_folder(folder)
    write_options(stage.options, stage.folder / 'options.yml', header)
    return found


def _build_loader(opt: dict, model, start_iter: int) -> TrainLoader:
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
    indices_only = getattr(dataset, 'on_device', False) and getattr(model, 'gathers', False)
    if indices_only:
        model.gather_with(dataset.gather)
    return build_train_loader(
        dataset,
        data_opt,
        seed=opt['manual_seed'],
        rank=opt['rank'],
        world_size=opt['world_size'],
        device=model.device,
        start_iter=start_iter,
        indices_only=indices_only,
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
    """The iterations of a stage, with saving and validation between them.

    Args:
        model: BasicSR model to train.
        opt: The stage's options, completed for this machine.
        loader: The batches, from the first iteration to come.
        states: The run's training states.
        train_logger: Reports the run; knows the first and the last iteration.
        stopping: Returns after each iteration whether to stop.
    """

    def __init__(
        self,
        model,
        opt: dict,
        loader: TrainLoader,
        states: TrainingStates,
        train_logger: TrainLogger,
        stopping: StopConsensus,
    ) -> None:
        self.model, self.opt, self.loader = model, opt, loader
        self.states, self.train_logger, self.stopping = states, train_logger, stopping
        self.val_freq = opt.get('val', {}).get('val_freq')
        self.val_loaders = _val_loaders(opt)
        self.nan_guard = NaNGuard(model, states, train_logger.start_iter)
        self.saved_iter = train_logger.start_iter

    def run(self) -> dict[str, dict[str, float]] | None:
        """Runs the iterations that are left; returns the last metrics by set, or None when asked to stop."""
        start_iter, total_iter = self.train_logger.start_iter, self.train_logger.total_iter
        # A kill between saving and validating leaves the validation of the resumed iteration to be done.
        if start_iter < total_iter and self._validation_due(start_iter) and self._validate(start_iter) is None:
            return None
        logger, started = get_root_logger(), time.monotonic()
        logger.info(f'Start training from epoch: {self._epoch(start_iter + 1)}, iter: {start_iter}')
        if not self._iterate(start_iter, total_iter):
            return None
        consumed = datetime.timedelta(seconds=int(time.monotonic() - started))
        logger.info(f'End of training. Time consumed: {consumed}')
        self._save(total_iter)
        logger.info('Save the latest model.')
        self.model.save(-1, -1)
        return self._validate(total_iter)

    def _iterate(self, start_iter: int, total_iter: int) -> bool:
        """Runs the iterations; returns False when asked to stop, with all saved."""
        model, loader = self.model, self.loader
        print_freq, save_freq = self.opt['logger']['print_freq'], self.opt['logger']['save_checkpoint_freq']
        warmup_iter = self.opt['train'].get('warmup_iter', -1)
        data_timer, iter_timer, cpu_timer = AvgTimer(), AvgTimer(), CpuTimer()
        for current_iter in range(start_iter + 1, total_iter + 1):
            batch = next(loader)
            data_timer.record()
            if current_iter == 1:
                self._log_weak_links(batch)
                iter_timer.start()
                cpu_timer.start()
            model.update_learning_rate(current_iter, warmup_iter=warmup_iter)
            model.feed_data(batch)
            model.optimize_parameters(current_iter)
            iter_timer.record()
            cpu_timer.record()
            self.train_logger.step()
            if current_iter % print_freq == 0:
                self._report(current_iter, iter_timer, data_timer, cpu_timer)
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
            cpu_timer.start()
        return True

    def _log_weak_links(self, batch: dict) -> None:
        """Logs one line if links have hardly any share of the gradient, which is often a mistake in a weight."""
        if self.opt['rank'] == 0 and (weak := weak_links(self.model, batch, 1)):
            links = ', '.join(f'{name} {share:.1g}' for name, share in weak.items())
            options = Path(self.opt['path']['experiments_root']) / 'options.yml'
            get_root_logger().warning(
                f'Share of the gradient below {WEAK:g} in the first iteration: link {links}. '
                f'pisr-gradients -opt {options} shows all shares.'
            )

    def _validation_due(self, current_iter: int) -> bool:
        return bool(self.val_freq and current_iter and current_iter % self.val_freq == 0)

    def _epoch(self, current_iter: int) -> int:
        """Returns the epoch of an iteration as BasicSR counts them: over the enlarged dataset."""
        return self.loader.epoch(current_iter - 1) // self.opt['datasets']['train'].get('dataset_enlarge_ratio', 1)

    def _report(self, current_iter: int, iter_timer: AvgTimer, data_timer: AvgTimer, cpu_timer: CpuTimer) -> None:
        losses = self.model.get_current_log()
        self.nan_guard.losses(current_iter, losses)
        self.train_logger.losses(
            self._epoch(current_iter),
            current_iter,
            self.model.get_current_learning_rate(),
            iter_timer.get_avg_time(),
            data_timer.get_avg_time(),
            losses,
            cpu_timer.mean(),
        )

    def _save(self, current_iter: int) -> None:
        if current_iter > self.saved_iter:
            self.nan_guard.weights(current_iter)
            get_root_logger().info('Saving models and training states.')
            self.train_logger.sync()
            self.model.save(self._epoch(current_iter), current_iter)
            self.saved_iter = current_iter
        logger = self.opt['logger']
        # A kill between saving and deleting leaves the deleting to be done.
        if logger.get('keep_checkpoints') and self.opt['rank'] == 0:
            best = best_iterations(self.model)
            self.states.prune(logger['keep_checkpoints'], current_iter, logger['save_checkpoint_freq'], best)

    def _validate(self, current_iter: int) -> dict[str, dict[str, float]] | None:
        """Validates on every set; returns the metrics by set, or None when asked to stop meanwhile."""
        results = {}
        for loader in self.val_loaders:
            name = loader.dataset.opt['name']
            values = None
            if current_iter == self.train_logger.start_iter:  # perhaps done before a kill; rank 0 knows
                values = from_first_rank(partial(self.train_logger.validated, name))
            if values is not None and values.keys() == (self.opt['val'].get('metrics') or {}).keys():
                self._take_over(name, values, current_iter)
            else:
                with random_state.preserved():  # a validation repeated after a kill must not change the training
                    self.model.validation(
                        loader, current_iter, self.train_logger.tb_logger, self.opt['val'].get('save_img', False)
                    )
                values = getattr(self.model, 'metric_results', {})
                if values is None:
                    return None
                values = {key: float(value) for key, value in values.items()}
                self.train_logger.metrics(current_iter, name, values)
            results[name] = values
        return results

    def _take_over(self, dataset: str, values: dict[str, float], current_iter: int) -> None:
        """Counts metrics that were recorded before a kill among the best ones."""
        self.model._initialize_best_metric_results(dataset)
        for metric, value in values.items():
            self.model._update_best_metric_result(dataset, metric, value, current_iter)
