"""Trial runs on one noise patch, so that networks, data and options that do not fit fail before the first batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pisr_plugin.archs.network_info import split_output
from pisr_plugin.models.step import StepOptions, TeacherFeatures
from pisr_plugin.utils.errors import OptionsError


@torch.no_grad()
def check_network(
    net: nn.Module,
    inputs: Sequence[Tensor],
    batch: Mapping[str, Tensor],
    opt: Mapping[str, Any],
    option_path: str,
    needs_compact: bool,
) -> None:
    """Checks that the trained network accepts the data and returns images of gt's size.

    Args:
        net: The trained network; it is in evaluation mode afterwards.
        inputs: What it sees of ``batch``.
        batch: One noise pair, ``lq`` and ``gt``.
        opt: Options of the stage.
        option_path: Option path of the network.
        needs_compact: Whether the network must also return a compact feature of lq's size.

    Raises:
        OptionsError: it does not.
    """
    name = type(net).__name__
    try:
        sr, compact = split_output(net.eval()(*inputs))
    except (RuntimeError, ValueError) as error:
        raise OptionsError(
            f'{option_path}: {name} cannot process patches of shape {[tuple(x.shape) for x in inputs]} '
            f'(datasets.train: gt_size, color; scale): {error}'
        ) from None
    if sr.shape != batch['gt'].shape:
        raise OptionsError(
            f'{option_path}: {name} turns {tuple(inputs[0].shape)} into {tuple(sr.shape)}, but with scale '
            f'{opt["scale"]} and this data it should be {tuple(batch["gt"].shape)}. Check scale, '
            f'{option_path}.upscale, num_out_ch and datasets.train.color.'
        )
    if needs_compact and (compact is None or compact.shape != batch['lq'].shape):
        found = 'none' if compact is None else f'one of shape {tuple(compact.shape)}'
        raise OptionsError(
            f'train.imitation_opt compares a compact feature with lq {tuple(batch["lq"].shape)}, '
            f'but {option_path} {name} returns {found}.'
        )


@torch.no_grad()
def check_discriminator(net: nn.Module, criterion: nn.Module, gt: Tensor) -> None:
    """Checks that a discriminator judges patches and that its loss is a scalar.

    Args:
        net: The discriminator in evaluation mode.
        criterion: The GAN loss.
        gt: A noise patch (N, C, H, W).

    Raises:
        OptionsError: they do not fit.
    """
    name = type(criterion).__name__
    try:
        loss = criterion(net(gt), True, is_disc=True)
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
        raise OptionsError(
            f'network_d: {type(net).__name__} with train.gan_opt {name} cannot judge images of shape '
            f'{tuple(gt.shape)} (datasets.train: gt_size, color): {error}'
        ) from None
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise OptionsError(f'train.gan_opt: {name} does not return a scalar.')


def check_teacher(features: TeacherFeatures, batch: Mapping[str, Tensor], options: StepOptions) -> None:
    """Checks that the teacher runs in the precision of the options.

    Args:
        features: Computes the teacher's features.
        batch: One noise pair, ``lq`` and ``gt``.
        options: How the step is computed.

    Raises:
        OptionsError: it does not.
    """
    try:
        for _ in range(2):  # the first pass runs to its end, the second to the last tap
            features(batch)
    except RuntimeError as error:
        precision = 'amp_teacher' if options.amp_teacher else 'amp'
        value, name = getattr(options, precision), type(features.teacher).__name__
        if value is None:
            raise OptionsError(f'network_t: {name} does not run: {error}') from None
        raise OptionsError(f'train.{precision}: {name} does not run in {value}: {error}') from None
