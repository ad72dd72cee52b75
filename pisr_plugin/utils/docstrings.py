"""What docstrings say of an object and of its arguments, in Google's style and in BasicSR's."""

from __future__ import annotations

import inspect
import re
from functools import cache
from textwrap import indent
from typing import NamedTuple

from docstring_parser import DocstringParam, ParseError
from docstring_parser.google import DEFAULT_SECTIONS, GoogleParser, Section, SectionType

_PARSER = GoogleParser([*DEFAULT_SECTIONS, Section('Arg', 'param', SectionType.MULTIPLE)])  # BasicSR writes both
_SENTENCE = re.compile(r'.*?(?<!\bEq)(?<!\bFig)(?<!\bSec)(?<!e\.g)(?<!i\.e)[.!?](?=\s|$)|.*')


class Entry(NamedTuple):
    """One line of an ``Args`` section."""

    kind: str  # the type in brackets, empty where the docstring leaves it to annotations
    text: str
    is_optional: bool


def first_sentence(target: object) -> str:
    """The first sentence of the object's own docstring, on one line; empty without one."""
    return sentence_of(_doc(target).partition('\n\n')[0])


def sentence_of(paragraph: str) -> str:
    """The first sentence of a paragraph, on one line."""
    match = _SENTENCE.match(' '.join(paragraph.split()))
    assert match  # its last alternative matches any text
    return match[0]


def argument_docs(target: object) -> dict[str, Entry]:
    """What the docstring says of each argument.

    Where the argument is ``opt``, as of BasicSR's datasets, the keys listed below it are entries too.
    """
    docs = _entries(_doc(target))
    return docs or _entries(_doc(getattr(target, '__init__', None)))


def option_docs(target: object) -> dict[str, Entry]:
    """What a dataset's docstring says of the keys of ``opt``; empty where it lists none."""
    docs = argument_docs(target)
    return {key: entry for key, entry in docs.items() if key != 'opt'} if 'opt' in docs else {}


def _doc(target: object) -> str:
    return inspect.getdoc(target) or '' if getattr(target, '__doc__', None) else ''


@cache
def _entries(doc: str) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for param in _params(doc):
        heading, _, keys = (param.description or '').partition(':\n')
        nested = param.arg_name == 'opt' and keys
        for name in param.arg_name.split(', '):
            entries[name] = _entry(param, heading if nested else param.description or '')
        if nested:
            below = _params('Keys.\n\nArgs:\n' + indent(keys, '    '))
            entries |= {key.arg_name: _entry(key, key.description or '') for key in below}
    return entries


def _params(doc: str) -> list[DocstringParam]:
    try:
        return [param for param in _PARSER.parse(doc).params if param.args[0] == 'param']
    except ParseError:
        return []


def _entry(param: DocstringParam, text: str) -> Entry:
    optional = bool(param.is_optional) or param.default is not None or 'Default:' in text
    return Entry(param.type_name or '', ' '.join(text.split()), optional)
