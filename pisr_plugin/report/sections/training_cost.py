"""PSNR over the CPU time of training: what a teacher adds, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pisr_plugin.evaluation.results import Row
from pisr_plugin.report.palette import PAGE, PAPER, Palette
from pisr_plugin.report.plotting import figure_with_axes, label_points, to_svg
from pisr_plugin.report.runs import run_options
from pisr_plugin.report.section import ReportData, Section
from pisr_plugin.utils.errors import OptionsError


@dataclass
class TrainedPoint:
    """A row that was trained.

    Attributes:
        name: Title of the row.
        seconds: CPU seconds of all its stages, mean over the seeds.
        psnr: In dB, mean over the seeds.
        spread: Standard deviation of the PSNR over the seeds.
        seeds: Number of seeds.
        taught: Whether a teacher took part.
    """

    name: str
    seconds: float
    psnr: float
    spread: float
    seeds: int
    taught: bool


class TrainingCostSection(Section):
    """Every student on Set5 if it was measured, else on the first test set."""

    position = 42
    label = 'Training cost'
    heading = 'PSNR over training time'

    def __init__(self, report: ReportData) -> None:
        evaluation = report.evaluation
        self.test_set = report.main_set
        self.points = [
            TrainedPoint(
                row.title,
                row.training_seconds,
                psnr,
                row.sets[self.test_set].spread.get('psnr', 0),
                len(row.seeds),
                _taught(row),
            )
            for row in evaluation.rows
            if row.role == 'student' and row.training_seconds
            if (psnr := row.mean(self.test_set, 'psnr')) is not None
        ]
        if len(self.points) < 2:
            raise OptionsError('Fewer than two students have a PSNR and a known training time.')

    def svg(self, width: str) -> Markup:
        """The chart for ``wide`` or ``narrow`` screens."""
        size = {'wide': (10.2, 4.6), 'narrow': (4.0, 4.4)}[width]
        return to_svg(over_time(self.points, self.test_set, PAGE, size), f'training-cost-{width}')

    def figures(self) -> dict[str, Figure]:
        return {'training_cost': over_time(self.points, self.test_set, PAPER)}


def over_time(
    points: Sequence[TrainedPoint], test_set: str, palette: Palette, size: tuple[float, float] = (7.4, 3.8)
) -> Figure:
    """Draws PSNR over CPU seconds; a line joins the rows without a teacher.

    Of more than eight rows only those with several seeds are named, if there are any.

    Args:
        points: The rows.
        test_set: Test set of the PSNR.
        palette: Colours.
        size: Width and height in inches.
    """
    figure, (axis,) = figure_with_axes(palette, size)
    repeated = [p for p in points if p.seeds > 1]
    named = repeated if len(points) > 8 and repeated else points
    names, lines = [], []
    for taught in (True, False):
        group = sorted((p for p in points if p.taught is taught), key=lambda p: p.seconds)
        if group:
            color = palette.series[1 if taught else 0]
            axis.errorbar(
                [p.seconds for p in group],
                [p.psnr for p in group],
                [p.spread for p in group],
                fmt='o' if taught else 'o-',
                markersize=5,
                linewidth=1.2,
                elinewidth=1.6,
                color=color,
                label='with a teacher' if taught else 'without a teacher',
            )
            names += [(p.seconds, p.psnr, p.name, color, 6) for p in group if p in named]
            lines += [[(p.seconds, p.psnr - p.spread), (p.seconds, p.psnr + p.spread)] for p in group]
            lines += [] if taught else [[(p.seconds, p.psnr) for p in group]]
    axis.set_xscale('log')
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.0f}'))
    axis.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f'{value:,.0f}' if f'{value:.0e}'[0] in '25' else ''))
    axis.tick_params(axis='x', which='both', pad=5)
    axis.margins(0.14, 0.18)
    axis.set_xlabel('CPU seconds of training, all stages')
    axis.set_ylabel(f'PSNR on {test_set}, dB', parse_math=False)
    axis.grid(color=palette.line, linewidth=0.8)
    axis.legend(loc='lower right', frameon=False, fontsize=8, labelcolor='linecolor')
    label_points(figure, axis, names, lines)
    return figure


def _taught(row: Row) -> bool:
    """Whether the options of a row's last stage name a teacher."""
    return bool(row.runs and run_options(row.runs[-1]).get('network_t'))
