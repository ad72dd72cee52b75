"""Read recipes: composition, overrides and references; never code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config

from pisr_plugin.errors import OptionsError, choice

_EXPONENT = re.compile(r'[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+')
_REFERENCE = re.compile(r'\$\{([\w.]+)\}')


class _Loader(yaml.SafeLoader):
    """YAML without Python objects and without silently repeated keys."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f'{key_node.value!r} is given twice', key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def compose(path: str | Path) -> dict:
    """Reads a recipe and merges it over its ``_base_`` files, as mmengine does.

    ``_base_`` is a file or list of files relative to the recipe; ``_delete_: true`` in a mapping drops what the base
    had there. ``1e-4`` is a number, with or without ``!!float``.

    Raises:
        OptionsError: a file is missing, is not YAML, holds Python objects, repeats a key, or two bases clash.
    """
    path = Path(path)
    _check_file(path, ())
    try:
        # mmengine loads YAML with a loader that builds Python objects; _check_file has refused files that name any.
        config = Config.fromfile(
            str(path), use_predefined_variables=False, import_custom_modules=False, use_environment_variables=False
        )
    except KeyError as error:
        raise OptionsError(
            f'{path}: {error.args[0]}. Chain the bases: let one of them name the other as its _base_.'
        ) from None
    except TypeError as error:  # a mapping merged over a scalar; mmengine names the keys
        raise OptionsError(f'{path}: {error}') from None
    return _numbers(config.to_dict())


def _check_file(path: Path, parents: tuple[Path, ...]) -> None:
    if path.suffix not in ('.yml', '.yaml'):
        raise OptionsError(f'{path} is not a YAML file (.yml, .yaml).')
    if not path.is_file():
        near = [f.name for f in path.parent.glob('*.y*ml')] if path.parent.is_dir() else []
        wanted = f', the _base_ of {parents[-1]},' if parents else ''
        raise OptionsError(f'{path}{wanted} does not exist. {choice(path.name, near)} (in {path.parent})')
    if path.resolve() in parents:
        raise OptionsError(f'{path} is, by way of _base_, its own base.')
    try:
        content = yaml.load(path.read_text(encoding='utf-8'), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionsError(f'{path} is not a recipe: {error}') from None
    if not isinstance(content, dict):
        raise OptionsError(f'{path} is not a recipe: a mapping of options is needed, not {type(content).__name__}.')
    bases = content.get('_base_') or []
    for base in [bases] if isinstance(bases, str) else bases:
        _check_file(path.parent / base, (*parents, path.resolve()))


def _numbers(value: Any) -> Any:
    """Turns texts such as ``1e-4``, which YAML 1.1 leaves as text, into numbers."""
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        number = float(value)
        return int(number) if number.is_integer() and abs(number) >= 1 else number  # 1e6 iterations are a whole number
    return value


def override(recipe: dict, entries: Iterable[str], flag: str = '--force_yml') -> dict:
    """Applies ``a:b=c`` entries of ``--force_yml``.

    An entry reaches every stage: where a stage sets the same option itself, its value is replaced too.
    ``stages:student:a:b=c`` reaches that stage alone. Values are YAML; keys may be new.

    Args:
        recipe: As :func:`compose` returns it; changed in place.
        entries: ``keys=value`` texts, keys joined by ``:``.
        flag: Where the entries were given, for messages.

    Raises:
        OptionsError: an entry has no ``=``, its value is not YAML, or its path runs through something else than a
            mapping.
    """
    for entry in entries:
        place = f'{flag} {entry!r}'
        keys, equals, text = entry.partition('=')
        keys = [key.strip() for key in keys.split(':')]
        if not equals or not all(keys):
            raise OptionsError(f'{place}: write keys joined by a colon and a value, e.g. train:ema_decay=0.999')
        try:
            value = _numbers(yaml.load(text.replace('!!float', '').strip(), _Loader))
        except yaml.YAMLError as error:
            raise OptionsError(f'{place}: {error}') from None
        _set(recipe, keys, value, place)
        if keys[0] != 'stages':
            for stage in (recipe.get('stages') or {}).values():
                if _holds(stage, keys):
                    _set(stage, keys, value, place)
    return recipe


def _set(options: Any, keys: list[str], value: Any, place: str) -> None:
    for depth, key in enumerate(keys):
        if isinstance(options, list) and key.isdigit() and int(key) < len(options):
            key = int(key)
        elif not isinstance(options, dict):
            raise OptionsError(f'{place}: {".".join(keys[:depth]) or "the recipe"} is not a mapping.')
        if depth == len(keys) - 1:
            options[key] = value
        else:
            if isinstance(options, dict) and options.get(key) is None:
                options[key] = {}
            options = options[key]


def _holds(options: Any, keys: list[str]) -> bool:
    """Whether there is a value at ``keys``; ``~``, by which a stage does without an option, is none."""
    for key in keys:
        options = options.get(key) if isinstance(options, dict) else None
    return options is not None


def resolve(options: dict, *fallbacks: dict) -> dict:
    """Replaces ``${a.b}`` by the option at that path.

    A value that is one reference takes the referred value whole, a mapping included; inside a longer text its text.

    Args:
        options: Options with references; not changed.
        fallbacks: Where a path is looked up that ``options`` lacks.

    Raises:
        OptionsError: a path does not exist or refers to itself.
    """

    def look_up(path: str, place: str) -> Any:
        for root in (options, *fallbacks):
            node: Any = root
            for key in path.split('.'):
                node = node.get(key) if isinstance(node, Mapping) else None
            if node is not None:
                return node
        raise OptionsError(f'{place}: ${{{path}}} refers to an option that does not exist. {choice(path, options)}')

    def walk(value: Any, place: str, pending: tuple[str, ...]) -> Any:
        if isinstance(value, Mapping):
            return {key: walk(item, f'{place}.{key}' if place else str(key), pending) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, f'{place}.{i}', pending) for i, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        for path in _REFERENCE.findall(value):
            if path in pending:
                raise OptionsError(f'{place}: ${{{path}}} refers to itself.')
        whole = _REFERENCE.fullmatch(value)
        if whole:
            return walk(look_up(whole[1], place), place, (*pending, whole[1]))
        return _REFERENCE.sub(lambda m: str(walk(look_up(m[1], place), place, (*pending, m[1]))), value)

    return walk(options, '', ())
