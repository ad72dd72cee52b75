"""Unroll a recipe into stages, each described by plain BasicSR options."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from pisr_plugin.engine.recipe import resolve
from pisr_plugin.errors import OptionsError, choice

HAND_OFF = 'stage:'
# Options that do not change a stage's weights.
_INCIDENTAL = ('logger', 'val', 'num_gpu', 'dist_params', 'keep_memory')


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
    def place(self) -> str:
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
    name = common.get('name')
    if not isinstance(name, str) or not name or '/' in name or name.startswith('.'):
        raise OptionsError(f'name: {name!r}; a recipe needs a name to file its results under, without slashes.')
    stages = recipe.get('stages')
    if stages is not None and (not isinstance(stages, Mapping) or not stages):
        raise OptionsError(f'stages: a mapping of stage names to their options is needed, not {stages!r}.')

    root = Path(root).absolute()
    unrolled: list[Stage] = []
    for stage_name, changes in (stages or {'': {}}).items():
        if changes is not None and not isinstance(changes, Mapping):
            raise OptionsError(f'stages.{stage_name}: a mapping of options is needed, not {changes!r}.')
        merged = Config(_without_none(deepcopy(common)))
        try:
            merged.merge_from_dict(deepcopy(dict(changes or {})))
        except (TypeError, AttributeError) as error:  # a mapping over a scalar, a key that is not text
            raise OptionsError(f'stages.{stage_name}: {error}') from None
        options = _without_none(resolve(merged.to_dict(), common))
        if stage_name:
            options['name'] = f'{options["name"]}_{stage_name}'
        folder = root / 'experiments' / resolve({'name': name}, common)['name'] / str(stage_name)
        stage = Stage(str(stage_name), options, folder)
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
        raise OptionsError(f'--stage {name}: the recipe has no such stage. {choice(name, [s.name for s in stages])}')
    return chosen


def decisive(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of a stage's options those that decide its weights."""
    kept = {key: value for key, value in options.items() if key not in _INCIDENTAL}
    return {**kept, 'datasets': {'train': options.get('datasets', {}).get('train')}}


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
                f'{choice(source_name, [s.name for s in earlier])}'
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


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value
