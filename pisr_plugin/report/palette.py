"""Colours of figures, for papers and for the page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    """Colours of a figure.

    Attributes:
        ink: Text.
        muted: Axes and published networks.
        line: Grid lines.
        panel: Background.
        series: Colours of the rows, in order; they repeat.
    """

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
# Colours that stand for the page's CSS variables; plotting.to_svg replaces them by the variables' names.
PAGE = Palette(
    ink='#010101',
    muted='#020202',
    line='#030303',
    panel='#040404',
    series=tuple(f'#0a0a{i:02x}' for i in range(8)),
)
CSS_VARIABLES = {
    **{PAGE.ink: '--ink', PAGE.muted: '--muted', PAGE.line: '--line', PAGE.panel: '--panel'},
    **{color: f'--s{i}' for i, color in enumerate(PAGE.series)},
}
