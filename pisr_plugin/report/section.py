"""Sections of the report: how one is declared, found and filled with content."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pisr_plugin.evaluation.results import Evaluation
from pisr_plugin.report.images import ImageComparison, choose
from pisr_plugin.utils.errors import OptionsError, PISRError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class ReportData:
    """Content of a report.

    Attributes:
        evaluation: The record of the evaluation.
        images: Images with the reconstructions of the rows.
        sections: Sections by name, in the order of the page.
        notes: Why a section is left out, by name.
    """

    evaluation: Evaluation
    images: list[ImageComparison] = field(default_factory=list)
    sections: dict[str, Section] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def main_set(self) -> str:
        """The test set of figures that show one: Set5 if it was measured, else the first; empty if there is none."""
        sets = self.evaluation.sets
        return 'Set5' if 'Set5' in sets else next(iter(sets), '')

    def first_image(self) -> tuple[str, np.ndarray]:
        """Name and ground truth, (H, W, 3), uint8, of the first image, its sides cut to multiples of the scale.

        Raises:
            OptionsError: no image is shown.
        """
        if not self.images:
            raise OptionsError('There is no picture to show it on.')
        first = self.images[0]
        height, width = (side - side % self.evaluation.scale for side in first.truth.shape[:2])
        return first.name, first.truth[:height, :width]


class Section:
    """A section of the page: a subclass in a file, and a template of the file's name beside it.

    ``curves.py`` goes with ``curves.html.j2`` and, if there are, ``curves.js`` and ``curves.css``. In the template the
    section is ``section``, the record ``evaluation``. A script finds what :meth:`script_data` returns in
    ``pisr.data.curves``.

    Attributes:
        position: Sections stand on the page in ascending order.
        heading: What the section shows; empty for none.
        label: Its link in the navigation; empty for none.
    """

    position: int
    heading: str = ''
    label: str = ''

    def __init__(self, report: ReportData) -> None:
        """Gathers the content.

        Args:
            report: The record and the images; its sections are those before this one.

        Raises:
            PISRError: the section cannot be shown; the page gives the message as the reason.
        """

    def figures(self) -> dict[str, Figure]:
        """Figures for papers, by file name without suffix."""
        return {}

    def script_data(self) -> Any:
        """Data for the section's script, as JSON has it."""
        return None

    def libraries(self) -> list[str]:
        """Sources of scripts that the section's script needs."""
        return []

    @classmethod
    def name(cls) -> str:
        """Name of the section's files."""
        return cls._file().stem

    @classmethod
    def text(cls, suffix: str) -> str:
        """Content of the section's file with a suffix; empty: there is none."""
        path = cls._file().with_suffix(suffix)
        return path.read_text(encoding='utf-8') if path.is_file() else ''

    @classmethod
    def _file(cls) -> Path:
        return Path(inspect.getfile(cls))


def section_types() -> list[type[Section]]:
    """All sections in the order of the page: the files in ``sections/``, and subclasses that plugins define."""
    from pisr_plugin.report import sections

    for module in pkgutil.iter_modules(sections.__path__):
        importlib.import_module(f'{sections.__name__}.{module.name}')
    return sorted(Section.__subclasses__(), key=lambda one: one.position)


def gather(
    evaluation: Evaluation,
    count: int = 4,
    images: Sequence[str] = (),
    crop: tuple[int, int, int] | None = None,
) -> ReportData:
    """Reads what the report shows: pictures, logs, checkpoints. A section that cannot be shown leaves a note.

    Args:
        evaluation: The record.
        count: Number of images to show where none are named.
        images: Names of images to show.
        crop: See :func:`pisr_plugin.report.images.choose`.

    Raises:
        OptionsError: ``images`` or ``crop`` cannot be shown.
        DataError: a picture is damaged.
    """
    report = ReportData(evaluation, choose(evaluation, count, images, crop))
    for kind in section_types():
        try:
            report.sections[kind.name()] = kind(report)
        except PISRError as error:
            report.notes[kind.name()] = str(error)
    return report
