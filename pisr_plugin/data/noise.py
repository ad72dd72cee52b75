"""Noise shaped like training patches, for trials without data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def noise_batch(opt: Mapping[str, Any], count: int) -> dict[str, Tensor]:
    """So many noise image pairs shaped like a stage's training patches, always the same.

    Args:
        opt: The stage's options.
        count: Number of pairs.
    """
    data_opt, scale = opt['datasets']['train'], opt['scale']
    channels = 1 if data_opt.get('color') == 'y' else 3
    size = data_opt.get('gt_size') or 32 * scale
    generator = torch.Generator().manual_seed(0)
    sides = {'lq': size // scale, 'gt': size}
    return {name: torch.rand(count, channels, side, side, generator=generator) for name, side in sides.items()}
