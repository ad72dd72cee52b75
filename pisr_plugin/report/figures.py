"""Draw the figures of the PISR paper from one's own runs: for papers, and with a page's colours for the page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter

from pisr_plugin.report.features import ScaleMap, View, spectrum
from pisr_plugin.report.pictures import Shown
from pisr_plugin.report.published import Point

COLORMAP = 'magma'


@dataclass(frozen=True)
class Palette:
    """Colours of a figure; ``series`` are those of the rows, in order."""

    ink: str
    muted: str
    line: str
    panel: str
    series: tuple[str, ...]


PAPER = Palette(
    ink='#1b1d22',
    muted='#5d6470',
    line='#e1e3e6',
    panel='#ffffff',
    series=('#3454d1', '#c8374d', '#00798c', '#a66f00', '#7b3fa0', '#2e8540', '#c2571a', '#5d6470'),
)
# Colours that stand for the page's CSS variables; to_svg puts the variables' names in their place.
PAGE = Palette(
    ink='#010101',
    muted='#020202',
    line='#030303',
    panel='#040404',
    series=tuple(f'#0a0a{i:02x}' for i in range(8)),
)
_VARIABLES = {PAGE.ink: '--ink', PAGE.muted: '--muted', PAGE.line: '--line', PAGE.panel: '--panel'}
_VARIABLES.update({color: f'--s{i}' for i, color in enumerate(PAGE.series)})


@dataclass
class Mark:
    """One of one's own networks in Fig. 4; ``color`` is an index into the palette's series."""

    name: str
    parameters: float
    multi_adds: float
    psnr: float
    color: int


def save(figure: Figure, path: Path) -> None:
    """Saves a figure, format by suffix; the same figure gives the same file."""
    metadata = {'Date': None} if path.suffix == '.svg' else None
    with matplotlib.rc_context({'svg.hashsalt': path.stem, 'svg.fonttype': 'none'}):
        figure.savefig(path, dpi=200, metadata=metadata, facecolor=PAPER.panel, bbox_inches='tight')


def to_svg(figure: Figure, prefix: str) -> str:
    """A figure drawn in :data:`PAGE` as an SVG element for a page.

    Args:
        figure: The figure.
        prefix: Put before its ids, which must differ between the figures of a page.
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
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f'var({variable})')
    return svg.replace('<svg', '<svg aria-hidden="true"', 1)


def tradeoff(
    own: Sequence[Mark],
    published: Sequence[Point],
    test_set: str,
    palette: Palette,
    size: tuple[float, float] = (7.4, 4.4),
) -> Figure:
    """Fig. 4: PSNR over Multi-Adds, the area of a circle in proportion to the number of parameters.

    Where more than four of one's own networks cost the same, only the best and the worst are named.
    """
    figure, (axis,) = _figure(palette, size)
    dots = [(p.multi_adds, p.psnr[test_set], p.parameters, p.name, palette.muted, 0.22) for p in published]
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
    unnamed = {mark.name for group in _equal_cost(own) if len(group) > 4 for mark in group[1:-1]}
    # Beside one's own circles; the grey ones are too many for that, and names are legible on them.
    names = [
        (x / 1e9, y, name, color, 6 if alpha < 0.5 else area(parameters) ** 0.5 / 2 + 3)
        for x, y, parameters, name, color, alpha in own_first
        if alpha < 0.5 or name not in unnamed
    ]
    _label(figure, axis, names)
    return figure


def _equal_cost(marks: Sequence[Mark]) -> list[list[Mark]]:
    """Networks of equal cost together, the best first."""
    groups: dict[tuple[float, float], list[Mark]] = {}
    for mark in sorted(marks, key=lambda mark: -mark.psnr):
        groups.setdefault((mark.multi_adds, mark.parameters), []).append(mark)
    return list(groups.values())


def spectra(views: Sequence[View], palette: Palette, size: tuple[float, float] = (4.4, 3.1)) -> Figure:
    """Fig. 3, bottom left, without a legend: magnitudes along the u axis."""
    figure, (axis,) = _figure(palette, size)
    _spectra(axis, views, palette)
    return figure


