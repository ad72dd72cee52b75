"""Test what a recipe has trained, beside bicubic interpolation.

``python tools/test.py -opt options/pisr_rfdn_x4.yml``
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pisr_plugin import __version__
from pisr_plugin.analysis.complexity import count
from pisr_plugin.data.images import write_png
from pisr_plugin.engine import cli
from pisr_plugin.engine.runtime import check_data, make_folder, quiet, runtime_options, write_options
from pisr_plugin.engine.schema import check_options
from pisr_plugin.engine.stages import Stage, select, unroll
from pisr_plugin.errors import CheckpointError, OptionsError
from pisr_plugin.evaluation.images import read_images
from pisr_plugin.evaluation.measure import Candidate, Result, borders, measure
from pisr_plugin.evaluation.protocol import PROTOCOLS, Protocol, as_rgb, protocol_of
from pisr_plugin.evaluation.record import Entry, Evaluation, save, to_markdown
from pisr_plugin.inference import load, optimized


def main(argv: list[str] | None = None) -> int:
    """Command line of ``tools/test.py`` and ``pisr-test``."""
    parser = cli.recipe_parser('Test the trained stages of a recipe, or checkpoints given by name.')
    parser.add_argument(
        '--weights', nargs='+', default=[], metavar='[NAME=]FILE', help='checkpoints to test in place of the stages'
    )
    parser.add_argument(
        '--sets',
        nargs='+',
        default=[],
        metavar='NAME=FOLDER',
        help="folders of HR images in place of the recipe's test sets; LR is made by the protocol",
    )
    parser.add_argument(
        '--protocol', help=f"how to measure: {', '.join(PROTOCOLS)} (default: the recipe's val.protocol, else basicsr)"
    )
    parser.add_argument('--bicubic', action='store_true', help='measure bicubic interpolation alone')
    parser.add_argument('--self_ensemble', action='store_true', help='average over the eight symmetries')
    parser.add_argument('--save_img', action='store_true', help='save the reconstructions, in colour')
    parser.add_argument('--compile', action='store_true', help='use torch.compile: pays for large test sets')
    args = parser.parse_args(argv)
    return cli.run(lambda: test(args))


def test(args: argparse.Namespace) -> int:
    """Tests the stages that the flags ask for, prints a table and returns the exit code."""
    stages = select(unroll(cli.load_recipe(args)), args.stage)
    named = cli.named_options(args)
    tests = []
    for stage in stages:
        check_options(stage.options, stage.place)
        tests.append(test_stage(stage, named, args.save_img))
    if args.weights:
        tests = _named_checkpoints(tests, args.weights)
    present = tests[-1:] if args.bicubic else [stage for stage in tests if weights_of(stage).is_file()]
    if not present:
        missing = '\n'.join(f'  {weights_of(stage)}' for stage in tests)
        raise CheckpointError(
            f'nothing to test; none of these exists:\n{missing}\nTrain first, or name a file: --weights FILE'
        )
    for stage in present:
        if args.sets:
            stage.options['datasets'] = _sets(args.sets, next(iter(stage.options['datasets'].values())))
    if not args.sets:
        check_data(present[0])

    folder = present[0].folder.parent
    make_folder(folder)
    pictures = folder / 'pictures' if args.save_img else None
    protocol = protocol_of(present[0].options, args.protocol)
    runs: list[tuple[Stage, Path | None]] = [(bicubic(present[0]), None)]
    if not args.bicubic:
        runs += [(stage, weights_of(stage)) for stage in present]
    entries = [
        evaluate(stage, weights, protocol, args.self_ensemble, pictures, args.compile) for stage, weights in runs
    ]
    evaluation = describe(present[0], stages[0].recipe, protocol, entries, args.self_ensemble)
    if pictures:
        evaluation.ground_truth = save_ground_truth(present[0].options, pictures / 'gt')
    print(to_markdown(evaluation))
    save(evaluation, folder)
    print(f'Saved in {folder}')
    return 0


def test_stage(stage: Stage, named: set[str] = frozenset(), save_img: bool = False) -> Stage:
    """The options that test a stage's product: plain BasicSR test options.

    Args:
        stage: A stage as trained.
        named: Option paths given on the command line; a checkpoint named there is tested instead of the product.
        save_img: Whether reconstructions are saved.

    Raises:
        OptionsError: the recipe names no test sets or metrics.
    """
    options = deepcopy(stage.options)
    label = stage.network[-1]
    trained = options.pop('train', None)
    key = f'path.pretrain_{stage.network}'
    path = {name: value for name, value in options['path'].items() if name.endswith(f'_{label}')}
    if (
        trained and key not in named and f'{stage.place}.{key}' not in named
    ) or f'pretrain_{stage.network}' not in path:
        path = {f'pretrain_{stage.network}': str(stage.checkpoint)}
        if trained and trained.get('ema_decay'):
            path[f'param_key_{label}'] = 'params_ema'
    path[f'pretrain_{stage.network}'] = str(Path(path[f'pretrain_{stage.network}']).expanduser().absolute())
    options['path'] = path
    if stage.network == 'network_g':
        options.pop('network_t', None)  # the teacher has done its work
    options['datasets'] = {phase: data for phase, data in options['datasets'].items() if not phase.startswith('train')}
    if not options['datasets']:
        raise OptionsError('datasets: the recipe names no val or test set.')
    val = options.get('val') or {}
    if not val.get('metrics'):
        raise OptionsError('val.metrics: the recipe names no metric.')
    options['val'] = {
        **{key: val[key] for key in ('metrics', 'protocol', 'suffix') if key in val},
        'save_img': save_img,
    }
    options.pop('logger', None)
    return Stage(stage.name, options, Path.cwd() / 'results' / stage.recipe / (stage.name or 'test'))


def weights_of(stage: Stage) -> Path:
    """The checkpoint that a stage of :func:`test_stage` tests."""
    return Path(stage.options['path'][f'pretrain_{stage.network}'])


def evaluate(
    stage: Stage,
    weights: Path | None,
    protocol: Protocol,
    self_ensemble: bool = False,
    pictures: Path | None = None,
    compile: bool = False,
) -> Entry:
    """Measures one network on all test sets of a stage and saves its options in the stage's folder.

    Args:
        stage: From :func:`test_stage`.
        weights: Its checkpoint; None: bicubic interpolation, whatever the network.
        protocol: How to measure.
        self_ensemble: Average over the eight symmetries.
        pictures: Folder for reconstructions, by row and test set.
        compile: Use torch.compile.
    """
    make_folder(stage.folder)
    if weights is not None:
        write_options(stage.options, stage.folder / 'options.yml', f'pisr_plugin {__version__}, test options')
    candidate = build_candidate(stage, weights, compile)
    options, metrics = stage.options, stage.options['val']['metrics']
    results: dict[str, Result] = {}
    for _, dataset in sorted(runtime_options(stage, stage.folder, is_train=False)['datasets'].items()):
        target = pictures / candidate.name / dataset['name'] if pictures else None
        if target:
            make_folder(target)
        results[dataset['name']] = measure(
            candidate,
            dataset,
            protocol,
            metrics,
            self_ensemble=self_ensemble,
            pictures=target,
        )
    network = 'bicubic' if weights is None else options[stage.network]['type']
    role = 'bicubic' if weights is None else 'teacher' if candidate.sees_gt else 'student'
    multi_adds = (
        None if weights is None or candidate.sees_gt else multi_adds_of(options[stage.network], options['scale'])
    )
    run = {'seed': options.get('manual_seed', 0), 'stage': stage.name, 'checkpoint': str(weights)}
    runs = [] if weights is None else [{**run, 'folder': str(weights.parents[1])}]
    return Entry(
        candidate.name, candidate.name, role, network, candidate.parameters, multi_adds, {run['seed']: results}, runs
    )


def build_candidate(stage: Stage, weights: Path | None, compile: bool = False) -> Candidate:
    """The network that a stage tests, with its weights.

    Raises:
        OptionsError: the network cannot be built.
        CheckpointError: the checkpoint is missing, damaged or another network's.
    """
    opt = runtime_options(stage, stage.folder, is_train=False)
    on_y = any(data.get('color') == 'y' for data in opt['datasets'].values())
    channels = 1 if on_y else 3
    if weights is None:
        return Candidate('bicubic', None, channels, opt['scale'])
    options = opt[stage.network]
    with quiet():
        net = load(options, weights, opt['path'].get(f'param_key_{stage.network[-1]}', 'params'), sees_gt=True)
    device = torch.device('cuda' if opt['num_gpu'] else 'cpu')
    net = optimized(net.to(device), compile=compile)
    return Candidate.of(stage.name or opt['name'], net, options, opt['scale'], device, channels)


def multi_adds_of(network: dict, scale: int) -> int | None:
    """Multi-Adds of a network for an output of 1280x720, convention A; None where they cannot be counted."""
    try:
        return count(network, scale).macs['A']
    except (OptionsError, RuntimeError):
        return None


def describe(stage: Stage, title: str, protocol: Protocol, entries: list[Entry], self_ensemble: bool) -> Evaluation:
    """The evaluation of a stage's recipe, without its pictures."""
    metrics = stage.options['val']['metrics']
    gpu = runtime_options(stage, stage.folder, is_train=False)['num_gpu']
    return Evaluation(
        title,
        stage.options['scale'],
        protocol,
        {name: block.get('better', 'higher') for name, block in metrics.items()},
        borders(metrics, stage.options['scale']),
        entries,
        device=torch.cuda.get_device_name() if gpu else f'CPU, {torch.get_num_threads()} threads',
        self_ensemble=self_ensemble,
    )


