"""The rules that options are checked by, and that describe options to an editor.

A rule is an object with ``check(value, option_path, problems)``, which appends one line per mistake, and
``json(defs)``, which says the same as JSON schema.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY, Registry

from pisr_plugin.config.compose import below
from pisr_plugin.utils.checks import is_number, is_whole
from pisr_plugin.utils.docstrings import argument_docs, first_sentence
from pisr_plugin.utils.errors import OptionsError, did_you_mean, shown
from pisr_plugin.utils.files import name_as_folder

REFERENCE = r'^\$\{[\w.]+\}$'  # in a recipe it may stand for any value
LARGEST = 1 << 16  # of whole numbers that build something: a wider network does not fit any machine


class Rule:
    """Accepts anything."""

    def check(self, value: Any, option_path: str, problems: list[str]) -> None:
        """Appends to ``problems`` what is wrong with ``value`` at option path ``option_path``."""

    def json(self, defs: dict[str, dict]) -> dict:
        """The rule as JSON schema for a recipe file, where ``~`` and references are values too and nothing is required.

        Args:
            defs: Takes the parts that are referred to as ``#/$defs/<name>``.
        """
        return {}


def loosely(kind: str, **more: Any) -> dict:
    """JSON schema of a value of this kind, or a reference to one, or none."""
    return {'type': [kind, 'string', 'null'], 'pattern': REFERENCE, **more}


def one_of(values: Sequence) -> dict:
    """JSON schema of one of these values, or a reference, or none."""
    return {'anyOf': [{'enum': [*values, None]}, {'type': 'string', 'pattern': REFERENCE}]}


def mapping(properties: Mapping[str, dict | bool], **more: Any) -> dict:
    """JSON schema of a mapping with these keys."""
    return loosely('object', properties={**properties, '_delete_': {'type': 'boolean'}}, **more)


def wrong(option_path: str, value: Any, expected: str) -> str:
    """The message about a value of a wrong kind or range."""
    return f'{option_path}: wrong value (found {shown(value)}). Expected {expected}.'


class Plain(Rule):
    """A value of one kind.

    Args:
        expected: The kind in words, for messages.
        accept: Whether a value is of that kind.
        schema: JSON schema of the kind.
    """

    def __init__(self, expected: str, accept: Callable[[Any], bool], schema: dict) -> None:
        self.expected, self.accept, self.schema = expected, accept, schema

    def check(self, value: Any, option_path: str, problems: list[str]) -> None:
        if not self.accept(value):
            problems.append(wrong(option_path, value, self.expected))

    def json(self, defs: dict[str, dict]) -> dict:
        return self.schema


class Number(Plain):
    """A finite number within a range.

    Args:
        at_least, above, at_most, below: The range; None: no limit there.
        whole: Whether it is a whole number.
    """

    def __init__(
        self,
        at_least: float | None = None,
        above: float | None = None,
        at_most: float | None = None,
        below: float | None = None,
        whole: bool = False,
    ) -> None:
        limits = {
            'minimum': (at_least, 'from {} on', lambda v: v >= at_least),
            'exclusiveMinimum': (above, 'above {}', lambda v: v > above),
            'maximum': (at_most, 'up to {}', lambda v: v <= at_most),
            'exclusiveMaximum': (below, 'below {}', lambda v: v < below),
        }
        limits = {keyword: limit for keyword, limit in limits.items() if limit[0] is not None}
        words = ['a whole number' if whole else 'a number', *(text.format(n) for n, text, _ in limits.values())]
        tests = [test for _, _, test in limits.values()]
        super().__init__(
            ' '.join(words),
            lambda v: (is_whole(v) if whole else is_number(v)) and all(test(v) for test in tests),
            loosely('integer' if whole else 'number', **{keyword: n for keyword, (n, _, _) in limits.items()}),
        )


class ListOf(Rule):
    """A list of values of one kind.

    Args:
        rule: The rule of each value.
        lengths: Smallest and largest length.
    """

    def __init__(self, rule: Rule, lengths: tuple[int, int] = (1, 1000)) -> None:
        self.rule, self.lengths = rule, lengths

    def check(self, value: Any, option_path: str, problems: list[str]) -> None:
        shortest, longest = self.lengths
        if not isinstance(value, (list, tuple)) or not shortest <= len(value) <= longest:
            count = shortest if shortest == longest else f'{shortest} to {longest}'
            problems.append(wrong(option_path, value, f'a list of {count} values'))
            return
        for index, item in enumerate(value):
            self.rule.check(item, f'{option_path}.{index}', problems)

    def json(self, defs: dict[str, dict]) -> dict:
        shortest, longest = self.lengths
        return loosely('array', items=self.rule.json(defs), minItems=shortest, maxItems=longest)


class OneOf(Plain):
    """One of a few values."""

    def __init__(self, *values: Any) -> None:
        super().__init__(
            ' or '.join(map(repr, values)), lambda v: any(v == x and type(v) is type(x) for x in values), one_of(values)
        )


class FolderName(Rule):
    """A name that becomes a folder or part of a file name."""

    def check(self, value: Any, option_path: str, problems: list[str]) -> None:
        try:
            name_as_folder(value, option_path)
        except OptionsError as error:
            problems.append(str(error))

    def json(self, defs: dict[str, dict]) -> dict:
        return _TEXT


class Refused(Rule):
    """No value is right.

    Args:
        reason: What to do instead.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def check(self, value: Any, option_path: str, problems: list[str]) -> None:
        problems.append(f'{option_path}: not for recipes (found {shown(value)}). {self.reason}')

    def json(self, defs: dict[str, dict]) -> dict:
        return {'type': 'null', 'description': self.reason}


