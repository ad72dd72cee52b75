"""Quantisation of an ONNX file to 8 bits: of weights and features, or of weights alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

WEIGHTED = {'Conv': 0, 'ConvTranspose': 0, 'Gemm': 0, 'MatMul': 1}  # operator: axis of its weights with a scale of each
SMALLEST = 256  # number of weights; fewer save nothing


def quantize_features(source: Path, path: Path, calibration: Sequence[Tensor]) -> None:
    """Quantises convolutions and matrix products by onnxruntime's static quantisation.

    Transposed convolutions stay in float32: onnxruntime has no faster way for them.

    Args:
        source: The ONNX file in float32.
        path: The file to write.
        calibration: Images (1, C, H, W) in [0, 1] by which the ranges of the features are found.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {'lq': image.numpy()}

    prepared = path.with_name(f'prepared_{path.name}')
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # both log through the root logger
    try:
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        types = {'activation_type': QuantType.QUInt8, 'weight_type': QuantType.QInt8}
        operators = ['Conv', 'MatMul', 'Gemm']
        quantize_static(prepared, path, Reader(), op_types_to_quantize=operators, per_channel=True, **types)
    finally:
        logging.root.setLevel(level)
        prepared.unlink(missing_ok=True)


def quantize_weights(source: Path, path: Path) -> None:
    """Stores weights in 8 bits, each output channel with a scale of its own; runtimes compute in float32.

    onnxruntime's tools do this for matrix products only.

    Args:
        source: The ONNX file in float32.
        path: The file to write.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(source)
    axes = {node.input[1]: WEIGHTED[node.op_type] for node in model.graph.node if node.op_type in WEIGHTED}
    for tensor in list(model.graph.initializer):
        values = numpy_helper.to_array(tensor)
        if tensor.name not in axes or values.dtype != np.float32 or values.size < SMALLEST:
            continue
        axis, name = axes[tensor.name], tensor.name
        others = tuple(i for i in range(values.ndim) if i != axis)
        scale = np.maximum(np.abs(values).max(others) / 127, np.finfo(np.float32).tiny)
        whole = np.rint(values / np.expand_dims(scale, others)).clip(-127, 127)
        model.graph.initializer.remove(tensor)
        for suffix, array in (('int8', whole.astype(np.int8)), ('scale', scale.astype(np.float32))):
            model.graph.initializer.append(numpy_helper.from_array(array, f'{name}_{suffix}'))
        node = helper.make_node('DequantizeLinear', [f'{name}_int8', f'{name}_scale'], [name], axis=axis)
        model.graph.node.insert(0, node)
    onnx.save(model, path)
