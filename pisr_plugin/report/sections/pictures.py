"""Reconstructions of the rows: a slider between two of them, crops and error maps; Fig. 5 for papers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pisr_plugin.evaluation.results import Evaluation, digits
from pisr_plugin.report.images import ImageComparison, data_uri
from pisr_plugin.report.palette import PAPER
from pisr_plugin.report.plotting import empty_figure, show_picture
from pisr_plugin.report.section import ReportData, Section
from pisr_plugin.utils.errors import OptionsError


class PicturesSection(Section):
    """The images of the report."""

    position = 20
    label = 'Pictures'
    heading = 'Reconstructions and error maps'

    def __init__(self, report: ReportData) -> None:
        if not report.images:
            raise OptionsError('No pictures were saved with these results, or --count is 0.')
        self.evaluation, self.images = report.evaluation, report.images

    def script_data(self) -> list[dict[str, Any]]:
        return [
            {
                'title': f'{image.set} · {image.name}',
                'crop': image.crop,
                'cut': image.cut,
                'width': image.pictures[''].shape[1],
                'height': image.pictures[''].shape[0],
                'before': image.before,
                'after': image.after,
                'pictures': {name: data_uri(picture) for name, picture in image.pictures.items()},
                'captions': {name: caption(self.evaluation, image, name) for name in image.pictures},
            }
            for image in self.images
        ]

    def figures(self) -> dict[str, Figure]:
        """Fig. 5 for each image."""
        drawn = {}
        for image in self.images:
            captions = {name: '\n'.join(caption(self.evaluation, image, name)) for name in image.pictures}
            title = f'{image.set}, {image.name}'
            drawn[f'fig5_{image.set}_{image.name}'] = draw_crops(
                image.pictures[''], image.pictures, image.crop, title, captions
            )
        return drawn


def caption(evaluation: Evaluation, image: ImageComparison, name: str) -> tuple[str, str]:
    """Title and values of a picture, of the ground truth for an empty row name."""
    if not name:
        return 'ground truth', 'reference'
    row = evaluation.row(name)
    assert row  # the pictures are those of the rows
    values = row.sets[image.set].images[image.name].values
    return row.title, ' / '.join(f'{values[m]:.{digits(m)}f}' for m in evaluation.metrics if m in values)


def draw_crops(
    truth: np.ndarray,
    pictures: Mapping[str, np.ndarray],
    crop: tuple[int, int, int],
    title: str,
    captions: Mapping[str, str],
) -> Figure:
    """Draws Fig. 5: the ground truth with the crop marked, and the crop of every picture.

    Args:
        truth: The ground truth, (H, W, 3), uint8.
        pictures: Pictures of the same size by name.
        crop: ``(x, y, size)`` in pixels.
        title: Caption of the ground truth.
        captions: Caption of each picture.
    """
    x, y, side = crop
    height, width = truth.shape[:2]
    columns = -(-len(pictures) // 2) if len(pictures) > 3 else len(pictures)
    lines = 2 if len(pictures) > 3 else 1
    ratios = [min(width / height, 2) * lines, *[1] * columns]
    figure = empty_figure(PAPER, (1.75 * sum(ratios), 2.1 * lines + 0.2))
    grid = figure.add_gridspec(lines, 1 + columns, width_ratios=ratios)
    whole = figure.add_subplot(grid[:, 0])
    show_picture(whole, truth, title)
    whole.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=PAPER.series[1], linewidth=2))
    for i, (name, picture) in enumerate(pictures.items()):
        axis = figure.add_subplot(grid[i // columns, 1 + i % columns])
        show_picture(axis, picture[y : y + side, x : x + side], captions[name])
    return figure
