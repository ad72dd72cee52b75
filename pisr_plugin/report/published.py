"""Published values that the cost chart shows beside one's own."""

from __future__ import annotations

from typing import NamedTuple

CITATION = (
    'W. Lee, J. Lee, D. Kim, B. Ham: Learning with Privileged Information for Efficient Image Super-Resolution. '
    'ECCV 2020, Table 2'
)
COUNTING = (
    'The published Multi-Adds mix ways of counting: FSRCNN is charged its deconvolution at every output position, '
    'which gives about twice what is counted otherwise.'
)


class Point(NamedTuple):
    """A published network: parameters, Multi-Adds for an output of 1280x720, PSNR by test set."""

    name: str
    parameters: float
    multi_adds: float
    psnr: dict[str, float]


_SETS = ('Set5', 'Set14', 'B100', 'Urban100')
# name: thousands of parameters, then for x2, x3, x4: billions of Multi-Adds, PSNR on the four sets
_TABLE_2 = {
    'FSRCNN': {
        2: (13, 6.0, 37.15, 32.71, 31.58, 30.05),
        3: (13, 5.0, 33.15, 29.45, 28.52, 26.49),
        4: (13, 4.6, 30.89, 27.72, 27.05, 24.76),
    },
    'FSRCNN (PISR)': {
        2: (13, 6.0, 37.33, 32.79, 31.65, 30.24),
        3: (13, 5.0, 33.31, 29.57, 28.61, 26.67),
        4: (13, 4.6, 30.95, 27.77, 27.08, 24.82),
    },
    'DRCN': {
        2: (1774, 17974.3, 37.63, 33.04, 31.85, 30.75),
        3: (1774, 17974.3, 33.82, 29.76, 28.80, 27.15),
        4: (1774, 17974.3, 31.53, 28.02, 27.23, 25.14),
    },
    'DRRN': {
        2: (297, 6796.9, 37.74, 33.23, 32.05, 31.23),
        3: (297, 6796.9, 34.03, 29.96, 28.95, 27.53),
        4: (297, 6796.9, 31.68, 28.21, 27.38, 25.44),
    },
    'MemNet': {
        2: (677, 2662.4, 37.78, 33.28, 32.08, 31.31),
        3: (677, 2662.4, 34.09, 30.00, 28.96, 27.56),
        4: (677, 2662.4, 31.74, 28.26, 27.40, 25.50),
    },
    'CARN': {
        2: (1592, 222.8, 37.76, 33.52, 32.09, 31.92),
        3: (1592, 118.8, 34.29, 30.29, 29.06, 28.06),
        4: (1592, 90.9, 32.13, 28.60, 27.58, 26.07),
    },
    'IDN': {
        2: (591, 136.5, 37.83, 33.30, 32.08, 31.27),
        3: (591, 60.6, 34.11, 29.99, 28.95, 27.42),
        4: (591, 34.1, 31.82, 28.25, 27.41, 25.41),
    },
    'SRFBN': {
        2: (3631, 1126.7, 38.11, 33.82, 32.29, 32.62),
        3: (3631, 500.8, 34.70, 30.51, 29.24, 28.73),
        4: (3631, 281.7, 32.47, 28.81, 27.72, 26.60),
    },
    'IMDN': {
        2: (694, 159.6, 38.00, 33.63, 32.19, 32.17),
        3: (703, 71.7, 34.36, 30.32, 29.09, 28.17),
        4: (715, 41.1, 32.21, 28.58, 27.56, 26.04),
    },
}


def points(scale: int) -> list[Point]:
    """The networks of PISR's Table 2 at one scale; FSRCNN as its authors trained it again on DIV2K."""
    return [
        Point(name, row[0] * 1e3, row[1] * 1e9, dict(zip(_SETS, row[2:])))
        for name, by_scale in _TABLE_2.items()
        for row in [by_scale.get(scale)]
        if row
    ]
