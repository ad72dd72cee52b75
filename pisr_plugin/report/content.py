"""Gather what a report shows; a part that cannot be shown leaves a sentence instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pisr_plugin.errors import OptionsError, PISRError
from pisr_plugin.report import published
from pisr_plugin.report.curves import Curves, all_curves
from pisr_plugin.report.evaluation import Evaluation
from pisr_plugin.report.features import ScaleMap, View, compact_views, scale_maps
from pisr_plugin.report.figures import Mark
from pisr_plugin.report.pictures import Shown, choose


@dataclass
class Content:
    """All parts of a report.

    Attributes:
        evaluation: What was measured.
        shown: Images for slider and crops.
        curves: Training curves.
        trade_off: Test set of Fig. 4, own and published points.
        views: Images of Fig. 3.
        maps: Scale maps.
        truth: The image that views and maps are of.
        truth_name: Its name.
        notes: Why a part is missing, by part: pictures, curves, trade_off, compact, scale.
    """

    evaluation: Evaluation
    shown: list[Shown] = field(default_factory=list)
    curves: list[Curves] = field(default_factory=list)
    trade_off: tuple[str, list[Mark], list[published.Point]] | None = None
    views: list[View] = field(default_factory=list)
    maps: list[ScaleMap] = field(default_factory=list)
    truth: np.ndarray | None = None
    truth_name: str = ''
    notes: dict[str, str] = field(default_factory=dict)


def gather(
    evaluation: Evaluation,
    count: int = 4,
    images: Sequence[str] = (),
    crop: tuple[int, int, int] | None = None,
) -> Content:
    """Reads pictures, logs and checkpoints.

    Args:
        evaluation: What was measured.
        count: How many images to show, when none are named.
        images: Names of images to show.
        crop: See :func:`pisr_plugin.report.pictures.choose`.

    Raises:
        OptionsError: ``images`` or ``crop`` cannot be shown.
        DataError: a picture is damaged.
    """
    content = Content(evaluation, shown=choose(evaluation, count, images, crop), curves=all_curves(evaluation))
    if not content.shown:
        content.notes['pictures'] = 'No pictures were saved with these results, or none are to be shown.'
    if not content.curves:
        content.notes['curves'] = 'None of the runs left a log of its training.'
    content.trade_off = content_or_note(content, 'trade_off', lambda: trade_off(evaluation))
    if content.shown:
        first = content.shown[0]
        height, width = (side - side % evaluation.scale for side in first.truth.shape[:2])
        content.truth, content.truth_name = first.truth[:height, :width], first.name
        content.views = content_or_note(content, 'compact', lambda: compact_views(evaluation, content.truth)) or []
        content.maps = content_or_note(content, 'scale', lambda: scale_maps(evaluation, content.truth)) or []
    else:
        content.notes['compact'] = content.notes['scale'] = 'There is no picture to show it on.'
    return content


def content_or_note(content: Content, part: str, make: Callable[[], Any]) -> Any:
    """What ``make`` returns; None, and its message among the notes, when it cannot."""
    try:
        return make()
    except PISRError as error:
        content.notes[part] = str(error)
        return None


def trade_off(evaluation: Evaluation) -> tuple[str, list[Mark], list[published.Point]]:
    """Test set, own and published points of Fig. 4; Set5 if measured, else the first set.

    Raises:
        OptionsError: no row has PSNR, parameters and Multi-Adds.
    """
    test_set = 'Set5' if 'Set5' in evaluation.sets else next(iter(evaluation.sets), '')
    own = [
        Mark(row.title, row.parameters, row.multi_adds, row.sets[test_set].mean['psnr'], i)
        for i, row in enumerate(evaluation.rows)
        if row.role == 'student' and row.parameters and row.multi_adds
        if test_set in row.sets and 'psnr' in row.sets[test_set].mean
    ]
    if not own:
        raise OptionsError('No student comes with its PSNR, parameters and Multi-Adds.')
    return test_set, own, [point for point in published.points(evaluation.scale) if test_set in point.psnr]
