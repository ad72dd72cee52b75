"""Test the network that a stage trained, on all test sets of the stage."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pisr_plugin.archs.network_info import input_channels
from pisr_plugin.config.runtime import make_folder, runtime_options, write_options
from pisr_plugin.config.stages import Stage
from pisr_plugin.data.storage.image_files import write_png
from pisr_plugin.evaluation.complexity import count
from pisr_plugin.evaluation.measure import DatasetResult, borders, measure
from pisr_plugin.evaluation.protocol import Protocol, as_rgb
from pisr_plugin.evaluation.results import Evaluation, ProtocolRecord, Row, Run
from pisr_plugin.evaluation.test_images import read_images
from pisr_plugin.inference.descriptor import ModelDescriptor, load_model
from pisr_plugin.inference.predict import optimized
from pisr_plugin.utils.devices import device_name, precision
from pisr_plugin.utils.errors import OptionsError
from pisr_plugin.utils.files import name_as_folder
from pisr_plugin.utils.logging import quiet
from pisr_plugin.utils.resize import crop_to_multiple
from pisr_plugin.version import __version__


def test_stage(stage: Stage, named: Collection[str] = frozenset(), save_img: bool = False) -> Stage:
    """Makes plain BasicSR test options for the network that a stage trained.

    Args:
        stage: A stage as trained.
        named: Option paths that the command line sets. A checkpoint that it names is tested instead of the stage's own.
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
        trained and key not in named and f'{stage.option_path}.{key}' not in named
    ) or f'pretrain_{stage.network}' not in path:
        path = {f'pretrain_{stage.network}': str(stage.checkpoint)}
        if trained and trained.get('ema_decay'):
            path[f'param_key_{label}'] = 'params_ema'
    path[f'pretrain_{stage.network}'] = str(Path(path[f'pretrain_{stage.network}']).expanduser().absolute())
    options['path'] = path
    if stage.network == 'network_g':
        options.pop('network_t', None)  # a student is tested without its teacher
    options['datasets'] = {phase: data for phase, data in options['datasets'].items() if not phase.startswith('train')}
    if not options['datasets']:
        raise OptionsError(
            'datasets: no test set (found training sets only). Expected datasets.val or datasets.test_1.'
        )
    val = options.get('val') or {}
    if not val.get('metrics'):
        raise OptionsError('val.metrics: no metric (found an empty block). Expected one such as psnr.')
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
    folder: Path,
    *,
    save_img: bool = False,
    self_ensemble: bool = False,
    compile: bool = False,
    tf32: bool = False,
) -> Row:
    """Measures one network on all test sets of a stage.

    Args:
        stage: From :func:`test_stage`.
        weights: The stage's checkpoint; None: measure bicubic interpolation, whatever the network.
        protocol: Which values are compared.
        folder: Existing folder of results. The stage's test options go to ``<stage>/options.yml``.
        save_img: Whether reconstructions go to ``pictures/<row>/<test set>``.
        self_ensemble: Average the outputs for the eight symmetries.
        compile: Use torch.compile.
        tf32: Let GPUs compute convolutions and matrix products in TF32.
    """
    candidate = build_descriptor(stage, weights, compile)
    name_as_folder(candidate.name, 'name')
    if weights is not None:
        target = folder / (stage.name or 'test')
        make_folder(target)
        write_options(stage.options, target / 'options.yml', f'pisr_plugin {__version__}, test options')
    options, metrics = stage.options, stage.options['val']['metrics']
    results: dict[str, DatasetResult] = {}
    for _, dataset in sorted(runtime_options(stage, stage.folder, is_train=False)['datasets'].items()):
        pictures = folder / 'pictures' / candidate.name / dataset['name'] if save_img else None
        if pictures:
            make_folder(pictures)
        with precision(tf32):
            results[dataset['name']] = measure(
                candidate, dataset, protocol, metrics, self_ensemble=self_ensemble, pictures=pictures
            )
    seed = options.get('manual_seed', 0)
    if weights is None:
        return Row.of(candidate.name, {seed: results}, role='bicubic', network='bicubic')
    return Row.of(
        candidate.name,
        {seed: results},
        role='teacher' if candidate.sees_gt else 'student',
        network=options[stage.network]['type'],
        parameters=candidate.parameters,
        multi_adds=None if candidate.sees_gt else multi_adds_of(options[stage.network], options['scale']),
        runs=[Run(weights.parents[1], stage.name, seed, weights)],
    )


