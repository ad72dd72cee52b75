"""Checks before a stage is trained: data, hand-offs, networks, packages, and whether it is finished."""

from __future__ import annotations

import importlib.util
from collections.abc import Container, Iterator
from pathlib import Path

from basicsr.models import build_model

from pisr_plugin.config.compose import below, compose
from pisr_plugin.config.runtime import check_data, runtime_options
from pisr_plugin.config.stages import Stage, weight_options
from pisr_plugin.engine.nan_check import check_start
from pisr_plugin.utils import random_state
from pisr_plugin.utils.errors import CheckpointError, OptionsError, first_line
from pisr_plugin.utils.logging import quiet


def is_finished(stage: Stage) -> bool:
    """Returns whether the stage was trained to its end before.

    Raises:
        OptionsError: It was, with other options, or its saved options cannot be read.
    """
    options = stage.folder / 'options.yml'
    if not all(file.is_file() for file in (stage.folder / 'result.json', options, stage.checkpoint)):
        return False
    try:
        saved = compose(options)
        if not isinstance(saved.get('datasets', {}), dict):
            raise OptionsError('datasets: wrong value. Expected a mapping.')
    except OptionsError as error:
        raise OptionsError(
            f'{options}: the options of this finished stage cannot be read ({first_line(error)}). Put the file back, '
            'or move its folder away to train the stage again.'
        ) from None
    differing = list(_differences(weight_options(saved), weight_options(stage.options)))
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
            yield from _differences(old.get(key), new.get(key), below(path, key))
    elif old != new:
        yield path, old, new


def preflight(stages: list[Stage]) -> None:
    """Checks everything that can be checked before the first stage writes its first file.

    These are data, hand-offs, packages, and the networks with their taps, links and losses on one noise patch.

    Args:
        stages: The stages to train, in order.

    Raises:
        PISRError: The first mistake found.
    """
    to_come = {path for stage in stages for path in stage.products.values()}
    for stage in stages:
        for option_path, path in stage.needs.items():
            if path not in to_come and not path.is_file():
                raise CheckpointError(
                    f'{option_path}: {path} does not exist. Train that stage first, or name a file: '
                    f'--force_yml {option_path.replace(".", ":")}=FILE'
                )
        check_data(stage, is_train=True)
        _check_loggers(stage.options['logger'])
        opt = runtime_options(stage, stage.folder, is_train=True)
        if 'train' not in opt['datasets']:
            raise OptionsError('datasets.train: missing; there is nothing to train on.')
        check_schedule(opt['train'])
        check_start(build_trial(opt, to_come))


def _check_loggers(logger_opt: dict) -> None:
    wanted = {'tensorboard': logger_opt.get('use_tb_logger')}
    wanted['wandb'] = wanted['tensorboard'] and (logger_opt.get('wandb') or {}).get('project')
    for (package, value), key in zip(wanted.items(), ('use_tb_logger', 'wandb.project')):
        if value and importlib.util.find_spec(package) is None:
            raise OptionsError(
                f'logger.{key}: {package} is not installed (found {value!r}). Expected it: pip install {package}. '
                'Or remove this option.'
            )


def build_trial(opt: dict, to_come: Container[Path], num_gpu: int = 0):
    """Builds the model of a stage, uncompiled, without writing a file or drawing from the global random state.

    Args:
        opt: From :func:`~pisr_plugin.config.runtime.runtime_options`.
        to_come: Checkpoints that earlier stages will write; their networks keep random weights.
        num_gpu: 1 to build on the GPU, 0 for the CPU.

    Raises:
        PISRError: Networks, taps, losses, checkpoints and data do not fit together.
    """
    path = {
        key: value
        for key, value in opt['path'].items()
        if not (key.startswith('pretrain_network') and Path(str(value)) in to_come)
    }
    train = {key: value for key, value in opt['train'].items() if key != 'compile'}
    with quiet(), random_state.preserved():
        return build_model({**opt, 'train': train, 'path': path, 'dist': False, 'num_gpu': num_gpu})


def check_schedule(train_opt: dict) -> None:
    """Checks that a cosine schedule lasts as long as the training. BasicSR's fails when it ends before.

    Args:
        train_opt: The options under ``train``.

    Raises:
        OptionsError: The periods of the schedule end before the training.
    """
    periods, total_iter = (train_opt.get('scheduler') or {}).get('periods'), train_opt['total_iter']
    if periods and sum(periods) < total_iter - 1:
        raise OptionsError(
            f'train.scheduler.periods: {periods} end before train.total_iter, {total_iter}. '
            f'Make them add up to it, e.g. [{total_iter}].'
        )
