"""OpenVINO IR: an XML file, its weights beside it, both from the ONNX file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pisr_plugin.export.onnx_file import metadata
from pisr_plugin.inference.card import Card
from pisr_plugin.utils.errors import DataError, first_line


def write(source: Path, card: Card, window: int, path: Path, half: bool = False) -> None:
    """Writes an ONNX file as OpenVINO IR.

    Args:
        source: The ONNX file, quantised or not.
        card: The model's card.
        window: Number of pixels that the sides of the input must be multiples of.
        path: The ``.xml`` file to write; the ``.bin`` file lies beside it.
        half: Whether to store weights in float16. Runtimes choose by device how they compute.

    Raises:
        DataError: the files cannot be written.
    """
    import openvino

    model = openvino.Core().read_model(source)
    for key, value in metadata(card, window).items():
        model.set_rt_info(value, ['pisr', key])
    try:
        openvino.save_model(model, path, compress_to_fp16=half)
    except RuntimeError as error:  # it does not say why
        free = shutil.disk_usage(path.parent).free
        raise DataError(
            f'{path}: OpenVINO cannot write it ({first_line(error)}). The disk has {free / 1e6:,.1f} MB left.'
        ) from None


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """Compiles an IR for the CPU, with as many threads as torch has."""
    import openvino

    # Without the hint it computes in bfloat16 where the CPU can.
    options = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': torch.get_num_threads()}
    compiled = openvino.Core().compile_model(path, 'CPU', options)
    return lambda lq: torch.from_numpy(compiled({'lq': lq.numpy()})['sr'].copy())
