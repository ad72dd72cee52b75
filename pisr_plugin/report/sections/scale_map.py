"""Estimated scale maps: where a student's estimator expects to miss the teacher's feature."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from basicsr.losses import build_loss
from matplotlib.figure import Figure
from torch import nn

from pisr_plugin.archs.network_info import input_channels, required_inputs
from pisr_plugin.distill.estimators import Estimate
from pisr_plugin.distill.links import LinkedNetwork, build_links
from pisr_plugin.evaluation.results import Evaluation, Run
from pisr_plugin.inference import checkpoint
from pisr_plugin.inference.descriptor import build
from pisr_plugin.report.images import data_uri
from pisr_plugin.report.palette import PAPER
from pisr_plugin.report.plotting import figure_with_axes, show_picture
from pisr_plugin.report.runs import load_network, run_options, to_tensor, train_block
from pisr_plugin.report.section import ReportData, Section
from pisr_plugin.utils.errors import CheckpointError, OptionsError, PISRError
from pisr_plugin.utils.logging import quiet
from pisr_plugin.utils.resize import imresize_uint8

COLORMAP = 'magma'
MOST_MAPS = 4  # more rows than this would repeat what the first ones show
PROBE = 48  # side in pixels of the LR patch on which links are tried


@dataclass
class ScaleMap:
    """Mean over channels of an estimator's scale.

    Attributes:
        title: Title of the row.
        link: Name of the link that the estimator belongs to.
        values: (h, w), at LR resolution.
    """

    title: str
    link: str
    values: np.ndarray

    @property
    def range(self) -> tuple[float, float]:
        """Values of the darkest and the brightest colour: percentiles, so that single pixels do not decide."""
        low, high = np.percentile(self.values, (1, 99))
        return float(low), float(high)

    def uri(self) -> str:
        """The map in colours as a data URI."""
        low, high = self.range
        colors = matplotlib.colormaps[COLORMAP]((self.values - low) / max(high - low, 1e-12), bytes=True)
        return data_uri(colors[..., :3])


class ScaleMapSection(Section):
    """The scale maps of the rows for the first image of the report."""

    position = 60
    label = 'Scale map'
    heading = 'Estimated scale map'

    def __init__(self, report: ReportData) -> None:
        self.image, self.truth = report.first_image()
        self.maps = scale_maps(report.evaluation, self.truth)

    def truth_uri(self) -> str:
        """The HR image as a data URI."""
        return data_uri(self.truth)

    def figures(self) -> dict[str, Figure]:
        """The maps beside the image."""
        height, width = self.truth.shape[:2]
        columns = 1 + len(self.maps)
        figure, axes = figure_with_axes(PAPER, (3.2 * columns, 3.2 * height / width + 0.5), columns)
        show_picture(axes[0], self.truth, 'HR image')
        for axis, entry in zip(axes[1:], self.maps):
            low, high = entry.range
            drawn = axis.imshow(entry.values, cmap=COLORMAP, vmin=low, vmax=high, interpolation='nearest')
            axis.set_title(entry.title, fontsize=9, parse_math=False)
            axis.axis('off')
            figure.colorbar(drawn, ax=axis, fraction=0.046 * height / width, pad=0.02)
        return {'scale_map': figure}


def scale_maps(evaluation: Evaluation, truth: np.ndarray) -> list[ScaleMap]:
    """Computes the scale maps of the rows' estimators for one image.

    Args:
        evaluation: The record; it names the students' runs. Of several seeds the first is taken.
        truth: (H, W, 3) HR image, uint8.

    Raises:
        PISRError: no row has an estimator whose scale differs from place to place.
    """
    lr = imresize_uint8(truth, 1 / evaluation.scale)
    maps, problems = [], []
    for row in evaluation.rows:
        for run in row.runs:
            options = run_options(run)
            if not options.get('network_g') or not train_block(options, 'distill_opt'):
                continue
            try:
                found = _maps_of(run, options, lr)
            except PISRError as error:
                problems.append(str(error))
                continue
            maps += [ScaleMap(row.title, link, values) for link, values in found.items()]
            break
    if not maps:
        raise OptionsError(problems[0] if problems else 'No student was trained with an estimator of a scale map.')
    return maps[:MOST_MAPS]


def _maps_of(run: Run, options: dict, lr: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the scale maps of one student by link; a link whose scale is the same everywhere is left out."""
    models = run.folder / 'models'
    path = models / 'net_g_latest.pth'
    student = load_network(
        options['network_g'], path if path.is_file() or not run.checkpoint else run.checkpoint, options
    )
    image = to_tensor(lr, input_channels(options['network_g']))[None]
    with quiet():
        linked = _linked(student, options)
        if len(linked.estimators):
            try:
                linked.estimators.load_state_dict(checkpoint.load_weights(models / 'net_e_latest.pth'))
            except RuntimeError:
                raise CheckpointError(f'{models.name}/net_e_latest.pth does not fit the estimators.') from None
    with torch.no_grad():
        _, estimates = linked(image)
    scales = {name: estimate.scale for name, estimate in estimates.items() if isinstance(estimate, Estimate)}
    maps = {name: scale[0].mean(0).numpy() for name, scale in scales.items() if min(scale.shape[2:]) > 1}
    if not maps:
        raise OptionsError('The estimators give no scale, or one that is the same at every position.')
    return maps


def _linked(student: nn.Module, options: dict) -> LinkedNetwork:
    """Returns a student with the estimators of its training, their weights not loaded."""
    teacher = build(options['network_t']).eval()
    channels, large = input_channels(options['network_t']), PROBE * options['scale']
    patches = {'lq': torch.zeros(1, channels, PROBE, PROBE), 'gt': torch.zeros(1, channels, large, large)}
    links = build_links(
        train_block(options, 'distill_opt'),
        student,
        teacher,
        [patches[name] for name in required_inputs(student)],
        [patches[name] for name in required_inputs(teacher)],
        lambda option_path, option: build(option, option_path),
        lambda option_path, option: build(option, option_path, build_loss),
    )
    return LinkedNetwork(student, links).eval()