_TEXT = {'type': ['string', 'null']}
ANY = Rule()
FLAG = Plain('true or false', lambda v: isinstance(v, bool), loosely('boolean'))
TEXT = Plain('text', lambda v: isinstance(v, str) and '\0' not in v, _TEXT)
NUMBER = Number()
TEXTS = ListOf(TEXT, (0, 1000))


class Fields(Rule):
    """A mapping with known keys.

    Args:
        rules: Rule by key.
        required: Keys that must be there.
        patterns: Rules for keys by prefix, e.g. ``{'network_': ...}``.
        open_ended: Whether other keys are somebody else's business.
    """

    def __init__(
        self,
        rules: Mapping[str, Rule],
        required: Sequence[str] = (),
        patterns: Mapping[str, Rule] | None = None,
        open_ended: bool = False,
    ) -> None:
        self.rules, self.required, self.patterns, self.open_ended = rules, required, patterns or {}, open_ended

    def check(self, value: Any, option_path: str, problems: list[str]) -> None:
        if not isinstance(value, Mapping):
            problems.append(wrong(option_path, value, 'a mapping'))
            return
        for key, item in value.items():
            where = below(option_path, key)
            rule = self.rules.get(key)
            if rule is None:
                rule = next((rule for prefix, rule in self.patterns.items() if str(key).startswith(prefix)), None)
            if rule is not None:
                rule.check(item, where, problems)
            elif not self.open_ended:
                problems.append(
                    f'{where}: unknown key. {did_you_mean(key, [*self.rules, *(f"{p}*" for p in self.patterns)])}'
                )
        for key in self.required:
            if value.get(key) is None:
                problems.append(f'{below(option_path, key)}: missing')

    def json(self, defs: dict[str, dict]) -> dict:
        return mapping(
            {key: rule.json(defs) for key, rule in self.rules.items()},
            patternProperties={f'^{prefix}': rule.json(defs) for prefix, rule in self.patterns.items()},
            additionalProperties=self.open_ended,
        )


