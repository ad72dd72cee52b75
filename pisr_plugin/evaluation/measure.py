"""Measures a network on a test set by a protocol, image by image."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.metrics import calculate_metric
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor

from pisr_plugin.archs.network_info import split_output
from pisr_plugin.data.storage.image_files import write_png
from pisr_plugin.evaluation.protocol import Protocol, as_input, as_rgb
from pisr_plugin.evaluation.test_images import Sample, read_images
from pisr_plugin.inference.descriptor import ModelDescriptor
from pisr_plugin.inference.predict import add_chroma, pad_to_window
from pisr_plugin.utils.errors import DataError, OptionsError
from pisr_plugin.utils.resize import crop_to_multiple, imresize, imresize_uint8


@dataclass
class DatasetResult:
    """Measurements of one network on one test set.

    Attributes:
        images: By image the value of each metric.
        seconds: Seconds for each image; the first image runs once more beforehand and that time does not count.
        pictures: By image the file of its saved reconstruction.
    """

    images: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    pictures: dict[str, Path] = field(default_factory=dict)

    @property
    def mean(self) -> dict[str, float]:
        """Means over the images."""
        metrics = next(iter(self.images.values()), {})
        return {metric: statistics.fmean(values[metric] for values in self.images.values()) for metric in metrics}


@dataclass(frozen=True)
class ImageResult:
    """Measurements of one network on one image.

    Attributes:
        name: Name of the image.
        values: Value of each metric.
        seconds: Seconds that the reconstruction took.
        sr: The reconstruction, (H, W, 1) or (H, W, 3), in [0, 1].
        sample: The image.
        grey: Whether ``sr`` is a grey image, not the luminance of a colour image.
    """

    name: str
    values: dict[str, float]
    seconds: float
    sr: np.ndarray
    sample: Sample
    grey: bool = False

    def picture(self, scale: int) -> np.ndarray:
        """The reconstruction as 8-bit RGB; luminance gets the colours of the LR image."""
        sr, lq = self.sr, self.sample.lq
        if self.grey:
            sr = np.repeat(sr[..., :1], 3, axis=2)
        elif sr.shape[2] == 1:
            if lq is None:
                lq = imresize_uint8(as_rgb(crop_to_multiple(self.sample.gt, scale)), 1 / scale)
            rgb = torch.from_numpy(np.array(lq)).permute(2, 0, 1).float() / 255
            sr = add_chroma(torch.from_numpy(sr[..., 0]).float()[None], rgb).permute(1, 2, 0).numpy()
        return np.rint(sr.clip(0, 1) * 255).astype(np.uint8)


@torch.no_grad()
def measure_images(
    candidate: ModelDescriptor,
    dataset: Mapping[str, Any],
    protocol: Protocol,
    metrics: Mapping[str, Mapping[str, Any]],
    *,
    self_ensemble: bool = False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[ImageResult]:
    """Measures one network on the images of a test set, one after the other.

    Args:
        candidate: The network.
        dataset: The test set's block of the options.
        protocol: Which values are compared.
        metrics: By name the options of registered metrics, as in ``val.metrics``. The protocol decides about
            channels, so their ``test_y_channel`` has no effect.
        self_ensemble: Average the outputs for the eight symmetries of the input.
        share: ``(rank, ranks)``: take every ``ranks``-th image, from the ``rank``-th on.

    Raises:
        OptionsError: the protocol does not fit the network.
        DataError: an image is missing, damaged or too small for a metric.
    """
    rank, ranks = share
    for number, sample in enumerate(read_images(dataset, rank, ranks)):
        gt = crop_to_multiple(sample.gt, candidate.scale)
        if sample.lq is not None and not protocol.on_plane:
            height, width = (side * candidate.scale for side in sample.lq.shape[:2])
            gt = gt[:height, :width]
        sr, seconds = _timed(candidate, gt, sample.lq, protocol, self_ensemble, warm_up=number == 0)
        grey = gt.ndim == 2 and sr.shape[2] == 1 and protocol.keeps_grey
        one = ImageResult(sample.name, {}, seconds, sr, sample, grey)
        place = f'{dataset.get("name", "test set")}/{sample.name}'
        one.values.update(_values(one, gt, protocol, metrics, candidate.scale, place))
        yield one


def borders(metrics: Mapping[str, Mapping[str, Any]], scale: int) -> dict[str, int]:
    """Pixels that each metric leaves out at each border: its ``crop_border``, else the scale."""
    return {name: options.get('crop_border', scale) for name, options in metrics.items()}


def measure(*args: Any, pictures: Path | None = None, **options: Any) -> DatasetResult:
    """Measures one network on one test set.

    Args:
        *args: As for :func:`measure_images`.
        pictures: Existing folder that reconstructions are saved in; None: they are not saved.
        **options: As for :func:`measure_images`.

    Raises:
        OptionsError, DataError: as :func:`measure_images`; or two images have one name.
    """
    result = DatasetResult()
    for one in measure_images(*args, **options):
        if one.name in result.images:
            raise DataError(
                f'{args[1].get("name", "test set")}: two images have one name (found {one.name!r} twice). Expected '
                'names that differ without their endings.'
            )
        result.seconds.append(one.seconds)
        result.images[one.name] = one.values
        if pictures is not None:
            result.pictures[one.name] = pictures / f'{one.name}.png'
            write_png(result.pictures[one.name], one.picture(args[0].scale))
    return result


def _timed(
    candidate: ModelDescriptor,
    gt: np.ndarray,
    lq: np.ndarray | None,
    protocol: Protocol,
    self_ensemble: bool,
    warm_up: bool,
) -> tuple[np.ndarray, float]:
    """Returns the reconstruction (H, W, C) in [0, 1] and the seconds it took."""
    scale, channels = candidate.scale, candidate.channels
    given = None if protocol.on_plane else lq
    if candidate.net is None and not protocol.on_plane and (channels == 3 or not protocol.round_sr):
        small = imresize_uint8(np.ascontiguousarray(as_rgb(gt)), 1 / scale) if given is None else given
        started = time.perf_counter()
        sr = imresize_uint8(np.ascontiguousarray(small), scale)
        return as_input(sr, 3), time.perf_counter() - started
    grey = gt.ndim == 2
    images = {
        'gt': lambda: protocol.as_input(gt, channels, grey),
        'lq': lambda: (
            protocol.degrade(gt, scale, channels) if given is None else protocol.as_input(given, channels, grey)
        ),
    }
    inputs = [
        torch.from_numpy(np.ascontiguousarray(images[name]().transpose(2, 0, 1)))[None].to(candidate.device)
        for name in candidate.inputs
    ]
    for _ in range(1 + warm_up):
        _synchronise(candidate.device)
        started = time.perf_counter()
        y = _eightfold(candidate, inputs) if self_ensemble else reconstruct(candidate, inputs)
        _synchronise(candidate.device)
        seconds = time.perf_counter() - started
    return y[0].permute(1, 2, 0).cpu().numpy(), seconds


def reconstruct(candidate: ModelDescriptor, inputs: list[Tensor]) -> Tensor:
    """Returns the output (N, C, H, W) of a network for its inputs, which may have any size."""
    if candidate.net is None:
        return imresize(inputs[0].double(), candidate.scale)
    factors = [candidate.scale if name == 'gt' else 1 for name in candidate.inputs]
    whole = [pad_to_window(x, candidate.window * factor) for x, factor in zip(inputs, factors)]
    output, _ = split_output(candidate.net(*whole))
    enlarged = output.shape[-1] // whole[0].shape[-1]
    height, width = (side * enlarged for side in inputs[0].shape[-2:])
    return output[..., :height, :width]


def _eightfold(candidate: ModelDescriptor, inputs: list[Tensor]) -> Tensor:
    """Returns the mean of the outputs for the eight symmetries of a square, each turned back."""
    outputs = []
    for turns in range(4):
        for mirrored in (False, True):
            turned = [torch.rot90(x.flip(3) if mirrored else x, turns, (2, 3)) for x in inputs]
            y = torch.rot90(reconstruct(candidate, turned), -turns, (2, 3))
            outputs.append(y.flip(3) if mirrored else y)
    return torch.stack(outputs).mean(dim=0)


def _synchronise(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _values(
    one: ImageResult,
    gt: np.ndarray,
    protocol: Protocol,
    metrics: Mapping[str, Mapping[str, Any]],
    scale: int,
    place: str,
) -> dict[str, float]:
    """Computes each metric.

    Args:
        one: The reconstruction.
        gt: The ground truth, cut to a multiple of the scale.
        protocol: Which values are compared.
        metrics: Options of the metrics by name.
        scale: Upscaling factor.
        place: Test set and image, for messages.

    Raises:
        OptionsError: reconstruction and ground truth differ in size.
        DataError: a metric is not defined for this image.
    """
    compared = protocol.compared(one.sr, gt)
    (height, width), truth = (image.shape[:2] for image in compared)
    if (height, width) != truth:
        raise OptionsError(
            f'scale: the network does not fit the test set (found an output of {width}x{height} pixels). Expected '
            f'{truth[1]}x{truth[0]}.'
        )
    values, left_out = {}, borders(metrics, scale)
    for name, options in metrics.items():
        options = {key: value for key, value in options.items() if key not in ('test_y_channel', 'better')}
        on_pictures = getattr(METRIC_REGISTRY.get(options['type']), 'on_pictures', False)
        pair = (one.picture(scale), as_rgb(gt)) if on_pictures else compared
        bgr = {key: image[..., ::-1] for key, image in zip(('img', 'img2'), pair)}  # BasicSR's metrics take BGR
        problem = 'its value is not a number'
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', RuntimeWarning)  # NumPy's, about the mean of an empty array
                values[name] = float(calculate_metric(bgr, {**options, 'crop_border': left_out[name]}))
        except (ValueError, cv2.error) as error:
            values[name], problem = math.nan, str(error).strip()
        if math.isnan(values[name]):
            raise DataError(
                f'{place}: {name} cannot be computed (found an image of {width}x{height} pixels, of which '
                f'{left_out[name]} are left out at each border): {problem}. Expected a larger image; SSIM needs 11 '
                'pixels a side inside the borders.'
            )
    return values
