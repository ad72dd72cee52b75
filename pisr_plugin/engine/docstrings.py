"""What docstrings say of an object and of its arguments, in Google's style and in BasicSR's."""

from __future__ import annotations

import inspect
import re
from typing import NamedTuple

_ENTRY = re.compile(r'(?P<names>\w+(?:, \w+)*)(?: ?\((?P<kind>.*?)\))?:\s*(?P<text>.*)')


class Entry(NamedTuple):
    """One line of an ``Args`` section."""

    kind: str  # the type in brackets, empty where the docstring leaves it to annotations
    text: str


def first_sentence(target: object) -> str:
    """The first sentence of the object's own docstring, on one line; empty without one."""
    paragraph = ' '.join(_doc(target).partition('\n\n')[0].split())
    return re.match(r'(.*?[.!?](?=\s|$)|.*)', paragraph)[1]


def argument_docs(target: object) -> dict[str, Entry]:
    """What the docstring says of each argument.

    Where the argument is ``opt``, as of BasicSR's datasets, the keys listed below it are entries too.
    """
    docs = _section(_doc(target))
    return docs or _section(_doc(getattr(target, '__init__', None)))


def _doc(target: object) -> str:
    return inspect.getdoc(target) or '' if getattr(target, '__doc__', None) else ''


def _section(doc: str) -> dict[str, Entry]:
    lines = doc.splitlines()
    start = next((i for i, line in enumerate(lines) if line.strip() in ('Args:', 'Arg:')), len(lines))
    header = _indent(lines[start]) if start < len(lines) else 0
    docs: dict[str, Entry] = {}
    names: list[str] = []
    levels: set[int] = set()  # indentations at which entries begin
    for line in filter(str.strip, lines[start + 1 :]):
        depth = _indent(line)
        if depth <= header:
            break
        if not levels or names == ['opt']:
            levels.add(depth)
        match = _ENTRY.match(line.strip())
        if match and depth in levels:
            names = match['names'].split(', ')
            docs.update(dict.fromkeys(names, Entry(match['kind'] or '', match['text'])))
        else:
            for name in names:
                docs[name] = docs[name]._replace(text=f'{docs[name].text} {line.strip()}'.strip())
    return docs


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
