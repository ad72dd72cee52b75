"""Writes a model in the formats asked for, runs each file, and keeps them only if all give the network's image."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pisr_plugin.archs.network_info import split_output
from pisr_plugin.export import onnx_file, openvino_ir, quantize, safetensors_file, torch_program
from pisr_plugin.export.check import Comparison, Sample, compare
from pisr_plugin.export.trace import trace
from pisr_plugin.inference.card import Card, card_file, read_card
from pisr_plugin.inference.descriptor import ModelDescriptor
from pisr_plugin.inference.predict import optimized
from pisr_plugin.utils.errors import OptionsError


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        suffix: Of the file that is opened; another one may lie beside it.
        precisions: The precisions it can be written in.
        write: Writes a file.
        load: Opens one, and returns what upscales an image (1, C, H, W).
    """

    suffix: str
    precisions: tuple[str, ...]
    write: Callable[[Exporter, Path], None]
    load: Callable[[Path], Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Limits:
    """What a file may differ from the network by.

    Attributes:
        difference: Largest difference of a pixel in levels of 255.
        loss: Largest loss of PSNR in dB.
    """

    difference: float
    loss: float


LIMITS = {
    'fp32': Limits(0.1, 0.01),
    'fp16': Limits(4, 0.05),
    'int8-weights': Limits(math.inf, 0.3),
    'int8': Limits(math.inf, 1),
}


@dataclass
class Exporter:
    """Writes one model.

    Attributes:
        model: The network, on the CPU.
        card: Its card.
        precision: A key of :data:`LIMITS`.
        opset: Version of ONNX's operator set.
        calibration: LR images by which ``int8`` finds the ranges of features.
    """

    model: ModelDescriptor
    card: Card
    precision: str = 'fp32'
    opset: int = onnx_file.OPSET
    calibration: Sequence[Tensor] = ()

    @property
    def half(self) -> bool:
        """Whether weights are stored in float16."""
        return self.precision == 'fp16'

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The graph that is written, quantised later if at all."""
        return trace(self.model, self.half)

    def export(
        self, names: Sequence[str], folder: Path, pairs: Sequence[Sample], limits: Limits | None = None, name: str = ''
    ) -> Iterator[tuple[Path, Comparison]]:
        """Writes files; they reach the folder once all have been compared with the network.

        Args:
            names: Keys of :data:`FORMATS`.
            folder: Where the files go. Files of their names are replaced.
            pairs: Images to compare on.
            limits: By default those of the precision.
            name: Name of the files without suffix; by default the model's.

        Yields:
            Each file as it will be named, and how it compares.

        Raises:
            OptionsError: a format has no such precision, or a file gives another image than the network.
        """
        limits = limits or LIMITS[self.precision]
        for one in names:
            if self.precision not in FORMATS[one].precisions:
                possible = ', '.join(FORMATS[one].precisions)
                raise OptionsError(f'--{self.precision}: {one} has no such precision. Possible: {possible}')
        ending = '' if self.precision == 'fp32' else f'_{self.precision.replace("-", "_")}'
        name = f'{name or self.card.name}{ending}'
        if 'safetensors' in names:
            _check_card(folder / f'{name}.safetensors')
        assert self.model.net is not None
        with tempfile.TemporaryDirectory(prefix='.export_', dir=folder) as temporary:
            for one in names:
                path = Path(temporary) / f'{name}{FORMATS[one].suffix}'
                FORMATS[one].write(self, path)
            run = optimized(self.model.net)  # after the graphs are traced: it changes the layout of the weights
            network = torch.no_grad()(lambda lq: split_output(run(lq))[0])
            for one in names:
                path = Path(temporary) / f'{name}{FORMATS[one].suffix}'
                found = compare(FORMATS[one].load(path), network, pairs, self.model.window)
                yield folder / path.name, found
                _check(path.name, found, limits)
            for path in Path(temporary).iterdir():
                os.replace(path, folder / path.name)


def _check_card(path: Path) -> None:
    """Refuses to replace the card of another weights file than ``path``."""
    card = card_file(path)
    if card.is_file() and (other := read_card(card).weights.name) != path.name:
        raise OptionsError(f'{card} is the card of {other}. Expected another folder, or another --name.')


def _check(name: str, found: Comparison, limits: Limits) -> None:
    """Refuses a file that differs too much. NaN is too much."""
    if not found.difference <= limits.difference:
        raise OptionsError(
            f'{name}: gives another image than PyTorch, no file is kept (found a difference of {found.difference:.3g} '
            f'levels of 255). Expected at most {limits.difference:g}; --tolerance LEVELS allows more.'
        )
    if not found.loss <= limits.loss:
        raise OptionsError(
            f'{name}: loses too much quality, no file is kept (found a PSNR {found.loss:.3f} dB lower). Expected at '
            f'most {limits.loss:g}; --max-loss DB allows more, other photos after --calibration may help.'
        )


def _write_onnx(source: Exporter, path: Path) -> None:
    if source.precision in ('fp32', 'fp16'):
        onnx_file.write(source.program, source.card, source.model.window, path, source.opset)
        return
    plain = path.with_name(f'plain_{path.name}')
    onnx_file.write(source.program, source.card, source.model.window, plain, source.opset)
    if source.precision == 'int8':
        quantize.quantize_features(plain, path, source.calibration)
    else:
        quantize.quantize_weights(plain, path)
    plain.unlink()


def _write_openvino(source: Exporter, path: Path) -> None:
    onnx = path.with_name(f'openvino_{path.stem}.onnx')
    # of float16 OpenVINO rounds the weights itself
    _write_onnx(replace(source, precision='fp32') if source.half else source, onnx)
    openvino_ir.write(onnx, source.card, source.model.window, path, source.half)
    onnx.unlink()


def _write_pt2(source: Exporter, path: Path) -> None:
    torch_program.write(source.program, source.card, source.model.window, path)


def _write_safetensors(source: Exporter, path: Path) -> None:
    safetensors_file.write(source.model, source.card, path, source.half)


ALL = tuple(LIMITS)
FORMATS = {
    'onnx': Format('.onnx', ALL, _write_onnx, onnx_file.load),
    'openvino': Format('.xml', ALL, _write_openvino, openvino_ir.load),
    'pt2': Format('.pt2', ALL[:2], _write_pt2, torch_program.load),
    'safetensors': Format('.safetensors', ALL[:2], _write_safetensors, safetensors_file.load),
}
