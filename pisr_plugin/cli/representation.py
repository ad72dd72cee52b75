"""Show which degradations a network's representation tells apart, and its distance to the teacher's.

``pisr-representation experiments/kdsr_m_x4/teacher experiments/kdsr_m_x4/student -o representation.png``
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pisr_plugin.cli import common
from pisr_plugin.utils.errors import DataError, OptionsError
from pisr_plugin.utils.logging import quiet

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from pisr_plugin.data.datasets.blurred_image_dataset import BlurredImageDataset


def main(argv: list[str] | None = None) -> int:
    """Command line of ``tools/representation.py`` and ``pisr-representation``."""
    parser = common.Parser(description='Show which degradations networks tell apart.')
    parser.add_argument(
        'runs', nargs='+', metavar='[NAME=]RUN', help='folders of trained stages; the teacher, if any, first'
    )
    parser.add_argument('--hr', metavar='DIR', help="folder of HR images (default: the first run's test set)")
    parser.add_argument('--tap', help='the tap to read (default: the one that the network declares)')
    parser.add_argument(
        '--temperature', type=float, default=0.15, help='temperature of the KL divergence to the first run'
    )
    parser.add_argument('-o', '--output', type=Path, required=True, metavar='FILE', help='picture, PNG or SVG')
    common.add_plugin_flag(parser)
    args = parser.parse_args(argv)
    return common.run(lambda: compare(args))


def compare(args: argparse.Namespace) -> int:
    """Reads the representations of all runs, prints a table, draws them and returns the exit code."""
    from pisr_plugin.config.runtime import make_folder
    from pisr_plugin.diagnostics.representation import nearest_centroid_accuracy, principal, representations
    from pisr_plugin.losses.representation_loss import RepresentationKLLoss
    from pisr_plugin.report.runs import load_network

    common.require('the picture', ['matplotlib'])
    from pisr_plugin.report.plotting import save

    common.import_plugins(args.plugin)
    runs = {name: _options(folder) for name, folder in map(_named, args.runs)}
    dataset = _test_set(next(iter(runs.values()))[1], args.hr)
    degradations = _degradations(dataset)
    found = {}
    for name, (folder, options) in runs.items():
        label = 'g' if options.get('network_g') else 't'
        net = load_network(options[f'network_{label}'], folder / f'models/net_{label}_latest.pth', options)
        tap = args.tap or getattr(net, 'default_tap', None)
        if tap is None:
            raise OptionsError(f'--tap: missing, and {type(net).__name__} of {folder} declares none. Expected a tap.')
        found[name] = representations(net, tap, dataset, len(degradations))

    first, teacher = next(iter(found.items()))
    loss = RepresentationKLLoss(temperature=args.temperature)
    print(f'{len(teacher)} images, {len(degradations)} degradations; chance tells {1 / len(degradations):.2f} apart')
    print(f'| network | told apart | KL from {first} |\n|---|---|---|')
    for name, vectors in found.items():
        same = vectors.shape == teacher.shape
        distance = f'{loss(vectors.flatten(0, 1), teacher.flatten(0, 1)).item():.4f}' if same else '-'
        print(f'| {name} | {nearest_centroid_accuracy(vectors):.2f} | {distance} |')
    make_folder(args.output.absolute().parent)
    points = {name: principal(vectors).numpy() for name, vectors in found.items()}
    save(draw_clusters(points, degradations), args.output)
    print(f'Saved {args.output}')
    return 0


def draw_clusters(points: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    """Draws the representations of each network as points whose colour is the degradation.

    Args:
        points: By network the principal components, (images, degradations, 2).
        names: Names of the degradations, from weak to strong.
    """
    import matplotlib
    import numpy as np

    from pisr_plugin.report.palette import PAPER
    from pisr_plugin.report.plotting import figure_with_axes

    figure, axes = figure_with_axes(PAPER, (3.1 * len(points) + 0.9, 3.1), len(points))
    colors = matplotlib.colormaps['viridis'](np.linspace(0, 0.95, len(names)))
    for axis, (title, where) in zip(axes, points.items()):
        for index, (name, color) in enumerate(zip(names, colors)):
            x, y = where[:, index].T
            axis.scatter(x, y, s=11, color=color, label=name, linewidths=0)
        axis.set_title(title)
        axis.set(xticks=[], yticks=[])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside right center', frameon=False, fontsize=8, markerscale=1.6)
    return figure


def _named(entry: str) -> tuple[str, Path]:
    name, equals, folder = entry.partition('=')
    return (name, Path(folder)) if equals else (Path(entry).name, Path(entry))


def _options(folder: Path) -> tuple[Path, dict]:
    from pisr_plugin.config.parse import read_yaml

    path = folder / 'options.yml'
    try:
        options = read_yaml(path)
    except OptionsError as error:
        raise DataError(
            f'{error} A run is a folder that training has made, such as experiments/kdsr_m_x4/student.'
        ) from None
    if not isinstance(options, Mapping) or not (options.get('network_g') or options.get('network_t')):
        raise DataError(f'{path}: names no network.')
    return folder, dict(options)


def _test_set(options: dict, hr: str | None) -> BlurredImageDataset:
    """Builds a run's test set with known degradations, of its own images or of those in the folder ``hr``."""
    from basicsr.data import build_dataset

    from pisr_plugin.data.datasets.blurred_image_dataset import BlurredImageDataset

    for entry in (options.get('datasets') or {}).values():
        if entry.get('type') == BlurredImageDataset.__name__:
            changes = {'dataroot_gt': hr, 'io_backend': {'type': 'disk'}} if hr else {}
            with quiet():
                return build_dataset({**entry, **changes, 'scale': options['scale'], 'phase': 'val'})
    raise OptionsError(
        f'datasets: no test set with known degradations. Expected one of type {BlurredImageDataset.__name__}.'
    )


def _degradations(dataset: BlurredImageDataset) -> list[str]:
    """Names of the degradations, in the order in which each image has them."""
    count = len(dataset.kernels) * len(dataset.noise)
    if len(dataset) < 2 * count:
        raise DataError(f'{dataset.opt["name"]}: too few images (found one). Expected at least two to compare.')
    names = []
    for index in range(count):
        sample = dataset[index]
        names.append(Path(str(sample['lq_path'])).stem.removeprefix(f'{Path(str(sample["gt_path"])).stem}_'))
    return names
