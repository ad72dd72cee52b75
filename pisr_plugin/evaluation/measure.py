"""Measures a network on a test set by a protocol, image by image."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.metrics import calculate_metric
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor, nn

from pisr_plugin.archs.traits import input_channels, input_names, window_size
from pisr_plugin.data.images import write_png
from pisr_plugin.errors import OptionsError
from pisr_plugin.evaluation.images import Sample, read_images
from pisr_plugin.evaluation.protocol import Protocol, as_input, as_rgb
from pisr_plugin.inference import coloured, whole_windows
from pisr_plugin.models.step import split_output
from pisr_plugin.resize import imresize, imresize_uint8


@dataclass
class Candidate:
    """What is measured.

    Attributes:
        name: What tables call it.
        net: In evaluation mode on its device; None: bicubic interpolation.
        channels: Of its input, 1 for luminance, 3 for RGB.
        scale: Upscaling factor.
        window: Side of the windows that it works in.
        device: Where it runs.
        inputs: What it sees of a pair.
    """

    name: str
    net: nn.Module | None
    channels: int
    scale: int
    window: int = 1
    device: torch.device = torch.device('cpu')
    inputs: tuple[str, ...] = ('lq',)

    @classmethod
    def of(
        cls, name: str, net: nn.Module, options: Mapping[str, Any], scale: int, device: torch.device, channels: int = 3
    ) -> Candidate:
        """A network with what its options say of it.

        Args:
            name: What tables call it.
            net: In evaluation mode on its device.
            options: Its options, with ``type``.
            scale: Upscaling factor.
            device: Where it runs.
            channels: Of its input, where the options do not say.
        """
        channels = input_channels(options, channels)
        return cls(name, net, channels, scale, window_size(options), device, input_names(net))

    @property
    def sees_gt(self) -> bool:
        """Whether it is a teacher, which gets the HR image."""
        return 'gt' in self.inputs

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.net.parameters()) if self.net is not None else 0


@dataclass
class Result:
    """What came out for one test set.

    Attributes:
        images: By image its value of each metric.
        seconds: Time for each image, after a first one that does not count.
        pictures: By image the saved picture, if any was.
    """

    images: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)

    @property
    def mean(self) -> dict[str, float]:
        """Means over the images."""
        metrics = next(iter(self.images.values()), {})
        return {metric: statistics.fmean(values[metric] for values in self.images.values()) for metric in metrics}


@dataclass(frozen=True)
class Measured:
    """One image's share of a result.

    Attributes:
        name: Of the image.
        values: Its value of each metric.
        seconds: What the reconstruction took.
        sr: The reconstruction, (H, W, 1) or (H, W, 3), in [0, 1].
        sample: The image itself.
    """

    name: str
    values: dict[str, float]
    seconds: float
    sr: np.ndarray
    sample: Sample

    def picture(self, scale: int) -> np.ndarray:
        """The reconstruction as 8-bit RGB; luminance gets the colours of the LR image."""
        sr, lq = self.sr, self.sample.lq
        if sr.shape[2] == 1:
            if lq is None:
                height, width = (side - side % scale for side in self.sample.gt.shape[:2])
                lq = imresize_uint8(np.ascontiguousarray(as_rgb(self.sample.gt[:height, :width])), 1 / scale)
            rgb = torch.from_numpy(np.array(lq)).permute(2, 0, 1).float() / 255
            sr = coloured(torch.from_numpy(sr[..., 0]).float(), rgb).permute(1, 2, 0).numpy()
        return np.rint(sr.clip(0, 1) * 255).astype(np.uint8)


@torch.no_grad()
def measure_images(
    candidate: Candidate,
    dataset: Mapping[str, Any],
    protocol: Protocol,
    metrics: Mapping[str, Mapping[str, Any]],
    *,
    self_ensemble: bool = False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Measured]:
    """Measures one candidate on the images of a test set, one after the other.

    Args:
        candidate: What is measured.
        dataset: The test set's block of the options.
        protocol: How.
        metrics: By name the options of registered metrics, as ``val.metrics`` has them. The protocol decides about
            channels, so their ``test_y_channel`` does not count.
        self_ensemble: Average the outputs for the eight symmetries of the input.
        share: ``(rank, ranks)``: every ``ranks``-th image, from the ``rank``-th on.

    Raises:
        OptionsError: the protocol does not go with the network.
        DataError: an image is missing or damaged.
    """
    rank, ranks = share
    for number, sample in enumerate(read_images(dataset, rank, ranks)):
        gt = protocol.ground_truth(sample.gt, candidate.scale)
        if sample.lq is not None and not protocol.on_plane:
            height, width = (side * candidate.scale for side in sample.lq.shape[:2])
            gt = gt[:height, :width]
        sr, seconds = _timed(candidate, gt, sample.lq, protocol, self_ensemble, warm_up=number == 0)
        one = Measured(sample.name, {}, seconds, sr, sample)
        one.values.update(
            _values(
                protocol.compared(sr, gt),
                lambda one=one, gt=gt: (one.picture(candidate.scale), as_rgb(gt)),
                metrics,
                candidate.scale,
            )
        )
        yield one


def borders(metrics: Mapping[str, Mapping[str, Any]], scale: int) -> dict[str, int]:
    """Pixels that each metric leaves out at each border: its ``crop_border``, else the scale."""
    return {name: options.get('crop_border', scale) for name, options in metrics.items()}


def measure(*args: Any, pictures: Path | None = None, **options: Any) -> Result:
    """Measures one candidate on one test set.

    Args:
        *args: As for :func:`measure_images`.
        pictures: Folder to save reconstructions in.
        **options: As for :func:`measure_images`.
    """
    result = Result()
    for one in measure_images(*args, **options):
        result.seconds.append(one.seconds)
        result.images[one.name] = one.values
        if pictures is not None:
            path = pictures / f'{one.name}.png'
            write_png(path, one.picture(args[0].scale))
            result.pictures[one.name] = str(path)
    return result


def _timed(
    candidate: Candidate, gt: np.ndarray, lq: np.ndarray | None, protocol: Protocol, self_ensemble: bool, warm_up: bool
) -> tuple[np.ndarray, float]:
    """Returns the reconstruction (H, W, C) in [0, 1] and the seconds it took."""
    scale, channels = candidate.scale, candidate.channels
    given = lq is not None and not protocol.on_plane
    if candidate.net is None and not protocol.on_plane and (channels == 3 or not protocol.round_sr):
        small = lq if given else imresize_uint8(np.ascontiguousarray(as_rgb(gt)), 1 / scale)
        started = time.perf_counter()
        sr = imresize_uint8(np.ascontiguousarray(small), scale)
        return as_input(sr, 3), time.perf_counter() - started
    images = {
        'gt': lambda: as_input(as_rgb(gt), channels),
        'lq': lambda: as_input(lq, channels) if given else protocol.degrade(gt, scale, channels),
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


def reconstruct(candidate: Candidate, inputs: list[Tensor]) -> Tensor:
    """The output (N, C, H, W) for the images that the candidate sees, of whatever size."""
    if candidate.net is None:
        return imresize(inputs[0].double(), candidate.scale)
    factors = [candidate.scale if name == 'gt' else 1 for name in candidate.inputs]
    whole = [whole_windows(x, candidate.window * factor) for x, factor in zip(inputs, factors)]
    output, _ = split_output(candidate.net(*whole))
    enlarged = output.shape[-1] // whole[0].shape[-1]
    height, width = (side * enlarged for side in inputs[0].shape[-2:])
    return output[..., :height, :width]


def _eightfold(candidate: Candidate, inputs: list[Tensor]) -> Tensor:
    """The mean over the eight symmetries of a square, each undone again."""
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
    compared: tuple[np.ndarray, np.ndarray],
    pictures: Callable[[], tuple[np.ndarray, np.ndarray]],
    metrics: Mapping[str, Mapping[str, Any]],
    scale: int,
) -> dict[str, float]:
    """Each metric's value.

    Args:
        compared: Reconstruction and ground truth as the protocol compares them.
        pictures: Gives both as 8-bit RGB, for metrics that look at pictures.
        metrics: Their options by name.
        scale: Upscaling factor.
    """
    a, b = compared
    if a.shape != b.shape:
        raise OptionsError(f'the network gives {a.shape[:2]} pixels, the ground truth has {b.shape[:2]}; check scale')
    values, left_out = {}, borders(metrics, scale)
    for name, options in metrics.items():
        options = {key: value for key, value in options.items() if key not in ('test_y_channel', 'better')}
        pair = pictures() if getattr(METRIC_REGISTRY.get(options['type']), 'on_pictures', False) else compared
        bgr = {key: image[..., ::-1] for key, image in zip(('img', 'img2'), pair)}  # as BasicSR's metrics have it
        values[name] = float(calculate_metric(bgr, {**options, 'crop_border': left_out[name]}))
    return values
