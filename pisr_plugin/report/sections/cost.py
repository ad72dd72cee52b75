"""PSNR over Multi-Adds, the networks of PISR's Table 2 beside one's own (Fig. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pisr_plugin.report import published
from pisr_plugin.report.palette import PAGE, PAPER, Palette
from pisr_plugin.report.plotting import figure_with_axes, label_points, to_svg
from pisr_plugin.report.section import ReportData, Section
from pisr_plugin.utils.errors import OptionsError


@dataclass
class NetworkPoint:
    """A network that was measured.

    Attributes:
        name: Title of its row.
        parameters: Number of parameters.
        multi_adds: For an output of 1280x720.
        psnr: In dB.
        color: Index into the palette's series.
    """

    name: str
    parameters: float
    multi_adds: float
    psnr: float
    color: int


class CostSection(Section):
    """PSNR over Multi-Adds on Set5 if it was measured, else on the first test set."""

    position = 40
    label = 'Cost'
    heading = 'PSNR over Multi-Adds'
    published = published

    def __init__(self, report: ReportData) -> None:
        evaluation = report.evaluation
        self.test_set = report.main_set
        self.own = [
            NetworkPoint(row.title, row.parameters, row.multi_adds, psnr, i)
            for i, row in enumerate(evaluation.rows)
            if row.role == 'student' and row.parameters and row.multi_adds
            if (psnr := row.mean(self.test_set, 'psnr')) is not None
        ]
        self.points = [point for point in published.points(evaluation.scale) if self.test_set in point.psnr]
        if not self.own:
            raise OptionsError('No student has PSNR, parameters and Multi-Adds.')
        if len({own.multi_adds for own in self.own} | {point.multi_adds for point in self.points}) < 2:
            raise OptionsError('All networks cost the same, so there is nothing to compare.')

    def svg(self, width: str) -> Markup:
        """The chart for ``wide`` or ``narrow`` screens."""
        size = {'wide': (10.2, 5.2), 'narrow': (4.0, 4.8)}[width]
        return to_svg(trade_off(self.own, self.points, self.test_set, PAGE, size), f'cost-{width}')

    def figures(self) -> dict[str, Figure]:
        return {'fig4_trade_off': trade_off(self.own, self.points, self.test_set, PAPER)}


def trade_off(
    own: Sequence[NetworkPoint],
    others: Sequence[published.Point],
    test_set: str,
    palette: Palette,
    size: tuple[float, float] = (7.4, 4.4),
) -> Figure:
    """Draws Fig. 4: PSNR over Multi-Adds, the area of a circle in proportion to the number of parameters.

    Where more than four of one's own networks cost the same, only the best and the worst are named.

    Args:
        own: Networks that were measured.
        others: Published networks, drawn in grey.
        test_set: Test set of the PSNR.
        palette: Colours.
        size: Width and height in inches.
    """
    figure, (axis,) = figure_with_axes(palette, size)
    dots = [(p.multi_adds, p.psnr[test_set], p.parameters, p.name, palette.muted, 0.22) for p in others]
    dots += [(m.multi_adds, m.psnr, m.parameters, m.name, palette.series[m.color % 8], 0.75) for m in own]
    largest = max(dot[2] for dot in dots)

    def area(parameters: float) -> float:
        return max(1500 * parameters / largest, 14)

    for x, y, parameters, _, color, alpha in dots:
        axis.scatter(x / 1e9, y, s=area(parameters), color=color, alpha=alpha, linewidth=0)
        axis.scatter(x / 1e9, y, s=7, color=color, linewidth=0)
    axis.set_xscale('log')
    axis.margins(0.16, 0.14)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.0f} G' if value >= 1 else f'{value:g} G'))
    axis.set_xlabel('Multi-Adds for 1280x720, fewer is better')
    axis.set_ylabel(f'PSNR on {test_set}, dB', parse_math=False)
    axis.grid(color=palette.line, linewidth=0.8)
    own_first = sorted(dots, key=lambda dot: dot[5], reverse=True)
    unnamed = {point.name for group in _equal_cost(own) if len(group) > 4 for point in group[1:-1]}
    # Names stand beside one's own circles, but on the grey ones, of which there are too many.
    names = [
        (x / 1e9, y, name, color, 6 if alpha < 0.5 else area(parameters) ** 0.5 / 2 + 3)
        for x, y, parameters, name, color, alpha in own_first
        if alpha < 0.5 or name not in unnamed
    ]
    label_points(figure, axis, names)
    return figure


def _equal_cost(points: Sequence[NetworkPoint]) -> list[list[NetworkPoint]]:
    """Groups networks of equal cost, the best of a group first."""
    groups: dict[tuple[float, float], list[NetworkPoint]] = {}
    for point in sorted(points, key=lambda point: -point.psnr):
        groups.setdefault((point.multi_adds, point.parameters), []).append(point)
    return list(groups.values())
