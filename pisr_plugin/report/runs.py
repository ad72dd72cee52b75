"""Read training runs for the report: options, networks, images as networks take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pisr_plugin.config.parse import read_yaml
from pisr_plugin.evaluation.protocol import as_input
from pisr_plugin.evaluation.results import Run
from pisr_plugin.inference.descriptor import load_model
from pisr_plugin.utils.errors import OptionsError
from pisr_plugin.utils.logging import quiet


def run_options(run: Run) -> dict[str, Any]:
    """The options of a run; empty where ``options.yml`` is missing or damaged, so that the run is left out."""
    path = run.folder / 'options.yml'
    try:
        options = read_yaml(path)
    except OptionsError:
        options = None
    return options if isinstance(options, dict) else {}


def train_block(options: dict, key: str) -> dict:
    """A block of ``train``, such as ``distill_opt``; empty where there is none."""
    return (options.get('train') or {}).get(key) or {}


def load_network(network: dict, path: Path, options: dict) -> nn.Module:
    """Builds a network of a run and loads its checkpoint, the averaged weights if the run has them.

    Args:
        network: Options of the network.
        path: The checkpoint.
        options: Options of the run.
    """
    key = 'params_ema' if (options.get('train') or {}).get('ema_decay') else 'params'
    with quiet():
        net = load_model(network, path, key, allow_gt=True).net
    assert net is not None  # bicubic interpolation alone has none
    return net


def to_tensor(image: np.ndarray, channels: int) -> Tensor:
    """Converts an RGB image, (H, W, 3), uint8, to (C, H, W) in [0, 1]; one channel is BT.601 luminance."""
    return torch.from_numpy(np.ascontiguousarray(as_input(image, channels).transpose(2, 0, 1)))
