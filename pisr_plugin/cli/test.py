"""Test the networks that a recipe trained, or a model by name, and bicubic interpolation beside them.

``pisr-test -opt pisr_rfdn_x4``
``pisr-test --model fsrcnn_x2 --sets Set5=datasets/Set5/HR``
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pisr_plugin.cli import common
from pisr_plugin.utils.errors import CheckpointError, OptionsError
from pisr_plugin.utils.files import name_as_folder

if TYPE_CHECKING:
    from pisr_plugin.config.stages import Stage


def main(argv: list[str] | None = None) -> int:
    """Command line of ``tools/test.py`` and ``pisr-test``."""
    parser = common.Parser(description='Test the trained stages of a recipe, or checkpoints given by name.')
    common.add_recipe_flags(parser, required=False)
    parser.add_argument(
        '--model',
        help='test this model, on --sets: a name that `pisr-list models` shows, a file of weights, a run folder',
    )
    parser.add_argument(
        '--weights', nargs='+', default=[], metavar='[NAME=]FILE', help='checkpoints to test in place of the stages'
    )
    parser.add_argument(
        '--sets',
        nargs='+',
        default=[],
        metavar='NAME=FOLDER',
        help="folders of HR images in place of the recipe's test sets; the protocol makes the LR images",
    )
    common.add_protocol_flag(parser)
    parser.add_argument('--bicubic', action='store_true', help='measure bicubic interpolation alone')
    parser.add_argument('--self_ensemble', action='store_true', help='average over the eight symmetries')
    parser.add_argument('--save_img', action='store_true', help='save the reconstructions as RGB images')
    parser.add_argument('--compile', action='store_true', help='use torch.compile: pays for large test sets')
    parser.add_argument('--tf32', action='store_true', help='let GPUs compute in TF32: faster, less exact than fp32')
    args = parser.parse_args(argv)
    return common.run(lambda: test(args))


def test(args: argparse.Namespace) -> int:
    """Tests the stages that the flags ask for, prints a table and returns the exit code."""
    from pisr_plugin.config.runtime import check_data
    from pisr_plugin.config.schema import check_options
    from pisr_plugin.config.stages import select, unroll
    from pisr_plugin.engine.stage_card import add_measured
    from pisr_plugin.engine.test import (
        bicubic,
        describe,
        evaluate,
        save_ground_truth,
        test_stage,
        weights_of,
    )
    from pisr_plugin.evaluation.protocol import protocol_of
    from pisr_plugin.evaluation.results import to_markdown, write_evaluation

    if args.model:
        stages = [_stage_of_model(args)]
    elif args.opt:
        stages = select(unroll(common.load_recipe(args)), args.stage)
        for stage in stages:
            check_options(stage.options, stage.option_path)
    else:
        raise OptionsError('nothing to test. Expected -opt RECIPE, or --model MODEL with --sets.')
    named = common.named_options(args)
    tests = [test_stage(stage, named, args.save_img) for stage in stages]
    if args.weights:
        tests = _named_checkpoints(tests, args.weights)
    present = tests[-1:] if args.bicubic else [stage for stage in tests if weights_of(stage).is_file()]
    if not present:
        missing = '\n'.join(f'  {weights_of(stage)}' for stage in tests)
        raise CheckpointError(
            f'nothing to test; none of these exists:\n{missing}\nTrain first, or name a file: --weights FILE'
        )
    if args.sets:
        for stage in present:
            stage.options['datasets'] = _sets(args.sets, next(iter(stage.options['datasets'].values())))
    else:
        check_data(present[0])

    folder = present[0].folder.parent
    protocol = protocol_of(present[0].options, args.protocol)
    runs: list[tuple[Stage, Path | None]] = [(bicubic(present[0]), None)]
    if not args.bicubic:
        runs += [(stage, weights_of(stage)) for stage in present]
    how = {'self_ensemble': args.self_ensemble, 'tf32': args.tf32}
    with common.results_folder(folder) as unfinished:
        rows = [
            evaluate(stage, weights, protocol, unfinished, save_img=args.save_img, compile=args.compile, **how)
            for stage, weights in runs
        ]
        evaluation = describe(present[0], stages[0].recipe, protocol, rows, **how)
        if args.save_img:
            evaluation.ground_truth = save_ground_truth(present[0].options, unfinished / 'pictures' / 'gt')
        write_evaluation(evaluation, unfinished)
    if not args.self_ensemble:  # a card has the figures of the network alone
        trained = {stage.checkpoint: stage for stage in stages}
        for (_, weights), row in zip(runs, rows):
            if weights in trained:
                add_measured(trained[weights], row, protocol.name)
    print(to_markdown(evaluation))
    print(f'Saved in {folder}')
    return 0


def _stage_of_model(args: argparse.Namespace) -> Stage:
    """Makes the stage that would have trained the model that ``--model`` names."""
    from pisr_plugin.config.stages import Stage

    given = {'-opt': args.opt, '--stage': args.stage, '--force_yml': args.force_yml, '--weights': args.weights}
    if any(given.values()):
        wrong = ', '.join(flag for flag, value in given.items() if value)
        raise OptionsError(f'--model: goes without a recipe (found {wrong}). Expected --sets, --protocol, ... alone.')
    if not args.sets:
        raise OptionsError(f'--model {args.model}: on which images? Expected --sets NAME=FOLDER.')
    common.import_plugins(args.plugin)
    card = common.find_card(args.model)
    shown = {'crop_border': card.scale, 'test_y_channel': True}
    options = {
        'name': card.name,
        'model_type': 'PISRModel',
        'num_gpu': 'auto',
        'scale': card.scale,
        'network_g': dict(card.network),
        'path': {'pretrain_network_g': str(card.weights), 'param_key_g': card.param_key},
        'datasets': {'test': {'color': card.color}},  # --sets replace it
        'val': {'metrics': {name: {'type': f'calculate_{name}', **shown} for name in ('psnr', 'ssim')}},
    }
    return Stage('', options, Path('experiments', card.name).absolute())


def _named_checkpoints(stages: list[Stage], entries: list[str]) -> list[Stage]:
    """Makes a test for each ``NAME=FILE``, of the last stage's network."""
    from pisr_plugin.config.stages import Stage

    tests: list[Stage] = []
    for entry in entries:
        name, equals, file = entry.partition('=')
        name, file = (name, file) if equals else (Path(entry).stem, entry)
        path = Path(file).expanduser().absolute()
        if not path.is_file():
            raise CheckpointError(f'--weights {entry}: {path} does not exist.')
        name_as_folder(name, f'--weights {entry}')
        if name in ('bicubic', *(stage.name for stage in tests)):
            raise OptionsError(f'--weights {entry}: another row has this name (found {name!r}). Expected NAME=FILE.')
        options = deepcopy(stages[-1].options)
        options['path'][f'pretrain_{stages[-1].network}'] = str(path)
        tests.append(Stage(name, options, stages[-1].folder.with_name(name)))
    return tests


def _sets(entries: list[str], like: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Makes the options of a test set for each ``NAME=FOLDER``, with the ``color`` of the one that it replaces."""
    color = {'color': like['color']} if 'color' in like else {}
    sets: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(entries):
        name, equals, folder = entry.partition('=')
        if not equals or not Path(folder).expanduser().is_dir():
            raise OptionsError(
                f'--sets {entry}: no folder of that name. Expected a name and a folder of HR images, such as '
                'Set5=datasets/Set5/HR.'
            )
        name_as_folder(name, f'--sets {entry}')
        if name in (other['name'] for other in sets.values()):
            raise OptionsError(f'--sets {entry}: another set has this name (found {name!r}). Expected one for each.')
        sets[f'test_{number}'] = {'name': name, 'type': 'PairedImageDataset', 'dataroot_gt': folder, **color}
    return sets
