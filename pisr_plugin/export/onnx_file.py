"""ONNX: input ``lq`` and output ``sr`` with free height and width, the card in the metadata."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from pisr_plugin.inference.card import Card, as_mapping
from pisr_plugin.utils.errors import OptionsError, first_line
from pisr_plugin.utils.files import write_whole
from pisr_plugin.version import __version__

OPSET = 18  # what onnxruntime 1.14 and all later versions read


def write(program: ExportedProgram, card: Card, window: int, path: Path, opset: int = OPSET) -> None:
    """Writes a graph as ONNX.

    Args:
        program: The graph, see :func:`pisr_plugin.export.trace.trace`.
        card: The model's card.
        window: Number of pixels that the sides of the input must be multiples of.
        path: The file to write.
        opset: Version of the operator set.

    Raises:
        OptionsError: torch cannot write the graph in this version.
    """
    import onnx

    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            names = {'input_names': ['lq'], 'output_names': ['sr']}
            written = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False, **names)  # type: ignore[arg-type]
        assert written is not None
        proto = written.model_proto
    except Exception as error:
        raise OptionsError(f'{card.name}: torch cannot write it as ONNX: {first_line(error)}') from None
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
    found = next(entry.version for entry in proto.opset_import if entry.domain == '')
    if found != opset:
        raise OptionsError(f'--opset {opset}: torch cannot write the network in this version. Expected {found}.')
    del proto.graph.value_info[:]  # they repeat torch's names of height and width
    for value, factor in ((proto.graph.input[0], 1), (proto.graph.output[0], card.scale)):
        for dimension, name in zip(value.type.tensor_type.shape.dim[2:], ('height', 'width')):
            dimension.dim_param = name if factor == 1 else f'{factor}*{name}'
    proto.producer_name, proto.producer_version = 'pisr_plugin', __version__
    onnx.helper.set_model_props(proto, metadata(card, window))
    onnx.checker.check_model(proto)
    write_whole(path, proto.SerializeToString())


def metadata(card: Card, window: int) -> dict[str, str]:
    """Returns what a file of another runtime says of its model."""
    return {
        'scale': str(card.scale),
        'color': card.color,
        'range': '[0, 1]',
        'window': str(window),
        'card': json.dumps(as_mapping(card)),
    }


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """Opens an ONNX file in onnxruntime, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    return lambda lq: torch.from_numpy(session.run(None, {'lq': lq.numpy()})[0])
