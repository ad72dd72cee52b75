"""The package's one reader of YAML: plain data, read once, within limits; nothing in a file is executed."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from pisr_plugin.utils.errors import DataError, OptionsError
from pisr_plugin.utils.text_files import read_text

MAX_BYTES = 4 << 20  # of a file; the recipe of a grid of a thousand stages has two million
MAX_NODES = 200_000  # values of a file, those behind aliases counted each time
MAX_DEPTH = 40
MAX_TEXT = 20_000  # characters of one text
MAX_DIGITS = 40  # characters of one number

_EXPONENT = re.compile(r'[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+')
_NUMBER = 'tag:pisr_plugin,2026:number'
_YAML = 'tag:yaml.org,2002:'
_SCALARS = {_NUMBER, *(_YAML + kind for kind in ('null', 'bool', 'int', 'float', 'str'))}


class _Loader(yaml.SafeLoader):
    """Builds PyYAML's nodes; :class:`_Plain` turns them into values."""

    # dates stay text, because an option is never a date
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(':timestamp')]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _error(f'nested deeper than {MAX_DEPTH} levels', self.peek_event())
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Writes what :func:`parse` reads back as the same values."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# YAML 1.1 takes 1e-4 for text. The dumper knows it too, so that it quotes a text that looks so.
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_NUMBER, re.compile(f'(?:{_EXPONENT.pattern})$'), list('-+.0123456789'))


def read_yaml(path: Path) -> Any:
    """Reads a YAML file.

    Args:
        path: The file.

    Raises:
        OptionsError: it cannot be read, is not UTF-8, or :func:`parse` refuses it.
    """
    try:
        text = read_text(path, 'Expected a YAML file.', MAX_BYTES)
    except DataError as error:
        raise OptionsError(str(error)) from None
    return parse(text, str(path))


def parse(text: str, option_path: str) -> Any:
    """Turns one YAML document into dicts, lists, texts, finite numbers, booleans and None.

    Keys are always text, as written; ``1e-4`` is a number, with or without ``!!float``; dates stay text.

    Args:
        text: The document.
        option_path: Where it stands, for messages.

    Raises:
        OptionsError: it is not YAML, repeats a key, names a Python object, refers to itself, holds a number that is
            not finite or an invisible U+FEFF, or exceeds a limit of this module.
    """
    if '\ufeff' in text:
        line = text[: text.index('\ufeff')].count('\n') + 1
        raise OptionsError(f'{option_path}: invisible character U+FEFF in line {line}. Remove it.')
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            return None if node is None else _Plain(loader).value(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, LookupError, OverflowError) as error:
        raise OptionsError(f'{option_path}: cannot read this as YAML: {error}') from None


def dump(options: Any) -> str:
    """Writes plain options as YAML, in their order; BasicSR and :func:`parse` read it."""
    return yaml.dump(options, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Plain:
    """Builds the values of one document; an alias is built anew each time, so that values share nothing."""

    def __init__(self, loader: _Loader) -> None:
        self.loader, self.nodes = loader, 0

    def value(self, node: yaml.Node, depth: int = 0) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _error(f'more than {MAX_NODES} values', node)
        if depth > MAX_DEPTH:
            raise _error(f'nested deeper than {MAX_DEPTH} levels, or refers to itself', node)
        if isinstance(node, yaml.SequenceNode) and node.tag == f'{_YAML}seq':
            return [self.value(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.MappingNode) and node.tag == f'{_YAML}map':
            return self._mapping(node, depth)
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return self._scalar(node)
        raise _error(f'tag {node.tag!r}; expected plain values alone', node)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f'{_YAML}merge' and isinstance(key_node, yaml.ScalarNode):
                found = self.value(value_node, depth + 1)
                for part in found if isinstance(found, list) else [found]:
                    if not isinstance(part, dict):
                        raise _error('<< merges mappings alone', value_node)
                    merged = {**part, **merged}
                continue
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _SCALARS - {f'{_YAML}null'}:
                raise _error('this key is not text', key_node)
            key = self._text(key_node)
            if key in values:
                raise _error(f'{key!r} is given twice', key_node)
            values[key] = self.value(value_node, depth + 1)
        return {**merged, **values}

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = self._text(node)
        if node.tag == f'{_YAML}str':
            return text
        if len(text) > MAX_DIGITS:
            raise _error(f'a number of {len(text)} characters; expected at most {MAX_DIGITS}', node)
        if node.tag == _NUMBER:
            number = float(text)
            if number.is_integer() and 1 <= abs(number) < 1e18:
                return int(number)  # 1e6 iterations are a whole number
        else:
            number = self.loader.construct_object(node)
        if isinstance(number, float) and not math.isfinite(number):
            raise _error(f'{text}; expected a finite number', node)
        return number

    def _text(self, node: yaml.ScalarNode) -> str:
        if len(node.value) > MAX_TEXT:
            raise _error(f'a text of {len(node.value)} characters; expected at most {MAX_TEXT}', node)
        return node.value


def _error(problem: str, place: yaml.Node | yaml.Event) -> yaml.YAMLError:
    # the stubs do not know that it takes the marks of libyaml, too
    return yaml.constructor.ConstructorError(None, None, problem, place.start_mark)  # type: ignore[arg-type]
