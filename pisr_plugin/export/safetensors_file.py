"""Safetensors with a card beside it: what every command of this package takes as a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from pisr_plugin.archs.network_info import split_output
from pisr_plugin.inference.card import Card, checksum, write_card
from pisr_plugin.inference.descriptor import ModelDescriptor, load_model
from pisr_plugin.utils.files import write_whole
from pisr_plugin.utils.logging import quiet


def write(model: ModelDescriptor, card: Card, path: Path, half: bool = False) -> None:
    """Writes a network's weights, and its card beside them.

    Args:
        model: The network.
        card: Its card; file and checksum are replaced.
        path: The file to write.
        half: Whether to store weights in float16.
    """
    assert model.net is not None
    weights = {key: value.detach().clone().contiguous() for key, value in model.net.state_dict().items()}
    if half:
        weights = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    write_whole(path, save(weights, {'format': 'pt'}))
    write_card(replace(card, weights=path, param_key='params', sha256=checksum(path), parameters=model.parameters))


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """Loads the network as every command does."""
    with quiet():
        net = load_model(path).net
    assert net is not None
    return torch.no_grad()(lambda lq: split_output(net(lq))[0])
