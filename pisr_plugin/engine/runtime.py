"""What a stage's options gain on this machine at this moment: devices, ranks, phases, folders, log."""

from __future__ import annotations

import logging
import os
from copy import deepcopy
from pathlib import Path

import torch
import yaml
from basicsr.utils.dist_util import get_dist_info
from basicsr.utils.logger import initialized_logger

from pisr_plugin.data.check import check_dataset
from pisr_plugin.engine.stages import Stage
from pisr_plugin.errors import OptionsError, PISRError
from pisr_plugin.files import write_whole

_FORMAT = logging.Formatter('%(asctime)s %(levelname)s: %(message)s')


def runtime_options(stage: Stage, folder: Path, is_train: bool) -> dict:
    """Completes a stage's options as BasicSR's ``parse_options`` would.

    Args:
        stage: The stage to run.
        folder: Where the run writes.
        is_train: Training or testing.

    Raises:
        OptionsError: GPUs are asked for that are not there.
    """
    opt = deepcopy(stage.options)
    opt['rank'], opt['world_size'] = get_dist_info()
    opt['dist'] = opt['world_size'] > 1
    opt['is_train'], opt['auto_resume'], opt['root_path'] = is_train, False, str(Path.cwd())
    opt['num_gpu'] = _gpus(opt.get('num_gpu', 'auto'), opt['dist'])
    opt.setdefault('manual_seed', 0)
    for phase, dataset in opt['datasets'].items():
        dataset.update(phase=phase.split('_')[0], scale=opt['scale'])
        for key in ('dataroot_gt', 'dataroot_lq'):
            if key in dataset:
                dataset[key] = os.path.expanduser(dataset[key])
    opt['path'] = {**opt.get('path', {}), 'log': str(folder), 'visualization': str(folder / 'visualization')}
    if is_train:
        opt['path'].update(
            experiments_root=str(folder), models=str(folder / 'models'), training_states=str(folder / 'training_states')
        )
        opt['logger'].setdefault('use_tb_logger', False)
        phases = ('train', 'val') if opt.get('val') else ('train',)  # without val nothing is validated, as in BasicSR
        opt['datasets'] = {key: value for key, value in opt['datasets'].items() if value['phase'] in phases}
    else:
        opt['path']['results_root'] = str(folder)
        opt['datasets'] = {key: value for key, value in opt['datasets'].items() if value['phase'] in ('val', 'test')}
    if 'val' in opt:
        opt['val'].setdefault('save_img', False)
        opt['val'].setdefault('suffix', None)
    return opt


def check_data(stage: Stage) -> None:
    """Checks all data sets of a stage.

    Raises:
        DataError: a set is missing, damaged or of another scale.
    """
    for phase, dataset in stage.options['datasets'].items():
        check_dataset({**dataset, 'phase': phase.split('_')[0]}, f'datasets.{phase}', stage.options['scale'])


def _gpus(wanted: int | str, dist: bool) -> int:
    available = torch.cuda.device_count()
    if wanted == 'auto':
        return available if dist else min(available, 1)
    if wanted > available:
        raise OptionsError(
            f'num_gpu: {wanted}, but this machine has {available} CUDA device(s). Use auto, or 0 for the CPU.'
        )
    if wanted > 1 and not dist:
        raise OptionsError(
            f'num_gpu: {wanted} in one process. Start one process per GPU: torchrun --nproc_per_node '
            f'{wanted} tools/train.py -opt RECIPE --launcher pytorch'
        )
    return wanted


def write_options(options: dict, path: Path, header: str) -> None:
    """Saves resolved options as YAML that BasicSR reads, with a comment on top."""
    comment = ''.join(f'# {line}\n' for line in header.splitlines())
    write_whole(path, comment + yaml.safe_dump(options, sort_keys=False, allow_unicode=True))


def make_folder(path: Path) -> None:
    """Creates a folder that a run will write to.

    Raises:
        PISRError: it cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PISRError(f'{path}: cannot create this folder: {error.strerror}') from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise PISRError(f'{path}: this folder is not writable.')


class quiet:
    """Silences BasicSR's logger inside a block."""

    def __enter__(self) -> None:
        logging.getLogger('basicsr').disabled = True

    def __exit__(self, *_: object) -> None:
        logging.getLogger('basicsr').disabled = False


def open_log(path: Path, rank: int = 0) -> logging.Logger:
    """Points BasicSR's logger at the terminal and at ``path``; each stage has a log of its own."""
    logger = logging.getLogger('basicsr')
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = False
    initialized_logger['basicsr'] = True  # BasicSR would add a second terminal handler
    logger.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if rank == 0:
        handlers.append(logging.FileHandler(path, encoding='utf-8'))
    for handler in handlers:
        handler.setFormatter(_FORMAT)
        logger.addHandler(handler)
    return logger
