"""torch.export: a ``.pt2`` file that runs in PyTorch without the code of the network."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from pisr_plugin.export.onnx_file import metadata
from pisr_plugin.inference.card import Card
from pisr_plugin.utils.files import write_whole


def write(program: ExportedProgram, card: Card, window: int, path: Path) -> None:
    """Writes a graph as ``.pt2``; ``torch.export.load(path, extra_files={'card': ''})`` reads the card too."""
    buffer = io.BytesIO()  # torch's own message about a full disk does not name the cause
    torch.export.save(program, buffer, extra_files=metadata(card, window))
    write_whole(path, buffer.getvalue())


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """Opens a ``.pt2`` file."""
    return torch.no_grad()(torch.export.load(path).module())
