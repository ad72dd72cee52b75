"""What the report's figures share: axes without pyplot, names beside points, PNG and SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from pisr_plugin.report.palette import CSS_VARIABLES, PAPER, Palette


def save(figure: Figure, path: Path) -> None:
    """Saves a figure as PNG or SVG by the suffix; the same figure gives the same bytes."""
    metadata = {'Date': None} if path.suffix == '.svg' else None
    with matplotlib.rc_context({'svg.hashsalt': path.stem, 'svg.fonttype': 'none'}):
        figure.savefig(path, dpi=200, metadata=metadata, facecolor=PAPER.panel, bbox_inches='tight')


def to_svg(figure: Figure, prefix: str) -> Markup:
    """Converts a figure to an SVG element of the page.

    Args:
        figure: A figure in the colours of :data:`pisr_plugin.report.palette.PAGE`.
        prefix: Put before the element's ids, which must differ between the figures of a page.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({'svg.hashsalt': prefix, 'svg.fonttype': 'none'}):
        figure.savefig(buffer, format='svg', metadata={'Date': None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index('<svg') :]
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.S)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'url\(#', f'url(#{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    for side in ('width', 'height'):  # the page gives the size
        svg = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r'\1', svg, count=1)
    svg = svg.replace("font: 10px 'DejaVu Sans'", 'font: 10px sans-serif')
    for color, variable in CSS_VARIABLES.items():
        svg = svg.replace(color, f'var({variable})')
    return Markup(svg.replace('<svg', '<svg aria-hidden="true"', 1))


def empty_figure(palette: Palette, size: tuple[float, float]) -> Figure:
    """Makes a figure without axes, and without the state that pyplot keeps."""
    figure = Figure(figsize=size, layout='constrained', facecolor=palette.panel)
    FigureCanvasAgg(figure)  # it measures text
    return figure


def figure_with_axes(
    palette: Palette, size: tuple[float, float], columns: int = 1, mosaic: list | None = None
) -> tuple[Figure, list[Axes]]:
    """Makes a figure and its axes.

    Args:
        palette: Its colours.
        size: Width and height in inches.
        columns: Number of axes side by side.
        mosaic: Names of axes by line and column, in place of ``columns``; see matplotlib's ``subplot_mosaic``.
    """
    figure = empty_figure(palette, size)
    style: dict = {
        'axes.edgecolor': palette.muted,
        'axes.facecolor': 'none',
        'axes.labelcolor': palette.ink,
        'axes.titlecolor': palette.ink,
        'axes.spines.top': False,
        'axes.spines.right': False,
        'text.color': palette.ink,
        'xtick.color': palette.muted,
        'ytick.color': palette.muted,
        'font.size': 9,
        'axes.axisbelow': True,
    }
    with matplotlib.rc_context(style):
        if mosaic:
            axes = list(figure.subplot_mosaic(mosaic, height_ratios=[1, 1.1]).values())
        else:
            axes = list(np.atleast_1d(figure.subplots(1, columns)))
    return figure, axes


def show_picture(axis: Axes, picture: np.ndarray, title: str) -> None:
    """Shows a picture, (H, W) or (H, W, 3), uint8, without axes and interpolation."""
    axis.imshow(picture, cmap='gray' if picture.ndim == 2 else None, vmin=0, vmax=255, interpolation='nearest')
    axis.set_title(title, fontsize=8, parse_math=False)
    axis.axis('off')


def label_points(
    figure: Figure,
    axis: Axes,
    names: Sequence[tuple[float, float, str, str, float]],
    lines: Sequence[Sequence[tuple[float, float]]] = (),
) -> None:
    """Writes each name beside its point where it covers no other name, point or line, or the fewest.

    Args:
        figure: A figure of :func:`empty_figure`.
        axis: The axis that has the points.
        names: For each point x, y, name, colour, and the smallest distance of the name in points.
        lines: The corners of lines to keep free, each x, y.
    """
    figure.draw_without_rendering()
    assert isinstance(figure.canvas, FigureCanvasAgg)  # as empty_figure makes it
    renderer = figure.canvas.get_renderer()
    points = [axis.transData.transform((x, y)) for x, y, *_ in names]
    taken: list[tuple] = [(px - 4, py - 4, px + 4, py + 4) for px, py in points]
    taken += [(px - 2, py - 2, px + 2, py + 2) for line in lines for px, py in _along(axis.transData.transform(line))]
    frame = tuple(axis.get_window_extent(renderer).extents)
    for x, y, name, color, nearest in names:
        steps = [nearest + more for more in (0, 8, 18, 30)]
        places = [(dx, dy) for r in steps for dx, dy in ((r, 0), (0, r), (-r, 0), (0, -r), (r, r), (r, -r))]
        places += [(dx, dy) for r in steps[1:] for dx, dy in ((-r, r), (-r, -r))]
        best = None
        for dx, dy in places:
            text = axis.annotate(
                name,
                (x, y),
                (dx, dy),
                textcoords='offset points',
                fontsize=8,
                color=color,
                parse_math=False,
                ha='left' if dx > 0 else 'right' if dx < 0 else 'center',
                va='bottom' if dy > 0 else 'top' if dy < 0 else 'center',
                arrowprops={'arrowstyle': '-', 'color': color, 'linewidth': 0.6, 'alpha': 0.6}
                if abs(dx) > nearest + 4
                else None,
            )
            text.update_positions(renderer)
            box = tuple(Text.get_window_extent(text, renderer).extents)  # without the line to the point
            overlap = sum(_area(box, other) for other in taken) + 4 * (_area(box, box) - _area(box, frame))
            if best is None or overlap < best[0] - 1e-9:
                if best:
                    best[1].remove()
                best = overlap, text, box
            else:
                text.remove()
            if overlap == 0:
                break
        assert best  # there are always places
        taken.append(best[2])


def _along(corners: np.ndarray) -> np.ndarray:
    """Returns points every 4 pixels along a line through corners, (N, 2), both ends included."""
    lengths = np.concatenate([[0], np.hypot(*np.diff(corners, axis=0).T).cumsum()])
    places = np.arange(0, lengths[-1] + 4, 4)
    return np.stack([np.interp(places, lengths, side) for side in corners.T], 1)


def _area(a: tuple, b: tuple) -> float:
    """Returns the area that two boxes ``(x0, y0, x1, y1)`` share."""
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
