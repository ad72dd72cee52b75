"""The teacher's compact feature beside LR and HR image: pictures, spectra, values (Fig. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pisr_plugin.archs.network_info import input_channels
from pisr_plugin.evaluation.results import Evaluation
from pisr_plugin.report.images import data_uri
from pisr_plugin.report.palette import PAGE, PAPER, Palette
from pisr_plugin.report.plotting import figure_with_axes, show_picture, to_svg
from pisr_plugin.report.runs import load_network, run_options, to_tensor, train_block
from pisr_plugin.report.section import ReportData, Section
from pisr_plugin.utils.errors import OptionsError
from pisr_plugin.utils.resize import imresize_uint8

BAND = 4  # lines of the spectrum on either side of the u axis that are averaged, because a single line is noisy


class CompactFeatureSection(Section):
    """The compact feature of the teachers for the first image of the report."""

    position = 50
    label = 'Compact feature'
    heading = "The teacher's compact feature"

    def __init__(self, report: ReportData) -> None:
        self.image, truth = report.first_image()
        self.features = compact_features(report.evaluation, truth)

    def pictures(self) -> list[tuple[CompactFeature, str]]:
        """The features with their pictures as data URIs."""
        return [(feature, data_uri(feature.picture)) for feature in self.features]

    def svg(self, name: str) -> Markup:
        """The chart of the ``spectra`` or of the ``histograms``, without a legend."""
        figure, (axis,) = figure_with_axes(PAGE, (4.4, 3.1))
        {'spectra': _spectra, 'histograms': _histograms}[name](axis, self.features, PAGE)
        return to_svg(figure, f'compact-{name}')

    def figures(self) -> dict[str, Figure]:
        """Fig. 3: pictures above, spectra and histograms below."""
        count = len(self.features)
        top = [f'picture {i // 2}' for i in range(2 * count)]
        bottom = ['spectrum'] * count + ['histogram'] * count
        figure, axes = figure_with_axes(PAPER, (2.4 * count, 5.2), mosaic=[top, bottom])
        for axis, feature in zip(axes, self.features):
            stretched = '\ncontrast stretched' if feature.stretched else ''
            show_picture(axis, feature.picture, feature.name + stretched)
        for axis, draw in zip(axes[-2:], (_spectra, _histograms)):
            draw(axis, self.features, PAPER)
            # Below the axis, because curves may run anywhere.
            place: dict[str, Any] = {'loc': 'upper center', 'bbox_to_anchor': (0.5, -0.2), 'ncols': 2}
            axis.legend(fontsize=7.5, frameon=False, labelcolor=PAPER.ink, **place)
        return {'fig3_compact': figure}


@dataclass
class CompactFeature:
    """One of the images that Fig. 3 compares.

    Attributes:
        kind: ``lr``, ``imitation`` or ``free`` (compact feature with or without imitation loss), or ``hr``.
        name: Name for readers.
        picture: (H, W) or (H, W, 3), uint8.
        plane: (H, W), a value for each pixel. 1 is white; values may leave [0, 1].
        pitch: Distance of the pixels in LR pixels.
        stretched: Whether the picture's contrast was stretched because values leave [0, 1].
    """

    kind: str
    name: str
    picture: np.ndarray
    plane: np.ndarray
    pitch: float
    stretched: bool = False


def spectrum(feature: CompactFeature) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes along the u axis of the 2D spectrum.

    A window fades the image out towards its borders, because the jump there would hide everything else on the axis.

    Returns:
        Frequencies in cycles per LR pixel, and magnitudes divided by the number of pixels.
    """
    height, width = feature.plane.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    magnitude = np.abs(np.fft.rfft2((feature.plane - feature.plane.mean()) * window)) / window.sum()
    rows = np.r_[0 : BAND + 1, -BAND:0] % height
    return np.fft.rfftfreq(width, feature.pitch), magnitude[rows].mean(axis=0)


