"""Choose the pictures and crops that a report shows."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import numpy as np
import torch
from PIL import Image

from pisr_plugin.analysis.picture import largest_gain
from pisr_plugin.data.images import read_rgb
from pisr_plugin.errors import DataError, OptionsError, choice
from pisr_plugin.report.evaluation import Evaluation, Row

LARGEST = 512  # side in pixels of what is embedded; of larger images the part around the crop
CROP = 96  # side in pixels of a crop


@dataclass
class Shown:
    """One image as several rows reconstruct it.

    Attributes:
        set: Test set.
        name: Image.
        pictures: By row, ``ground truth`` under the empty name, all of one size, (H, W, 3), uint8.
        truth: The whole ground truth.
        crop: ``(x, y, size)`` in these pictures.
        cut: Whether the pictures are a part of the image.
        before: Row that the slider starts with on its left, perhaps empty.
        after: Row on its right.
    """

    set: str
    name: str
    pictures: dict[str, np.ndarray]
    truth: np.ndarray
    crop: tuple[int, int, int]
    cut: bool
    before: str
    after: str


def choose(
    evaluation: Evaluation,
    count: int,
    wanted: Sequence[str] = (),
    crop: tuple[int, int, int] | None = None,
) -> list[Shown]:
    """Pictures to show: those asked for, or where the method gains most, from all test sets in turn.

    Args:
        evaluation: What was measured.
        count: How many images, when none are named.
        wanted: Names of images, with or without ``set/`` before.
        crop: ``(x, y, size)`` in HR pixels for all of them, by default where the gain is largest.

    Raises:
        OptionsError: an image has no pictures, or the crop lies outside of one.
    """
    available = [
        (name, image)
        for name, images in evaluation.ground_truth.items()
        for image in images
        if any(_picture(row, name, image) for row in evaluation.rows)
    ]
    if wanted:
        return [_show(evaluation, *_find(name, available), crop) for name in wanted]
    by_set = [
        sorted((pair for pair in available if pair[0] == name), key=lambda pair: -_gain(evaluation, *pair))
        for name in dict.fromkeys(pair[0] for pair in available)
    ]
    turns = [pair for pair in chain.from_iterable(zip_longest(*by_set)) if pair]
    return [_show(evaluation, *pair, crop) for pair in turns[:count]]


def data_uri(picture: np.ndarray) -> str:
    """A picture as text for a page, lossless, as such figures are compared pixel by pixel."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, 'WEBP', lossless=True, quality=40, method=2)
    return f'data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def pair_to_compare(evaluation: Evaluation, name: str, rows: Sequence[Row]) -> tuple[Row, Row]:
    """Rows before and after: the reference, else bicubic, and the best student on a test set that is not it."""
    before = next((row for row in rows if row.name == evaluation.against), None)
    before = before or next((row for row in rows if row.role == 'bicubic'), rows[0])
    others = [row for row in rows if row is not before] or [before]
    students = [row for row in others if row.role == 'student'] or others
    metric, better = next(iter(evaluation.metrics.items()))
    sign = 1 if better == 'higher' else -1
    return before, max(students, key=lambda row: sign * row.sets[name].mean.get(metric, -sign * np.inf))


def _find(wanted: str, available: list[tuple[str, str]]) -> tuple[str, str]:
    for pair in available:
        if wanted in (pair[1], '/'.join(pair)):
            return pair
    names = [image for _, image in available]
    raise OptionsError(f'--images {wanted}: no pictures of it were saved. {choice(wanted, names)}')


def _picture(row: Row, name: str, image: str) -> object:
    found = row.sets[name].images.get(image) if name in row.sets else None
    return found.picture if found else None


def _gain(evaluation: Evaluation, name: str, image: str) -> float:
    """By how much the row after is better than the row before on one image, in the first metric."""
    before, after = pair_to_compare(evaluation, name, [r for r in evaluation.rows if _picture(r, name, image)])
    metric, better = next(iter(evaluation.metrics.items()))
    values = [row.sets[name].images[image].values.get(metric, 0.0) for row in (before, after)]
    return (values[1] - values[0]) * (1 if better == 'higher' else -1)


def _show(evaluation: Evaluation, name: str, image: str, crop: tuple[int, int, int] | None) -> Shown:
    rows = [row for row in evaluation.rows if _picture(row, name, image)]
    pictures = {'': read_rgb(evaluation.ground_truth[name][image])}
    pictures.update({row.name: read_rgb(_picture(row, name, image)) for row in rows})
    height = min(picture.shape[0] for picture in pictures.values())
    width = min(picture.shape[1] for picture in pictures.values())
    for key, picture in pictures.items():
        # The ground truth may have the pixels that do not divide by the scale; anything else is another image.
        if picture.shape[0] - height >= evaluation.scale or picture.shape[1] - width >= evaluation.scale:
            raise DataError(
                f'{name}/{image}: the pictures differ in size: {picture.shape[1]}x{picture.shape[0]} '
                f'({key or "ground truth"}) and {width}x{height} pixels.'
            )
        pictures[key] = picture[:height, :width]
    before, after = pair_to_compare(evaluation, name, rows)
    if crop is None:
        tensors = [_tensor(pictures[key]) for key in (before.name, after.name, '')]
        crop = largest_gain(*tensors, size=min(CROP, height // 2 or 1, width // 2 or 1))
    x, y, size = crop
    if not (0 <= x <= width - size and 0 <= y <= height - size and size > 0):
        raise OptionsError(f'--crop {x} {y} {size}: outside of {image}, which has {width}x{height} pixels.')
    truth = pictures['']
    left, right = _part(x, size, width)
    top, bottom = _part(y, size, height)
    pictures = {key: picture[top:bottom, left:right] for key, picture in pictures.items()}
    cut = pictures[''].shape != truth.shape
    return Shown(name, image, pictures, truth, (x - left, y - top, size), cut, before.name, after.name)


def _part(start: int, size: int, length: int) -> tuple[int, int]:
    """The part of a side that is embedded, with the crop in its middle as far as possible."""
    kept = min(max(LARGEST, size), length)
    first = min(max(start + size // 2 - kept // 2, 0), length - kept)
    return first, first + kept


def _tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture.astype(np.float32).transpose(2, 0, 1) / 255)