class Named(Rule):
    """A mapping from free names to values of one kind."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def check(self, value: Any, option_path: str, problems: list[str]) -> None:
        if not isinstance(value, Mapping):
            problems.append(wrong(option_path, value, 'a mapping of names'))
            return
        for name, item in value.items():
            if not str(name).isidentifier() or len(str(name)) > 100:
                problems.append(wrong(f'{option_path}.{shown(name)}', name, 'letters, digits and underscores'))
            self.rule.check(item, f'{option_path}.{name}', problems)

    def json(self, defs: dict[str, dict]) -> dict:
        return mapping({}, propertyNames={'pattern': r'^[^\W\d]\w*$'}, additionalProperties=self.rule.json(defs))


class Block(Rule):
    """``{type: <registered name>, <arguments of its constructor>}``.

    Args:
        registry: Where the type is looked up.
        extra: Rules for keys that are not arguments.
        given: Arguments that the builder adds.
    """

    def __init__(self, registry: Registry, extra: Mapping[str, Rule] | None = None, given: Sequence[str] = ()) -> None:
        self.registry, self.extra, self.given = registry, extra or {}, given

    def check(self, value: Any, option_path: str, problems: list[str]) -> None:
        if not isinstance(value, Mapping) or 'type' not in value:
            problems.append(wrong(option_path, value, 'a mapping with a type'))
            return
        target = registered(self.registry, value['type'])
        if target is None:
            problems.append(
                f'{option_path}.type: {value["type"]!r} is not registered. '
                f'{did_you_mean(value["type"], registered_names(self.registry))} (--plugin MODULE imports your own)'
            )
            return
        parameters, takes_any = arguments(target)
        for key, item in value.items():
            where = f'{option_path}.{key}'
            if key == 'type':
                continue
            if key in self.given:
                problems.append(f'{where}: not for recipes (found {shown(item)}). It is given by what builds this.')
            elif key in self.extra:
                self.extra[key].check(item, where, problems)
            elif key in parameters:
                self._check_argument(argument_type(target, key), item, where, problems)
            elif not takes_any:
                problems.append(
                    f'{where}: {value["type"]} has no such argument. '
                    f'{did_you_mean(key, [p for p in parameters if p not in self.given])} '
                    '(_delete_: true beside type drops what a base recipe gave)'
                )
        for name, parameter in parameters.items():
            if parameter.default is parameter.empty and name not in value and name not in self.given:
                problems.append(f'{option_path}.{name}: missing; {value["type"]} needs it')

    def _check_argument(self, wanted: str, value: Any, option_path: str, problems: list[str]) -> None:
        if isinstance(value, Mapping) and 'type' in value:  # a network inside a network
            Block(ARCH_REGISTRY).check(value, option_path, problems)
        elif wanted in KINDS:
            KINDS[wanted].check(value, option_path, problems)
        else:
            _check_numbers(value, option_path, problems)

    def json(self, defs: dict[str, dict]) -> dict:
        name = '.'.join((self.registry._name, *self.given, *self.extra))
        if name not in defs:
            defs[name] = {}  # before the arguments, which may refer to it
            extra = {key: rule.json(defs) for key, rule in self.extra.items()}
            types = {}
            for kind in registered_names(self.registry):
                target = registered(self.registry, kind)
                parameters, takes_any = arguments(target)
                if takes_any or set(self.given) <= set(parameters):
                    own = {'const': kind, 'description': first_sentence(target)}
                    types[kind] = mapping(
                        {'type': own, **self._json_arguments(target, defs), **extra}, additionalProperties=takes_any
                    )
            defs[name] = mapping(
                {'type': one_of(list(types)), **extra},
                allOf=[
                    {'if': {'properties': {'type': {'const': kind}}, 'required': ['type']}, 'then': then}
                    for kind, then in types.items()
                ],
            )
        return {'$ref': f'#/$defs/{name}'}

    def _json_arguments(self, target: Any, defs: dict[str, dict]) -> dict[str, dict]:
        docs, described = argument_docs(target), {}
        for key, parameter in arguments(target)[0].items():
            if key in self.given:
                continue
            wanted = argument_type(target, key)
            if 'dict' in wanted and self.registry is ARCH_REGISTRY:  # a network inside a network
                rule = Block(ARCH_REGISTRY).json(defs)
            else:
                rule = KINDS.get(wanted, ANY).json(defs)
            text = {'description': docs[key].text} if key in docs else {}
            default = {'default': parameter.default} if isinstance(parameter.default, (bool, int, float, str)) else {}
            described[key] = {**rule, **text, **default}
        return described


# Rules for the arguments of networks, losses, metrics and degradations, by annotation.
KINDS: dict[str, Rule] = {
    'int': Number(at_least=-LARGEST, at_most=LARGEST, whole=True),
    'float': NUMBER,
    'bool': FLAG,
    'str': TEXT,
}


def _check_numbers(value: Any, option_path: str, problems: list[str]) -> None:
    """Checks the numbers in a value of unknown kind."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_numbers(item, f'{option_path}.{key}', problems)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_numbers(item, f'{option_path}.{index}', problems)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        (KINDS['int'] if isinstance(value, int) else NUMBER).check(value, option_path, problems)


def arguments(target: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """The named arguments of a registered object, and whether it takes any others."""
    parameters = inspect.signature(target).parameters.values()
    return (
        {p.name: p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)},
        any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def argument_type(target: Any, name: str) -> str:
    """Type of an argument by its annotation, else by the docstring, else by its default; empty when none tells."""
    parameter = inspect.signature(target).parameters[name]
    kind: Any = parameter.annotation
    if kind is parameter.empty:
        # A default of 1 may be that of a float (EDSR's res_scale), so the docstring comes first.
        entry = argument_docs(target).get(name)
        kind = entry.kind if entry else ''
        if not kind and parameter.default not in (parameter.empty, None):
            kind = type(parameter.default)
    return kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))


def registered(registry: Registry, name: Any) -> Any:
    """The object that BasicSR would build for ``name``, or None."""
    if not isinstance(name, str):
        return None
    entries = dict(iter(registry))
    return entries.get(name, entries.get(f'{name}_basicsr'))


def registered_names(registry: Registry) -> list[str]:
    """Names as options write them."""
    return [name.removesuffix('_basicsr') for name, _ in registry]
