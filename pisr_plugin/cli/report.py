"""Make a report of an evaluation or ablation: one HTML page that opens from disk.

``pisr-report results/NAME``
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pisr_plugin.cli import common
from pisr_plugin.utils.files import write_whole

if TYPE_CHECKING:
    from pisr_plugin.report.section import ReportData

NEEDED = ('bokeh', 'jinja2', 'matplotlib')  # the extra `report` of setup.py


def main(argv: list[str] | None = None) -> int:
    """Command line of ``tools/report.py`` and ``pisr-report``."""
    parser = common.Parser(description='Make one self-contained HTML page of an evaluation or ablation.')
    parser.add_argument('results', type=Path, help='folder of results that has an evaluation.json, or the file')
    parser.add_argument('-o', '--output', type=Path, help='the page (default: report.html beside the file)')
    parser.add_argument('--figures', type=Path, metavar='DIR', help='save the figures for papers there, as PNG and SVG')
    parser.add_argument(
        '--count', type=int, default=4, metavar='N', help='how many images to show (default: %(default)s)'
    )
    parser.add_argument(
        '--images',
        nargs='+',
        default=[],
        metavar='NAME',
        help='the images to show (default: those with the largest gain)',
    )
    common.add_crop_flag(parser)
    common.add_plugin_flag(parser)
    args = parser.parse_args(argv)
    return common.run(lambda: report(args))


def report(args: argparse.Namespace) -> int:
    """Writes the page and figures that the flags ask for; returns the exit code."""
    from pisr_plugin.config.runtime import make_folder
    from pisr_plugin.evaluation.results import read_evaluation

    common.require('the report', NEEDED)
    from pisr_plugin.report.page import render  # these import them
    from pisr_plugin.report.section import gather

    common.import_plugins(args.plugin)
    evaluation = read_evaluation(args.results)
    data = gather(evaluation, max(args.count, 0), args.images, args.crop and tuple(args.crop))
    page = render(data).encode()
    output = args.output or evaluation.path.with_name('report.html')
    make_folder(output.absolute().parent)
    write_whole(output, page)
    print(f'Saved {output} ({len(page) / 1e6:.1f} MB)')
    if args.figures:
        make_folder(args.figures)
        for path in save_figures(data, args.figures):
            print(f'Saved {path}')
    for note in dict.fromkeys(data.notes.values()):
        print(f'Left out: {note}')
    return 0


def save_figures(data: ReportData, folder: Path) -> list[Path]:
    """Saves the figures of all sections as PNG and SVG; returns the files."""
    from pisr_plugin.report.plotting import save

    paths = []
    for section in data.sections.values():
        for name, figure in section.figures().items():
            for suffix in ('png', 'svg'):
                paths.append(folder / f'{name.replace("/", "_")}.{suffix}')
                save(figure, paths[-1])
    return paths