def save_ground_truth(options: Mapping[str, Any], folder: Path) -> dict[str, dict[str, str]]:
    """Saves the HR images of all test sets as PNG; returns their paths by set and image."""
    saved: dict[str, dict[str, str]] = {}
    for dataset in options['datasets'].values():
        target = folder / dataset['name']
        make_folder(target)
        saved[dataset['name']] = {}
        for sample in read_images({**dataset, 'scale': options['scale'], 'phase': 'val'}):
            gt = PROTOCOLS['basicsr'].ground_truth(sample.gt, options['scale'])
            write_png(target / f'{sample.name}.png', np.ascontiguousarray(as_rgb(gt)))
            saved[dataset['name']][sample.name] = str(target / f'{sample.name}.png')
    return saved


def bicubic(stage: Stage) -> Stage:
    """The stage that measures bicubic interpolation on the test sets of another."""
    return Stage('bicubic', stage.options, stage.folder.with_name('bicubic'))


def _named_checkpoints(stages: list[Stage], entries: list[str]) -> list[Stage]:
    """A test for each ``NAME=FILE``, of the last stage's network."""
    tests = []
    for entry in entries:
        name, equals, file = entry.partition('=')
        name, file = (name, file) if equals else (Path(entry).stem, entry)
        path = Path(file).expanduser().absolute()
        if not path.is_file():
            raise CheckpointError(f'--weights {entry}: {path} does not exist.')
        options = deepcopy(stages[-1].options)
        options['path'][f'pretrain_{stages[-1].network}'] = str(path)
        tests.append(Stage(name, options, stages[-1].folder.with_name(name)))
    return tests


def _sets(entries: list[str], like: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A test set for each ``NAME=FOLDER``, in the colours of the one it stands for."""
    colour = {'color': like['color']} if 'color' in like else {}
    sets = {}
    for number, entry in enumerate(entries):
        name, equals, folder = entry.partition('=')
        if not equals or not Path(folder).expanduser().is_dir():
            raise OptionsError(f'--sets {entry}: write a name and a folder of HR images, e.g. Set5=datasets/Set5/HR')
        sets[f'test_{number}'] = {'name': name, 'type': 'PairedImageDataset', 'dataroot_gt': folder, **colour}
    return sets