def compact_features(evaluation: Evaluation, truth: np.ndarray) -> list[CompactFeature]:
    """LR image, the teachers' compact features and HR image; with and without imitation where both were trained.

    Args:
        evaluation: The record; it names the teachers' runs.
        truth: (H, W, 3) HR image, uint8, its sides multiples of the scale.

    Raises:
        PISRError: no run is that of a privileged teacher, or its checkpoint cannot be used.
    """
    teachers = _teachers(evaluation)
    if not teachers:
        raise OptionsError('None of the runs is a teacher with a compact feature of the HR image.')
    scale = evaluation.scale
    channels = input_channels(next(iter(teachers.values()))[0]['network_t'])
    lr, hr = to_tensor(imresize_uint8(truth, 1 / scale), channels), to_tensor(truth, channels)
    features = [CompactFeature('lr', 'LR image', _display(lr)[0], _plane(lr), 1.0)]
    for kind, (options, path) in teachers.items():
        net = load_network(options['network_t'], path, options)
        with torch.no_grad():
            compact = net(to_tensor(truth, input_channels(options['network_t']))[None]).compact[0]
        name = {'imitation': 'compact, with imitation loss', 'free': 'compact, without imitation loss'}[kind]
        if list(teachers) == ['imitation']:
            name = 'compact feature'
        picture, stretched = _display(compact)
        features.append(CompactFeature(kind, name, picture, _plane(compact), 1.0, stretched))
    return [*features, CompactFeature('hr', 'HR image', _display(hr)[0], _plane(hr), 1 / scale)]


def _teachers(evaluation: Evaluation) -> dict[str, tuple[dict, Path]]:
    """Options and checkpoint of one teacher with and of one without imitation loss, as far as there are."""
    found: dict[str, tuple[dict, Path]] = {}
    for row in evaluation.rows:
        for run in row.runs:
            options = run_options(run)
            network = options.get('network_t') or {}
            if options.get('network_g') or 'decoder' not in network:
                continue
            imitation = train_block(options, 'imitation_opt')
            kind = 'imitation' if imitation and imitation.get('loss_weight', 1) else 'free'
            path = run.folder / 'models' / 'net_t_latest.pth'
            if path.is_file():
                found.setdefault(kind, (options, path))
    return {kind: found[kind] for kind in ('imitation', 'free') if kind in found}


def _plane(image: Tensor) -> np.ndarray:
    weights = torch.tensor([0.299, 0.587, 0.114]) if len(image) == 3 else torch.full((len(image),), 1 / len(image))
    return torch.einsum('chw,c->hw', image, weights).numpy()


def _display(image: Tensor) -> tuple[np.ndarray, bool]:
    """Returns an 8-bit picture and whether its contrast was stretched.

    Where over 5 % of the values leave [0, 1], the picture shows the range from their 1st to their 99th percentile.
    """
    array = image.permute(1, 2, 0).numpy()
    array = array if array.shape[2] == 3 else array.mean(axis=2)
    stretched = bool(((array < 0) | (array > 1)).mean() > 0.05)
    if stretched:
        low, high = np.percentile(array, (1, 99))
        array = (array - low) / max(high - low, 1e-9)
    return (array.clip(0, 1) * 255).round().astype(np.uint8), stretched


def _spectra(axis: Axes, features: Sequence[CompactFeature], palette: Palette) -> None:
    for feature in features:
        frequencies, magnitudes = spectrum(feature)
        axis.plot(frequencies, magnitudes, label=feature.name, **_style(feature, palette))
    axis.set_yscale('log')
    axis.set_xlabel('frequency along u, cycles per LR pixel')
    axis.set_ylabel('magnitude')
    axis.grid(color=palette.line, linewidth=0.8)


def _histograms(axis: Axes, features: Sequence[CompactFeature], palette: Palette) -> None:
    values = np.concatenate([feature.plane.ravel() for feature in features])
    low, high = np.percentile(values, (0.5, 99.5))
    edges = np.linspace(low, high, 97)
    for feature in features:
        density, _ = np.histogram(feature.plane, edges, density=True)
        axis.stairs(density, edges, label=feature.name, **_style(feature, palette))
    axis.set_xlabel('value')
    axis.set_ylabel('density')
    axis.grid(color=palette.line, linewidth=0.8)


def _style(feature: CompactFeature, palette: Palette) -> dict:
    color = {'lr': palette.series[2], 'imitation': palette.series[0], 'free': palette.series[1], 'hr': palette.muted}
    return {
        'color': color[feature.kind],
        'linestyle': {'hr': '--', 'free': '-.'}.get(feature.kind, '-'),
        'linewidth': 1.3,
    }
