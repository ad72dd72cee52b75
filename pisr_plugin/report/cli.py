"""Make a report of an evaluation or ablation: one HTML page that opens from disk.

``python tools/report.py results/NAME``
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pisr_plugin.engine import cli
from pisr_plugin.engine.runtime import make_folder
from pisr_plugin.files import write_whole
from pisr_plugin.report.evaluation import FILE, read_evaluation

if TYPE_CHECKING:
    from pisr_plugin.report.content import Content

NEEDED = ('bokeh', 'jinja2', 'matplotlib')  # the extra `report` of setup.py


def main(argv: list[str] | None = None) -> int:
    """Command line of ``tools/report.py`` and ``pisr-report``."""
    parser = argparse.ArgumentParser(description='Make one self-contained HTML page of an evaluation or ablation.')
    parser.add_argument('results', type=Path, help=f'folder of results that has an {FILE}, or the file')
    parser.add_argument('-o', '--output', type=Path, help='the page (default: report.html beside the file)')
    parser.add_argument(
        '--figures', type=Path, metavar='DIR', help='save the figures there too, as PNG and SVG for papers'
    )
    parser.add_argument(
        '--count', type=int, default=4, metavar='N', help='how many images to show (default: %(default)s)'
    )
    parser.add_argument(
        '--images', nargs='+', default=[], metavar='NAME', help='which images (default: where the method gains most)'
    )
    parser.add_argument(
        '--crop',
        type=int,
        nargs=3,
        metavar=('X', 'Y', 'SIZE'),
        help='where to look, in HR pixels (default: 96 pixels where the method gains most)',
    )
    cli.add_plugin_flag(parser)
    args = parser.parse_args(argv)
    return cli.run(lambda: report(args))


def report(args: argparse.Namespace) -> int:
    """Writes the page and figures that the flags ask for; returns the exit code."""
    cli.require('the report', NEEDED)
    from pisr_plugin.report.content import gather  # these import them
    from pisr_plugin.report.page import render

    cli.import_plugins(args.plugin)
    evaluation = read_evaluation(args.results)
    content = gather(evaluation, max(args.count, 0), args.images, args.crop and tuple(args.crop))
    page = render(content).encode()
    output = args.output or evaluation.path.with_name('report.html')
    make_folder(output.absolute().parent)
    write_whole(output, page)
    print(f'Saved {output} ({len(page) / 1e6:.1f} MB)')
    if args.figures:
        make_folder(args.figures)
        for path in save_figures(content, args.figures):
            print(f'Saved {path}')
    for note in dict.fromkeys(content.notes.values()):
        print(f'Left out: {note}')
    return 0


def save_figures(content: Content, folder: Path) -> list[Path]:
    """Saves what can be drawn of Figures 3 to 5 and the scale maps as PNG and SVG; returns the files."""
    from pisr_plugin.report import figures
    from pisr_plugin.report.page import caption

    drawn = {}
    if content.views:
        drawn['fig3_compact'] = figures.compact(content.views)
    if content.trade_off:
        test_set, own, published = content.trade_off
        drawn['fig4_trade_off'] = figures.tradeoff(own, published, test_set, figures.PAPER)
    for shown in content.shown:
        captions = {row: caption(content.evaluation, shown, row) for row in shown.pictures}
        drawn[f'fig5_{shown.set}_{shown.name}'] = figures.crops(shown, captions)
    if content.maps:
        drawn['scale_map'] = figures.scale_map(content.truth, content.maps)
    paths = []
    for name, figure in drawn.items():
        for suffix in ('png', 'svg'):
            paths.append(folder / f'{name.replace("/", "_")}.{suffix}')
            figures.save(figure, paths[-1])
    return paths
