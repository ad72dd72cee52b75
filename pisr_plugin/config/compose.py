"""Compose recipes: bases, overrides and references; nothing in a recipe is executed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from pisr_plugin.config.parse import MAX_DEPTH, MAX_NODES, MAX_TEXT, parse, read_yaml
from pisr_plugin.config.recipes import find_recipe
from pisr_plugin.utils.errors import OptionsError, did_you_mean, shown

_REFERENCE = re.compile(r'\$\{([\w.]+)\}')
_MAX_FILES = 50  # that one recipe is composed of


def compose(name: str | Path, folder: Path = Path(), option_path: str = '') -> dict:
    """Reads a recipe and merges it over its ``_base_`` files.

    ``_base_`` is a file or a list of files relative to the recipe. ``_delete_: true`` in a mapping drops what the
    base had there. Both mean the same as in mmengine. A base, too, may be a name as of
    :func:`~pisr_plugin.config.recipes.find_recipe`.

    Args:
        name: File of the recipe, or name of a recipe of the package.
        folder: Folder that a relative path starts from.
        option_path: Where the name stands, for messages; empty: on the command line.

    Raises:
        OptionsError: a file is missing or :func:`~pisr_plugin.config.parse.parse` refuses it, a recipe is its own
            base, or two bases have the same top-level option.
    """
    return _compose(find_recipe(name, folder, option_path), (), [])


def _compose(path: Path, parents: tuple[Path, ...], read: list[Path]) -> dict:
    content = _read(path, parents)
    read.append(path)
    if len(read) > _MAX_FILES:
        raise OptionsError(f'{read[0]}: _base_ leads to more than {_MAX_FILES} files.')
    bases = content.pop('_base_', None)
    if bases is None:
        bases = []
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise OptionsError(f'{path}: _base_: wrong value (found {shown(bases)}). Expected a file or a list of files.')
    merged: dict[str, Any] = {}
    for base in bases:
        below = _compose(find_recipe(base, path.parent, f'{path}: _base_'), (*parents, path.resolve()), read)
        twice = merged.keys() & below.keys()
        if twice:
            raise OptionsError(
                f'{path}: _base_: two bases have the same option (found {", ".join(sorted(twice))}). '
                'Chain the bases: let one of them name the other as its _base_.'
            )
        merged |= below
    return merge(merged, content, f'{path}:')


def _read(path: Path, parents: tuple[Path, ...]) -> dict:
    place = f'{parents[-1]}: _base_: {path}' if parents else f'{path}:'
    if path.suffix not in ('.yml', '.yaml'):
        raise OptionsError(f'{place} is not a YAML file. Expected a name that ends in .yml or .yaml.')
    if path.resolve() in parents:
        raise OptionsError(f'{place} is its own base.')
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise OptionsError(f'{path}: not a recipe (found {shown(content)}). Expected a mapping of options.')
    return content


def merge(options: dict, changes: Mapping[str, Any], option_path: str) -> dict:
    """Merges ``changes`` over ``options``, as a recipe over its base; alters neither.

    Args:
        options: What is below.
        changes: What wins. A mapping with ``_delete_: true`` replaces what is below it, or keeps that
            key for a later merge if there is nothing.
        option_path: Where ``changes`` stands, for messages.

    Raises:
        OptionsError: a mapping meets something else.
    """
    merged = dict(options)
    for key, value in changes.items():
        where = f'{option_path}{" " if option_path.endswith(":") else "."}{key}'
        if not isinstance(key, str):
            raise OptionsError(f'{where}: this key is not text.')
        below = merged.get(key)
        if isinstance(value, Mapping) and below is not None:
            delete = value.get('_delete_', False)
            if not isinstance(delete, bool):
                raise OptionsError(f'{where}._delete_: wrong value (found {shown(delete)}). Expected true or false.')
            if not delete and not isinstance(below, Mapping):
                raise OptionsError(
                    f'{where}: a mapping meets another kind of value (found {shown(below)}). Expected a mapping in '
                    'both. Write _delete_: true in the new one to replace the old value.'
                )
            changed = {name: item for name, item in value.items() if name != '_delete_'}
            merged[key] = deepcopy(changed) if delete else merge(below, changed, where)
        else:
            merged[key] = deepcopy(value)
    return merged


def override(recipe: dict, entries: Iterable[str], flag: str = '--force_yml') -> dict:
    """Applies ``a:b=c`` entries of ``--force_yml``.

    An entry reaches every stage: where a stage sets the same option itself, its value is replaced too.
    ``stages:student:a:b=c`` reaches that stage alone. Values are YAML; keys may be new.

    Args:
        recipe: As :func:`compose` returns it; changed in place.
        entries: ``keys=value`` texts, keys joined by ``:``.
        flag: Where the entries were given, for messages.

    Raises:
        OptionsError: an entry has no ``=``, its value is not YAML, it names a stage that does not exist, or its path
            runs through something else than a mapping.
    """
    for entry in entries:
        option_path = f'{flag} {shown(entry)}'
        path, equals, text = entry.partition('=')
        keys = [key.strip() for key in path.split(':')]
        if not equals or not all(keys) or len(keys) > MAX_DEPTH:
            raise OptionsError(f'{option_path}: write keys joined by a colon and a value, e.g. train:ema_decay=0.999')
        value = parse(text.replace('!!float', '').strip(), option_path)
        stages = recipe.get('stages')
        if keys[0] == 'stages' and len(keys) > 1 and keys[1] not in (stages or {}):
            raise OptionsError(f'{option_path}: there is no stage {keys[1]!r}. {did_you_mean(keys[1], stages or ())}')
        _set(recipe, keys, value, option_path)
        if keys[0] != 'stages' and isinstance(stages, dict):
            for stage in stages.values():
                if option_at(stage, keys) is not None:
                    _set(stage, keys, value, option_path)
    return recipe


def _set(options: Any, keys: list[str], value: Any, option_path: str) -> None:
    for depth, key in enumerate(keys):
        place: int | str = key
        if isinstance(options, list) and key.isdecimal() and int(key) < len(options):
            place = int(key)
        elif not isinstance(options, dict):
            raise OptionsError(f'{option_path}: {".".join(keys[:depth]) or "the recipe"} is not a mapping.')
        if depth == len(keys) - 1:
            options[place] = deepcopy(value)
        else:
            if isinstance(options, dict) and options.get(place) is None:
                options[place] = {}
            options = options[place]


def option_at(options: Any, keys: Iterable[str]) -> Any:
    """Returns the option at a path of keys; None where there is none, or ``~``."""
    for key in keys:
        options = options.get(key) if isinstance(options, Mapping) else None
    return options


def below(option_path: str, key: object) -> str:
    """Returns the option path of a key in the mapping at ``option_path``; empty: the mapping is the whole."""
    return f'{option_path}.{key}' if option_path else str(key)


def resolve(options: dict, *fallbacks: dict) -> dict:
    """Replaces ``${a.b}`` by the option at that path.

    A value that is one reference takes the referred value whole, a mapping included; inside a longer text its text.

    Args:
        options: Options with references; not changed.
        fallbacks: Where a path is looked up that ``options`` lacks.

    Raises:
        OptionsError: a path does not exist or refers to itself, or the resolved options are too large.
    """
    nodes = 0

    def look_up(path: str, option_path: str) -> Any:
        for root in (options, *fallbacks):
            found = option_at(root, path.split('.'))
            if found is not None:
                return found
        raise OptionsError(
            f'{option_path}: ${{{path}}} refers to an option that does not exist. {did_you_mean(path, options)}'
        )

    def walk(value: Any, option_path: str, pending: tuple[str, ...]) -> Any:
        nonlocal nodes
        nodes += 1
        if nodes > MAX_NODES:
            raise OptionsError(f'{shown(option_path)}: references lead to more than {MAX_NODES} values.')
        if option_path.count('.') + len(pending) > 2 * MAX_DEPTH:
            raise OptionsError(f'{shown(option_path)}: references lead through too many levels.')
        if isinstance(value, Mapping):
            return {key: walk(item, below(option_path, key), pending) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, f'{option_path}.{i}', pending) for i, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        for path in _REFERENCE.findall(value):
            if path in pending:
                raise OptionsError(f'{option_path}: ${{{path}}} refers to itself.')
        whole = _REFERENCE.fullmatch(value)
        if whole:
            return walk(look_up(whole[1], option_path), option_path, (*pending, whole[1]))
        text = ''
        for number, part in enumerate(_REFERENCE.split(value)):  # texts and paths in turn
            text += str(walk(look_up(part, option_path), option_path, (*pending, part))) if number % 2 else part
            if len(text) > MAX_TEXT:
                raise OptionsError(f'{shown(option_path)}: references lead to a text of over {MAX_TEXT} characters.')
        return text

    return walk(options, '', ())
