"""Draw a crop of a test image: bicubic, student, ground truth.

``python tools/picture.py -opt options/demo/pisr_fsrcnn_x2.yml``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from basicsr.data import build_dataset
from basicsr.metrics import calculate_metric
from torch import Tensor
from torch.nn import functional as F

from pisr_plugin.archs.traits import window_size
from pisr_plugin.engine import cli
from pisr_plugin.engine.runtime import check_data, make_folder, quiet, runtime_options
from pisr_plugin.errors import CheckpointError, DataError, OptionsError, choice
from pisr_plugin.evaluation.test import test_stage
from pisr_plugin.inference import load, optimized, upscale_rgb
from pisr_plugin.resize import imresize


def main(argv: list[str] | None = None) -> int:
    """Command line of ``tools/picture.py`` and ``pisr-picture``."""
    parser = cli.recipe_parser('Draw bicubic, student and ground truth side by side.')
    parser.add_argument('--dataset', default='val', help='key of the test set in the recipe (default: val)')
    parser.add_argument('--image', help="the image's name (default: the set's first)")
    parser.add_argument(
        '--crop',
        type=int,
        nargs=3,
        metavar=('X', 'Y', 'SIZE'),
        help='where to look, in HR pixels (default: 96 pixels where the student gains most)',
    )
    parser.add_argument('-o', '--output', type=Path, help='PNG or SVG file (default: results/<recipe>/<image>.png)')
    args = parser.parse_args(argv)
    return cli.run(lambda: picture(args))


def picture(args: argparse.Namespace) -> int:
    """Draws the picture that the flags ask for; returns the exit code."""
    cli.require('a picture', ['matplotlib'])
    chosen = cli.load_stage(args)
    stage = test_stage(chosen, cli.named_options(args))
    if stage.network != 'network_g':
        raise OptionsError(f'--stage {chosen.name}: this stage trains no network_g; there is no student to draw.')
    if args.dataset not in stage.options['datasets']:
        raise OptionsError(f'--dataset {args.dataset}: {choice(args.dataset, stage.options["datasets"])}')
    check_data(stage)

    opt = runtime_options(stage, stage.folder, is_train=False)
    name, sample = _sample(opt['datasets'][args.dataset], args.image)
    on_y = opt['datasets'][args.dataset].get('color') == 'y'
    weights = opt['path']['pretrain_network_g']
    if not Path(weights).is_file():
        raise CheckpointError(
            f'{weights} does not exist. Train first, or name a file: --force_yml path:pretrain_network_g=FILE'
        )
    with quiet():
        net = optimized(load(opt['network_g'], weights, opt['path'].get('param_key_g', 'params')))

    scale, lq, gt = opt['scale'], sample['lq'], sample['gt']
    images = {
        'bicubic': imresize(lq, scale).clamp(0, 1),
        type(net).__name__: upscale_rgb(net, lq, on_y, window=window_size(opt['network_g'])),
        'ground truth': gt,
    }
    output = args.output or stage.folder.parent / f'{name}.png'
    make_folder(output.absolute().parent)
    draw(images, args.crop or largest_gain(*images.values()), scale, f'{name}, x{scale}', output)
    print(f'Saved {output}')
    return 0


def _sample(dataset_opt: dict, wanted: str | None) -> tuple[str, dict]:
    with quiet():
        dataset = build_dataset({**dataset_opt, 'color': 'rgb'})
    names = [Path(paths['gt_path']).stem for paths in dataset.paths]
    if wanted is not None and wanted not in names:
        raise DataError(f'--image {wanted}: not in {dataset_opt["name"]}. {choice(wanted, names)}')
    index = names.index(wanted) if wanted else 0
    return names[index], dataset[index]


def largest_gain(before: Tensor, after: Tensor, truth: Tensor, size: int = 96) -> tuple[int, int, int]:
    """The square in which ``after`` is closer to ``truth`` than ``before`` by most.

    Args:
        before: (3, H, W) in [0, 1], as the two others.
        after: What should be better.
        truth: What both should be.
        size: Side of the square in pixels.

    Returns:
        ``(x, y, size)`` of the square.
    """
    size = min(size, *truth.shape[-2:])
    gain = ((before - truth) ** 2 - (after - truth) ** 2).mean(0)[None, None]
    windows = F.avg_pool2d(gain, size, stride=max(size // 8, 1))[0, 0]
    row, column = divmod(int(windows.argmax()), windows.shape[1])
    step = max(size // 8, 1)
    return column * step, row * step, size


def draw(images: dict[str, Tensor], crop: tuple[int, int, int], scale: int, title: str, path: Path) -> None:
    """Draws the ground truth with the crop marked, then the crop of every image with its PSNR on Y.

    Args:
        images: (3, H, W) in [0, 1] by caption, the ground truth last.
        crop: ``(x, y, size)`` in pixels.
        scale: Pixels left out at each border when measuring.
        title: Caption of the whole image.
        path: Where to save, format by suffix.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    x, y, size = crop
    arrays = {name: (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8) for name, image in images.items()}
    truth = list(arrays.values())[-1]
    height, width = truth.shape[:2]
    if not (0 <= x <= width - size and 0 <= y <= height - size and size > 0):
        raise OptionsError(f'--crop {x} {y} {size}: outside the image of {width}x{height} pixels.')
    ratios = [width / height, *[1] * len(arrays)]
    figure, axes = plt.subplots(
        1, len(ratios), figsize=(2.6 * sum(ratios), 2.9), width_ratios=ratios, layout='constrained'
    )
    axes[0].imshow(truth)
    axes[0].add_patch(Rectangle((x, y), size, size, fill=False, edgecolor='red', linewidth=2))
    axes[0].set_title(title, fontsize=10)
    for axis, (name, image) in zip(axes[1:], arrays.items()):
        axis.imshow(image[y : y + size, x : x + size], interpolation='nearest')
        if image is not truth:
            # BasicSR's metrics take BGR.
            psnr = calculate_metric(
                {'img': image[..., ::-1], 'img2': truth[..., ::-1]},
                {'type': 'calculate_psnr', 'crop_border': scale, 'test_y_channel': True},
            )
            name = f'{name}\n{psnr:.2f} dB'
        axis.set_title(name, fontsize=10)
    for axis in axes:
        axis.axis('off')
    figure.savefig(path, dpi=150, bbox_inches='tight')  # two-line captions reach over the edge
    plt.close(figure)
