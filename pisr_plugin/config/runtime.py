"""What a stage's options gain on this machine at this moment: devices, ranks, phases, folders."""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path
from typing import Literal

import torch
from basicsr.utils.dist_util import get_dist_info

from pisr_plugin.config.parse import dump
from pisr_plugin.config.stages import Stage
from pisr_plugin.data.datasets.check import check_dataset
from pisr_plugin.utils.errors import OptionsError, PISRError
from pisr_plugin.utils.files import write_whole


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
    else:
        opt['path']['results_root'] = str(folder)
    opt['datasets'] = {key: opt['datasets'][key] for key in phases(opt, is_train)}
    if 'val' in opt:
        opt['val'].setdefault('save_img', False)
        opt['val'].setdefault('suffix', None)
    return opt


def phases(options: dict, is_train: bool) -> list[str]:
    """The keys of ``datasets`` that a stage uses: without ``val`` training validates nothing, as in BasicSR."""
    wanted = (('train', 'val') if options.get('val') else ('train',)) if is_train else ('val', 'test')
    return [key for key in options['datasets'] if key.split('_')[0] in wanted]


def check_data(stage: Stage, is_train: bool = False) -> None:
    """Checks the data sets that a stage uses.

    Args:
        stage: The stage.
        is_train: Training or testing.

    Raises:
        DataError: a set is missing, damaged or of another scale.
    """
    for key in phases(stage.options, is_train):
        dataset = {**stage.options['datasets'][key], 'phase': key.split('_')[0]}
        check_dataset(dataset, f'datasets.{key}', stage.options['scale'])


def _gpus(wanted: int | Literal['auto'], dist: bool) -> int:
    available = torch.cuda.device_count()
    if wanted == 'auto':
        return available if dist else min(available, 1)
    if wanted > available:
        raise OptionsError(
            f'num_gpu: {wanted}, but this machine has {available} CUDA device(s). Use auto, or 0 for the CPU.'
        )
    if wanted > 1 and not dist:
        raise OptionsError(
            f'num_gpu: {wanted} in one process. Start one process per GPU: torchrun --no-python --nproc_per_node '
            f'{wanted} pisr-train -opt RECIPE --launcher pytorch'
        )
    return wanted


def write_options(options: dict, path: Path, header: str) -> None:
    """Saves resolved options as YAML that BasicSR reads, with a comment on top."""
    comment = ''.join(f'# {line}\n' for line in header.splitlines())
    write_whole(path, comment + dump(options))


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
