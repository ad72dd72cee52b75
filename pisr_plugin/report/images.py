"""Choose the images and crops that a report shows."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from pisr_plugin.data.storage.image_files import read_rgb
from pisr_plugin.evaluation.results import Evaluation, Row
from pisr_plugin.utils.errors import DataError, OptionsError, did_you_mean

LARGEST = 512  # side in pixels of an embedded picture; of larger images the part around the crop is embedded
CROP = 96  # side in pixels of a crop


@dataclass
class ImageComparison:
    """One image as several rows reconstruct it.

    Attributes:
        set: Name of the test set.
        name: Name of the image.
        pictures: By row the reconstruction, (H, W, 3), uint8, all of one size. The ground truth has the empty name.
        truth: The whole ground truth, (H, W, 3), uint8.
        crop: ``(x, y, size)`` in pixels of the pictures.
        cut: Whether the pictures are a part of the image.
        before: Row that the slider first shows on its left.
        after: Row that the slider first shows on its right.
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
) -> list[ImageComparison]:
    """Reads the images to show: those named, else those with the largest gain, from all test sets in turn.

    Args:
        evaluation: The record.
        count: Number of images where none are named.
        wanted: Names of images, with or without ``set/`` before.
        crop: ``(x, y, size)`` in HR pixels for all images; by default where the gain is largest.

    Raises:
        OptionsError: an image has no pictures, or the crop is outside of one.
        DataError: a picture is damaged or has another size.
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
    return [_show(evaluation, name, image, crop) for name, image in turns[:count]]


def crop_of(
    wanted: tuple[int, int, int] | None, before: np.ndarray, after: np.ndarray, truth: np.ndarray, name: str
) -> tuple[int, int, int]:
    """Checks a crop, or chooses the square in which ``after`` is closer to ``truth`` than ``before`` by most.

    Args:
        wanted: ``(x, y, size)`` in pixels; None: choose.
        before: A reconstruction, (H, W, 3), uint8.
        after: Another one, of the same size.
        truth: The ground truth, of the same size.
        name: Name of the image, for the message.

    Raises:
        OptionsError: the crop is outside of the image.
    """
    height, width = truth.shape[:2]
    x, y, size = wanted or largest_gain(before, after, truth, min(CROP, height // 2 or 1, width // 2 or 1))
    if not (0 <= x <= width - size and 0 <= y <= height - size and size > 0):
        raise OptionsError(f'--crop {x} {y} {size}: outside of {name} (found an image of {width}x{height} pixels).')
    return x, y, size


def largest_gain(before: np.ndarray, after: np.ndarray, truth: np.ndarray, size: int) -> tuple[int, int, int]:
    """Returns ``(x, y, size)`` of the square in which the squared error falls by most; see :func:`crop_of`."""
    first, second, target = (torch.from_numpy(image.astype(np.float32)) for image in (before, after, truth))
    gain = ((first - target) ** 2 - (second - target) ** 2).mean(2)[None, None]
    step = max(size // 8, 1)
    windows = F.avg_pool2d(gain, size, stride=step)[0, 0]
    row, column = divmod(int(windows.argmax()), windows.shape[1])
    return column * step, row * step, size


def data_uri(picture: np.ndarray) -> str:
    """Encodes a picture, (H, W) or (H, W, 3), uint8, as a data URI, without loss: readers compare single pixels."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, 'WEBP', lossless=True, quality=40, method=2)
    return f'data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def pair_to_compare(evaluation: Evaluation, name: str, rows: Sequence[Row]) -> tuple[Row, Row]:
    """Chooses two rows: the reference, else bicubic, else the first; and the best other student on a test set."""
    before = next((row for row in rows if row.name == evaluation.against), None)
    before = before or next((row for row in rows if row.role == 'bicubic'), rows[0])
    others = [row for row in rows if row is not before] or [before]
    students = [row for row in others if row.role == 'student'] or others
    return before, evaluation.best(students, name, evaluation.first_metric) or students[0]


def _find(wanted: str, available: list[tuple[str, str]]) -> tuple[str, str]:
    for pair in available:
        if wanted in (pair[1], '/'.join(pair)):
            return pair
    names = [image for _, image in available]
    raise OptionsError(f'--images {wanted}: no pictures of it were saved. {did_you_mean(wanted, names)}')


def _picture(row: Row, name: str, image: str) -> Path | None:
    found = row.sets[name].images.get(image) if name in row.sets else None
    return found.picture if found else None


def _gain(evaluation: Evaluation, name: str, image: str) -> float:
    """By how much the row after is better than the row before on one image, in the first metric."""
    pair = pair_to_compare(evaluation, name, [row for row in evaluation.rows if _picture(row, name, image)])
    metric = evaluation.first_metric
    before, after = (row.sets[name].images[image].values.get(metric) for row in pair)
    return 0.0 if before is None or after is None else evaluation.gain(after, before, metric)


def _show(evaluation: Evaluation, name: str, image: str, crop: tuple[int, int, int] | None) -> ImageComparison:
    found = [(row, path) for row in evaluation.rows if (path := _picture(row, name, image))]
    pictures = {'': read_rgb(evaluation.ground_truth[name][image])}
    pictures.update({row.name: read_rgb(path) for row, path in found})
    height = min(picture.shape[0] for picture in pictures.values())
    width = min(picture.shape[1] for picture in pictures.values())
    for key, picture in pictures.items():
        # The ground truth may keep the pixels that do not divide by the scale. A larger difference is another image.
        if picture.shape[0] - height >= evaluation.scale or picture.shape[1] - width >= evaluation.scale:
            raise DataError(
                f'{name}/{image}: the pictures differ in size (found {picture.shape[1]}x{picture.shape[0]} pixels for '
                f'{key or "the ground truth"} and {width}x{height}).'
            )
        pictures[key] = picture[:height, :width]
    before, after = pair_to_compare(evaluation, name, [row for row, _ in found])
    truth = pictures['']
    x, y, size = crop_of(crop, pictures[before.name], pictures[after.name], truth, image)
    left, right = _part(x, size, width)
    top, bottom = _part(y, size, height)
    pictures = {key: picture[top:bottom, left:right] for key, picture in pictures.items()}
    cut = pictures[''].shape != truth.shape
    return ImageComparison(name, image, pictures, truth, (x - left, y - top, size), cut, before.name, after.name)


def _part(start: int, size: int, length: int) -> tuple[int, int]:
    """The part of a side that is embedded: the crop is in its middle as far as possible."""
    kept = min(max(LARGEST, size), length)
    first = min(max(start + size // 2 - kept // 2, 0), length - kept)
    return first, first + kept
