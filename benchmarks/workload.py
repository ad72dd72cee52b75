"""The training steps that benchmarks time: ours from a recipe, the plain loop beside it with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from basicsr.models import build_model
from torch import Tensor
from torch.nn import functional as F

from benchmarks import plain
from benchmarks.harness import Settings
from pisr_plugin.config.compose import compose, override
from pisr_plugin.config.runtime import runtime_options
from pisr_plugin.config.schema import check_options
from pisr_plugin.config.stages import select, unroll
from pisr_plugin.models.pisr_model import PISRModel

OPTIONS = Path(__file__).parents[1] / 'options'


def stage_options(recipe: str, stage: str, settings: Settings, changes: Sequence[str] = ()) -> dict:
    """Resolved and checked options of a recipe's stage, as a training run has them.

    Args:
        recipe: A file of ``options/`` without its suffix.
        stage: One of its stages.
        settings: Device and sizes.
        changes: As for ``--force_yml``, e.g. ``train:compile=true``.

    Raises:
        PISRError: the options do not exist or do not fit together.
    """
    size = ['datasets:train:gt_size=32', 'datasets:train:batch_size_per_gpu=2'] if settings.quick else []
    options = override(compose(OPTIONS / f'{recipe}.yml'), [*size, *changes])
    [chosen] = select(unroll(options), stage)
    check_options(chosen.options, chosen.option_path)
    opt = runtime_options(chosen, Path('experiments') / recipe, is_train=True)
    opt['path'].pop('pretrain_network_t', None)  # timing needs no trained teacher
    opt['num_gpu'] = 1 if settings.device == 'cuda' else 0
    return opt


def build(opt: dict) -> PISRModel:
    """The real model of a training run; equal options give equal weights."""
    torch.manual_seed(0)
    return build_model(deepcopy(opt))  # BasicSR takes options apart while it builds


def make_batch(opt: dict) -> dict[str, Tensor]:
    """A batch of smooth noise images in the sizes that the options name."""
    data = opt['datasets']['train']
    channels, size = 1 if data['color'] == 'y' else 3, data['gt_size']
    noise = torch.rand(data['batch_size_per_gpu'], channels, size // 4, size // 4, generator=_generator())
    gt = F.interpolate(noise, size=size, mode='bicubic').clamp(0, 1)
    lq = F.interpolate(gt, size=size // opt['scale'], mode='bicubic', antialias=True).clamp(0, 1)
    return {'lq': lq, 'gt': gt}


def iterate(model: PISRModel, batch: dict[str, Tensor], current_iter: int = 2) -> None:
    """One iteration of a training run, in the order of BasicSR's loop."""
    model.update_learning_rate(current_iter, warmup_iter=-1)
    model.feed_data(batch)
    model.optimize_parameters(current_iter)


def plain_loop(
    model: PISRModel,
    *,
    channels_last: bool = False,
    to_tap: bool = False,
    dtype: torch.dtype = torch.float32,
    **adam,
) -> plain.Loop:
    """The straightforward loop of the same stage, with ``model``'s weights.

    Args:
        model: Ours, before its first step.
        channels_last: Gives the loop this one lever.
        to_tap: Stops the teacher at the feature.
        dtype: float64 makes it the reference of parity.
        adam: Further arguments of Adam.
    """
    opt = model.opt
    channels = 1 if opt['datasets']['train']['color'] == 'y' else 3
    optim = {key: value for key, value in opt['train']['optim_g'].items() if key in ('lr', 'betas')} | adam

    def network(ours) -> torch.nn.Module:
        return plain.load_by_position(plain.NETWORKS[type(ours).__name__](channels, opt['scale']), ours)

    def teacher(ours) -> plain.Teacher:
        return plain.load_by_position(plain.Teacher(network(ours.decoder), channels, opt['scale']), ours)

    def placed(module: torch.nn.Module) -> torch.nn.Module:
        return module.to(model.device, dtype)

    if model.label == 't':
        return plain.TeacherStage({'teacher': placed(teacher(model.net))}, optim, channels_last)
    modules = {'student': placed(network(model.net))}
    if model.teacher is None:
        return plain.PlainTraining(modules, optim, channels_last)
    [estimator] = model.estimators.values()
    width = next(iter(estimator.parameters())).shape[0]
    modules['estimator'] = placed(plain.load_by_position(plain.Estimator(width), estimator))
    return plain.StudentStage(modules, optim, placed(teacher(model.teacher)), channels_last, to_tap)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
