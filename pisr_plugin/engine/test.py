"""Test what a recipe has trained, beside bicubic interpolation.

``python tools/test.py -opt options/pisr_rfdn_x4.yml``
"""

from __future__ import annotations

import argparse
import json
import math
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model

from pisr_plugin import __version__
from pisr_plugin.engine import cli
from pisr_plugin.engine.runtime import check_data, make_folder, quiet, runtime_options, write_options
from pisr_plugin.engine.schema import check_options
from pisr_plugin.engine.stages import Stage, select, unroll
from pisr_plugin.errors import CheckpointError, OptionsError
from pisr_plugin.files import write_whole
from pisr_plugin.inference import optimized


@dataclass
class Row:
    """Figures of one network: ``{test set: {metric: value}}``."""

    name: str
    parameters: int
    results: dict[str, dict[str, float]]


def main(argv: list[str] | None = None) -> int:
    """Command line of ``tools/test.py`` and ``pisr-test``."""
    parser = cli.recipe_parser(
        'Test the trained stages of a recipe, or the file given as path:pretrain_network_g=FILE.'
    )
    parser.add_argument('--save_img', action='store_true', help='save the reconstructions')
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
    present = [stage for stage in tests if Path(stage.options['path'][f'pretrain_{stage.network}']).is_file()]
    if not present:
        missing = '\n'.join(f'  {stage.options["path"][f"pretrain_{stage.network}"]}' for stage in tests)
        raise CheckpointError(
            f'nothing to test; none of these exists:\n{missing}\nTrain first, or name a file: '
            '--force_yml path:pretrain_network_g=FILE'
        )
    check_data(present[0])

    folder = present[0].folder.parent
    make_folder(folder)
    rows = [evaluate(bicubic(present[0])), *(evaluate(stage, args.compile) for stage in present)]
    table = markdown(rows, present[0].options)
    print(table)
    write_whole(folder / 'table.md', table)
    write_whole(folder / 'metrics.json', json.dumps([vars(row) for row in rows], indent=1))
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
    options['val'] = {'metrics': val['metrics'], 'save_img': save_img, 'suffix': val.get('suffix')}
    options.pop('logger', None)
    return Stage(stage.name, options, Path.cwd() / 'results' / stage.recipe / (stage.name or 'test'))


def bicubic(stage: Stage) -> Stage:
    """The same test with bicubic interpolation in place of the network."""
    options = deepcopy(stage.options)
    channels = {1 if data.get('color') == 'y' else 3 for data in options['datasets'].values()}
    channel = channels.pop()
    options.pop('network_t', None)
    options.update(
        name=f'{stage.recipe}_bicubic',
        model_type='PISRModel',
        path={},
        network_g={'type': 'Bicubic', 'upscale': options['scale'], 'num_in_ch': channel, 'num_out_ch': channel},
    )
    return Stage('bicubic', options, stage.folder.with_name('bicubic'))


def evaluate(stage: Stage, compile: bool = False) -> Row:
    """Runs one test through BasicSR's own validation and saves its options in the stage's folder.

    Args:
        stage: From :func:`test_stage` or :func:`bicubic`.
        compile: Whether the network is compiled.
    """
    make_folder(stage.folder)
    write_options(stage.options, stage.folder / 'options.yml', f'pisr_plugin {__version__}, test options')
    opt = runtime_options(stage, stage.folder, is_train=False)
    results = {}
    with quiet():
        model = build_model(opt)
        model.net = optimized(model.net, compile=compile)
        for _, dataset_opt in sorted(opt['datasets'].items()):
            dataset = build_dataset(dataset_opt)
            loader = build_dataloader(dataset, dataset_opt, num_gpu=opt['num_gpu'], dist=False, seed=opt['manual_seed'])
            model.nondist_validation(loader, opt['name'], None, opt['val']['save_img'])
            results[dataset_opt['name']] = {key: float(value) for key, value in model.metric_results.items()}
    return Row(stage.name or opt['name'], sum(p.numel() for p in model.net.parameters()), results)


def markdown(rows: list[Row], options: dict) -> str:
    """A table of all rows, the protocol named above it."""
    sets = list(rows[0].results)
    metrics = options['val']['metrics']
    names = list(metrics)
    y = all(block.get('test_y_channel') for block in metrics.values()) or all(
        data.get('color') == 'y' for data in options['datasets'].values()
    )
    border = '/'.join(str(v) for v in sorted({block.get('crop_border', 0) for block in metrics.values()}))
    protocol = (
        f'{"/".join(names)} at x{options["scale"]} on {"Y of BT.601" if y else "RGB"}, images rounded to 8 bit, '
        f'{border} pixels cut from each border, mean over images; torch {torch.__version__}'
    )
    lines = [protocol, '', '| network | parameters | ' + ' | '.join(sets) + ' |', '|---|---|' + '---|' * len(sets)]
    for row in rows:
        cells = [' / '.join(_figure(row.results[name][metric]) for metric in names) for name in sets]
        lines.append(f'| {row.name} | {row.parameters:,} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def _figure(value: float) -> str:
    return f'{value:.4f}' if not math.isinf(value) and abs(value) < 2 else f'{value:.2f}'
