"""Unroll a recipe into stages, each described by plain BasicSR options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pisr_plugin.config.compose import below, merge, option_at, resolve
from pisr_plugin.utils.errors import OptionsError, did_you_mean, shown
from pisr_plugin.utils.files import name_as_folder

HAND_OFF = 'stage:'

# The one table of what does not decide a stage's weights; everything else does. A finished stage stays finished when
# one of these changes. Bit-exact results are promised on one device with the same options.
# What is watched, and where a stage runs:
WATCHED = ('logger', 'val', 'num_gpu', 'dist_params', 'keep_memory')
# How a step is computed; the last three change nothing but the rounding of sums:
COMPUTED = (
    'plugins',
    'find_unused_parameters',
    'datasets.train.name',
    'datasets.train.num_worker_per_gpu',  # samples depend on seed and iteration alone
    'datasets.train.pin_memory',
    'datasets.train.persistent_workers',
    'datasets.train.prefetch_mode',
    'datasets.train.num_prefetch_queue',
    'datasets.train.store',
    'path.ignore_resume_networks',
    'train.channels_last',
    'train.compile',
    'train.cuda_graph',
)
# Decide the weights: amp and amp_teacher (lower precision), accumulate (batch statistics), on_nan (skipped steps),
# batch_size_per_gpu, dataset_enlarge_ratio, every path of data.


@dataclass
class Stage:
    """One training run of a recipe.

    Attributes:
        name: Name within the recipe; empty for a recipe that is a single run.
        options: Plain BasicSR options, without anything that depends on the machine or the moment.
        folder: Its run folder, ``experiments/<recipe>/<stage>``.
        needs: Checkpoints of earlier stages that it starts from, by option path.
    """

    name: str
    options: dict
    folder: Path
    needs: dict[str, Path] = field(default_factory=dict)

    @property
    def network(self) -> str:
        """Key of the network that is trained: ``network_g``, or ``network_t`` where there is no other."""
        return 'network_g' if self.options.get('network_g') else 'network_t'

    @property
    def recipe(self) -> str:
        """Name of the recipe that the stage is of."""
        return (self.folder.parent if self.name else self.folder).name

    @property
    def option_path(self) -> str:
        """Where a message finds the stage's options in the recipe."""
        return f'stages.{self.name}' if self.name else ''

    @property
    def checkpoint(self) -> Path:
        """The stage's product."""
        return self._latest(self.network)

    @property
    def products(self) -> dict[str, Path]:
        """What a stage may leave to later ones, by the network's key: its product, and its discriminator."""
        kept = [self.network, *(['network_d'] if self.options.get('network_d') else [])]
        return {key: self._latest(key) for key in kept}

    def _latest(self, network: str) -> Path:
        return self.folder / 'models' / f'net_{network[-1]}_latest.pth'


def unroll(recipe: dict, root: str | Path = '.') -> list[Stage]:
    """Turns a recipe into its stages, in order.

    ``stages`` maps a stage's name to what it changes in the common options; ``~`` removes an option from it. A stage
    takes over the product of an earlier one by ``path.pretrain_network_x: stage:<name>``; for ``network_d`` this is
    that stage's discriminator.

    Args:
        recipe: A composed recipe, overrides applied.
        root: Folder in which ``experiments/`` lies.

    Raises:
        OptionsError: no name, no stages, a hand-off from a stage that is not earlier, or an unresolvable reference.
    """
    common = {key: value for key, value in recipe.items() if key != 'stages'}
    root = Path(root).absolute() / 'experiments'
    name = name_as_folder(resolve({'name': common.get('name')}, common)['name'], 'name', root)
    stages = recipe.get('stages')
    if stages is not None and (not isinstance(stages, Mapping) or not stages):
        raise OptionsError(f'stages: wrong value (found {shown(stages)}). Expected a mapping of names to options.')

    unrolled: list[Stage] = []
    for stage_name, changes in (stages or {'': {}}).items():
        option_path = f'stages.{stage_name}'
        if stage_name:
            name_as_folder(stage_name, option_path, root / name)
        if not isinstance(changes, (Mapping, type(None))):
            raise OptionsError(f'{option_path}: wrong value (found {shown(changes)}). Expected a mapping of options.')
        merged = merge(_plain(common), changes or {}, option_path)
        options = _plain(resolve(merged, common))
        if stage_name:
            options['name'] = f'{options["name"]}_{stage_name}'
        stage = Stage(stage_name, options, root / name / stage_name)
        for key in ('path', 'train'):
            if not isinstance(options.get(key, {}), dict):
                where = below(stage.option_path, key)
                raise OptionsError(
                    f'{where}: wrong value (found {shown(options[key])}). Expected a mapping of options.'
                )
        _take_hand_offs(stage, unrolled)
        unrolled.append(stage)
    return unrolled


def select(stages: list[Stage], name: str | None) -> list[Stage]:
    """The stages to run: all of them, or the one called ``name``.

    Raises:
        OptionsError: there is no such stage.
    """
    if name is None:
        return stages
    chosen = [stage for stage in stages if stage.name == name]
    if not chosen:
        raise OptionsError(
            f'--stage {name}: the recipe has no such stage. {did_you_mean(name, [s.name for s in stages])}'
        )
    return chosen


def weight_options(options: Mapping[str, Any], ignored: Iterable[str] = (*WATCHED, *COMPUTED)) -> dict[str, Any]:
    """Of a stage's options those that decide its weights.

    Args:
        options: The stage's options.
        ignored: Option paths to leave out; data to validate and test on are always left out.
    """
    kept = {**deepcopy(dict(options)), 'datasets': {'train': deepcopy(option_at(options, ['datasets', 'train']))}}
    for path in ignored:
        *parents, key = path.split('.')
        block = option_at(kept, parents)
        if isinstance(block, dict):
            block.pop(key, None)
    return kept


def _take_hand_offs(stage: Stage, earlier: list[Stage]) -> None:
    path = stage.options.setdefault('path', {})
    for key, value in list(path.items()):
        if not (isinstance(value, str) and value.startswith(HAND_OFF)):
            continue
        source_name = value[len(HAND_OFF) :]
        source = next((s for s in earlier if s.name == source_name), None)
        if source is None:
            raise OptionsError(
                f'stages.{stage.name}.path.{key}: {value!r} names no earlier stage. '
                f'{did_you_mean(source_name, [s.name for s in earlier])}'
            )
        of_discriminator = key == 'pretrain_network_d'
        checkpoint = source.products.get('network_d') if of_discriminator else source.checkpoint
        if checkpoint is None:
            raise OptionsError(f'stages.{stage.name}.path.{key}: stage {source_name} trains no network_d.')
        path[key] = str(checkpoint)
        stage.needs[f'path.{key}'] = checkpoint
        if source.options.get('train', {}).get('ema_decay') and not of_discriminator:
            path.setdefault(key.replace('pretrain_network', 'param_key'), 'params_ema')
    # A stage that trains network_g never saves network_t; stock BasicSR would look for it when resuming.
    if stage.network == 'network_g' and stage.options.get('network_t'):
        path.setdefault('ignore_resume_networks', ['network_t'])


def _plain(value: Any) -> Any:
    """Options without those that are ``~``, and without what only a merge reads."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None and key != '_delete_'}
    return [_plain(item) for item in value] if isinstance(value, list) else value