def histograms(views: Sequence[View], palette: Palette, size: tuple[float, float] = (4.4, 3.1)) -> Figure:
    """Fig. 3, bottom right, without a legend: distribution of values."""
    figure, (axis,) = _figure(palette, size)
    _histograms(axis, views, palette)
    return figure


def compact(views: Sequence[View]) -> Figure:
    """Fig. 3 as a whole: pictures above, spectrum and histogram below."""
    figure, axes = _figure(PAPER, (2.4 * len(views), 5.2), mosaic=_mosaic(len(views)))
    for axis, view in zip(axes, views):
        _picture(axis, view.picture, view.name + ('\ncontrast stretched' if view.stretched else ''))
    for axis, draw in zip(axes[-2:], (_spectra, _histograms)):
        draw(axis, views, PAPER)
        _legend(axis, PAPER)
    return figure


def crops(shown: Shown, captions: dict[str, str]) -> Figure:
    """Fig. 5: the whole image with the crop marked, and the crop as every row reconstructs it.

    Args:
        shown: The pictures.
        captions: Caption by row, in the order in which to draw; the ground truth under the empty name.
    """
    x, y, side = shown.crop
    height, width = shown.pictures[''].shape[:2]
    columns = -(-len(captions) // 2) if len(captions) > 3 else len(captions)
    lines = 2 if len(captions) > 3 else 1
    ratios = [min(width / height, 2) * lines, *[1] * columns]
    figure = _empty(PAPER, (1.75 * sum(ratios), 2.1 * lines + 0.2))
    grid = figure.add_gridspec(lines, 1 + columns, width_ratios=ratios)
    whole = figure.add_subplot(grid[:, 0])
    _picture(whole, shown.pictures[''], f'{shown.set}, {shown.name}')
    whole.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=PAPER.series[1], linewidth=2))
    for i, (row, caption) in enumerate(captions.items()):
        axis = figure.add_subplot(grid[i // columns, 1 + i % columns])
        _picture(axis, shown.pictures[row][y : y + side, x : x + side], caption)
    return figure


def scale_map(truth: np.ndarray, maps: Sequence[ScaleMap]) -> Figure:
    """Scale maps beside the image: bright is where the student gave up learning the teacher's feature."""
    height, width = truth.shape[:2]
    figure, axes = _figure(PAPER, (3.2 * (1 + len(maps)), 3.2 * height / width + 0.5), columns=1 + len(maps))
    _picture(axes[0], truth, 'HR image')
    for axis, entry in zip(axes[1:], maps):
        low, high = value_range(entry)
        drawn = axis.imshow(entry.values, cmap=COLORMAP, vmin=low, vmax=high, interpolation='nearest')
        axis.set_title(entry.title, fontsize=9, parse_math=False)
        axis.axis('off')
        figure.colorbar(drawn, ax=axis, fraction=0.046 * height / width, pad=0.02)
    return figure


def clusters(points: Mapping[str, np.ndarray], names: Sequence[str], palette: Palette) -> Figure:
    """Points in the plane for each of several networks, coloured by what they belong to.

    Args:
        points: By network, (images, names, 2).
        names: What the points of the second axis belong to, in an order that means something.
        palette: Colours of all but the points.
    """
    figure, axes = _figure(palette, (3.1 * len(points) + 0.9, 3.1), len(points))
    colors = matplotlib.colormaps['viridis'](np.linspace(0, 0.95, len(names)))
    for axis, (title, where) in zip(axes, points.items()):
        for index, (name, color) in enumerate(zip(names, colors)):
            axis.scatter(*where[:, index].T, s=11, color=color, label=name, linewidths=0)
        axis.set_title(title)
        axis.set(xticks=[], yticks=[])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside right center', frameon=False, fontsize=8, markerscale=1.6)
    return figure


def value_range(entry: ScaleMap) -> tuple[float, float]:
    """Values drawn darkest and brightest, so that single pixels do not decide."""
    low, high = np.percentile(entry.values, (1, 99))
    return float(low), float(high)


def colored(entry: ScaleMap) -> np.ndarray:
    """A scale map as a picture, (H, W, 3), uint8."""
    low, high = value_range(entry)
    return matplotlib.colormaps[COLORMAP]((entry.values - low) / max(high - low, 1e-12), bytes=True)[..., :3]


def _spectra(axis: Axes, views: Sequence[View], palette: Palette) -> None:
    for view in views:
        frequencies, magnitudes = spectrum(view)
        axis.plot(frequencies, magnitudes, label=view.name, **_style(view, palette))
    axis.set_yscale('log')
    axis.set_xlabel('frequency along u, cycles per LR pixel')
    axis.set_ylabel('magnitude')
    axis.grid(color=palette.line, linewidth=0.8)


def _histograms(axis: Axes, views: Sequence[View], palette: Palette) -> None:
    values = np.concatenate([view.plane.ravel() for view in views])
    edges = np.linspace(*np.percentile(values, (0.5, 99.5)), 97)
    for view in views:
        density, _ = np.histogram(view.plane, edges, density=True)
        axis.stairs(density, edges, label=view.name, **_style(view, palette))
    axis.set_xlabel('value')
    axis.set_ylabel('density')
    axis.grid(color=palette.line, linewidth=0.8)


def _style(view: View, palette: Palette) -> dict:
    color = {'lr': palette.series[2], 'imitation': palette.series[0], 'free': palette.series[1], 'hr': palette.muted}
    return {'color': color[view.kind], 'linestyle': {'hr': '--', 'free': '-.'}.get(view.kind, '-'), 'linewidth': 1.3}


def _legend(axis: Axes, palette: Palette) -> None:
    """Names of the curves, below the axis, as curves may run anywhere."""
    place = {'loc': 'upper center', 'bbox_to_anchor': (0.5, -0.2), 'ncols': 2}
    axis.legend(fontsize=7.5, frameon=False, labelcolor=palette.ink, **place)


def _picture(axis: Axes, picture: np.ndarray, title: str) -> None:
    axis.imshow(picture, cmap='gray' if picture.ndim == 2 else None, vmin=0, vmax=255, interpolation='nearest')
    axis.set_title(title, fontsize=8, parse_math=False)
    axis.axis('off')


def _empty(palette: Palette, size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout='constrained', facecolor=palette.panel)
    FigureCanvasAgg(figure)  # measures text
    return figure


def _figure(
    palette: Palette, size: tuple[float, float], columns: int = 1, mosaic: list | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, without the state that pyplot keeps."""
    figure = _empty(palette, size)
    style = {
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


def _mosaic(pictures: int) -> list[list[str]]:
    """Pictures above; below, spectrum and histogram, half of the width each."""
    top = [f'picture {i // 2}' for i in range(2 * pictures)]
    return [top, ['spectrum'] * pictures + ['histogram'] * pictures]


def _label(figure: Figure, axis: Axes, names: Sequence[tuple[float, float, str, str, float]]) -> None:
    """Writes each name beside its point, from a distance on, where it first covers no other name."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    taken = [axis.transData.transform((x, y)) for x, y, *_ in names]
    taken = [(px - 4, py - 4, px + 4, py + 4) for px, py in taken]
    frame = axis.get_window_extent(renderer)
    frame = frame.x0, frame.y0, frame.x1, frame.y1
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
            box = Text.get_window_extent(text, renderer)  # without the line to the point
            box = box.x0, box.y0, box.x1, box.y1
            overlap = sum(_area(box, other) for other in taken) + 4 * (_area(box, box) - _area(box, frame))
            if best is None or overlap < best[0] - 1e-9:
                if best:
                    best[1].remove()
                best = overlap, text, box
            else:
                text.remove()
            if overlap == 0:
                break
        taken.append(best[2])


def _area(a: tuple, b: tuple) -> float:
    """Area that two boxes ``(x0, y0, x1, y1)`` share."""
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
