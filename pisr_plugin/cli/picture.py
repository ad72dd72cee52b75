"""Draw a crop of a test image: bicubic, student, ground truth.

``pisr-picture -opt demo/pisr_fsrcnn_x2``
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pisr_plugin.cli import common
from pisr_plugin.utils.errors import CheckpointError, DataError, OptionsError, did_you_mean

if TYPE_CHECKING:
    from pisr_plugin.config.stages import Stage


def main(argv: list[str] | None = None) -> int:
    """Command line of ``tools/picture.py`` and ``pisr-picture``."""
    parser = common.recipe_parser('Draw bicubic, student and ground truth side by side.')
    parser.add_argument('--dataset', default='val', help='key of the test set in the recipe (default: val)')
    parser.add_argument('--image', help="the image's name (default: the set's first)")
    common.add_crop_flag(parser)
    common.add_protocol_flag(parser)
    parser.add_argument('-o', '--output', type=Path, help='PNG or SVG file (default: results/<recipe>/<image>.png)')
    args = parser.parse_args(argv)
    return common.run(lambda: picture(args))


def picture(args: argparse.Namespace) -> int:
    """Draws the picture that the flags ask for, with the values that ``pisr-test`` gives; returns the exit code."""
    import numpy as np

    from pisr_plugin.config.runtime import make_folder, runtime_options
    from pisr_plugin.engine.test import bicubic, build_descriptor, weights_of
    from pisr_plugin.evaluation.measure import measure_images
    from pisr_plugin.evaluation.protocol import as_rgb, protocol_of
    from pisr_plugin.evaluation.results import digits
    from pisr_plugin.evaluation.test_images import image_names
    from pisr_plugin.utils.devices import precision

    common.require('a picture', ['matplotlib'])
    from pisr_plugin.report.images import crop_of
    from pisr_plugin.report.plotting import save
    from pisr_plugin.report.sections.pictures import draw_crops

    stage = stage_to_draw(args)
    dataset = runtime_options(stage, stage.folder, is_train=False)['datasets'][args.dataset]
    names = image_names(dataset)
    if args.image is not None and args.image not in names:
        raise DataError(f'--image {args.image}: not in {dataset["name"]}. {did_you_mean(args.image, names)}')
    name, protocol = args.image or names[0], protocol_of(stage.options, args.protocol)
    metrics, scale = stage.options['val']['metrics'], dataset['scale']
    networks = {
        'bicubic': build_descriptor(bicubic(stage), None),
        stage.options['network_g']['type']: build_descriptor(stage, weights_of(stage)),
    }
    pictures, captions = {}, {}
    for title, network in networks.items():
        with precision(tf32=False):
            (one,) = measure_images(network, dataset, protocol, metrics, share=(names.index(name), len(names)))
        pictures[title] = one.picture(scale)
        values = ' / '.join(f'{value:.{digits(metric)}f}' for metric, value in one.values.items())
        captions[title] = f'{title}\n{values}'
    height, width = pictures['bicubic'].shape[:2]
    truth = np.ascontiguousarray(as_rgb(one.sample.gt)[:height, :width])
    before, after = pictures.values()
    crop = crop_of(args.crop and tuple(args.crop), before, after, truth, name)
    output = args.output or stage.folder.parent / f'{name}.png'
    make_folder(output.absolute().parent)
    title = f'{name}, x{scale}\n{" / ".join(metrics)}, protocol {protocol.name}'
    captions['ground truth'] = 'ground truth\n'
    save(draw_crops(truth, {**pictures, 'ground truth': truth}, crop, title, captions), output)
    print(f'Saved {output}')
    return 0


def stage_to_draw(args: argparse.Namespace) -> Stage:
    """Returns the stage that tests the student, once its test set and checkpoint are there.

    Raises:
        PISRError: something is missing.
    """
    from pisr_plugin.config.runtime import check_data
    from pisr_plugin.engine.test import test_stage, weights_of

    chosen = common.load_stage(args)
    stage = test_stage(chosen, common.named_options(args))
    if stage.network != 'network_g':
        raise OptionsError(f'--stage {chosen.name}: this stage trains no network_g; there is no student to draw.')
    if args.dataset not in stage.options['datasets']:
        raise OptionsError(
            f'--dataset {args.dataset}: unknown. {did_you_mean(args.dataset, stage.options["datasets"])}'
        )
    check_data(stage)
    weights = weights_of(stage)
    if not weights.is_file():
        raise CheckpointError(
            f'{weights} does not exist. Train first, or name a file: --force_yml path:pretrain_network_g=FILE'
        )
    return stage