def build_descriptor(stage: Stage, weights: Path | None, compile: bool = False) -> ModelDescriptor:
    """Builds the network that a stage tests and loads its weights.

    Args:
        stage: From :func:`test_stage`.
        weights: The stage's checkpoint; None: bicubic interpolation.
        compile: Use torch.compile.

    Raises:
        OptionsError: the network cannot be built.
        CheckpointError: the checkpoint is missing, damaged or another network's.
    """
    opt = runtime_options(stage, stage.folder, is_train=False)
    channels = _channels(opt)
    if weights is None:
        return ModelDescriptor('bicubic', None, channels, opt['scale'])
    with quiet():
        model = load_model(
            opt[stage.network],
            weights,
            opt['path'].get(f'param_key_{stage.network[-1]}', 'params'),
            name=stage.name or opt['name'],
            scale=opt['scale'],
            channels=channels,
            device='cuda' if opt['num_gpu'] else 'cpu',
            allow_gt=True,
        )
    assert model.net is not None  # bicubic interpolation alone has none
    model.net = optimized(model.net, compile=compile)
    return model


def _channels(options: Mapping[str, Any]) -> int:
    """Returns the channels of what the test sets give: 1 where one of them gives luminance."""
    return 1 if any(data.get('color') == 'y' for data in options['datasets'].values()) else 3


def multi_adds_of(network: dict, scale: int) -> int | None:
    """Multi-Adds of a network for an output of 1280x720, convention A; None: they cannot be counted."""
    try:
        return count(network, scale).macs['A']
    except (OptionsError, RuntimeError):
        return None


def describe(
    stage: Stage,
    title: str,
    protocol: Protocol,
    rows: list[Row],
    *,
    self_ensemble: bool = False,
    tf32: bool = False,
    against: str | None = None,
) -> Evaluation:
    """Makes the record of an evaluation, without saved ground truth.

    Args:
        stage: One of the stages that were measured.
        title: Heading.
        protocol: Which values were compared.
        rows: From :func:`evaluate`.
        self_ensemble: Whether outputs were averaged over the eight symmetries.
        tf32: Whether TF32 was allowed.
        against: Name of the row that differences refer to.
    """
    options, metrics = stage.options, stage.options['val']['metrics']
    gpu = runtime_options(stage, stage.folder, is_train=False)['num_gpu']
    channels = input_channels(options[stage.network], _channels(options))
    return Evaluation(
        options['scale'],
        {name: block.get('better', 'higher') for name, block in metrics.items()},
        rows,
        title,
        ProtocolRecord(protocol.name, protocol.text(channels), borders(metrics, options['scale'])),
        self_ensemble,
        {
            'pisr_plugin': __version__,
            'torch': torch.__version__,
            'device': device_name(bool(gpu)),
            'precision': 'TF32' if gpu and tf32 else 'fp32',
            'threads': torch.get_num_threads(),
        },
        against,
    )


def save_ground_truth(options: Mapping[str, Any], folder: Path) -> dict[str, dict[str, Path]]:
    """Saves the HR images of all test sets as PNG, cut to a multiple of the scale.

    Args:
        options: Test options.
        folder: Where a folder for each test set is created.

    Returns:
        The files by test set and image.
    """
    saved: dict[str, dict[str, Path]] = {}
    for dataset in options['datasets'].values():
        target = folder / dataset['name']
        make_folder(target)
        saved[dataset['name']] = {}
        for sample in read_images({**dataset, 'scale': options['scale'], 'phase': 'val'}):
            gt = crop_to_multiple(sample.gt, options['scale'])
            saved[dataset['name']][sample.name] = path = target / f'{sample.name}.png'
            write_png(path, np.ascontiguousarray(as_rgb(gt)))
    return saved


def bicubic(stage: Stage) -> Stage:
    """Returns the stage that measures bicubic interpolation on the test sets of another."""
    return Stage('bicubic', stage.options, stage.folder.with_name('bicubic'))
