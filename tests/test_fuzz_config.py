"""Random recipes, overrides and grids: one message that names the place and nothing done, or a correct result.

``make fuzz`` tries many more, and others each time.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pisr_plugin.ablation.grid import read_grid
from pisr_plugin.ablation.plan import make_plan
from pisr_plugin.config.compose import compose, override
from pisr_plugin.config.parse import dump, parse
from pisr_plugin.config.schema import check_options
from pisr_plugin.config.stages import unroll
from pisr_plugin.utils.errors import OptionsError
from tests.conftest import ROOT

settings.register_profile('test', max_examples=1000, deadline=None, derandomize=True, database=None)
settings.register_profile('fuzz', max_examples=50_000, deadline=None, database=None)
settings.load_profile(os.environ.get('PISR_FUZZ', 'test'))

RECIPES = [ROOT / 'options' / f'{name}.yml' for name in ('pisr_fsrcnn_x2', 'kdsr/kdsr_gan_x4', 'template')]
COMPOSED = [compose(path) for path in RECIPES]
TEXTS = [path.read_text() for path in (*RECIPES, ROOT / 'options/_base_/kdsr.yml', ROOT / 'options/_base_/runtime.yml')]
GRID = {
    'name': 'grid',
    'title': 'Grid',
    'recipe': str(RECIPES[0]),
    'common': {'train': {'total_iter': 10}},
    'seeds': [0, 1],
    'against': 'a',
    'rows': {'a': {}, 'b': {'changes': {'train': {'distill_opt': None}}, 'title': 'B', 'seeds': [3]}},
    'axes': {'w': {'1': {'train': {'pixel_opt': {'loss_weight': 1.0}}}, '2': {}}},
    'published': {'a': {'Set5': 37.0}},
}

# ------------------------------------------------------------------------------------- what must not happen meanwhile

FORBIDDEN = ('os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'subprocess.Popen', 'socket.connect', 'ctypes.dlopen')
WRITES = ('os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'os.symlink', 'os.link', 'os.truncate', 'shutil.rmtree')
_watched: list[str] | None = None


def _audit(name: str, arguments: tuple) -> None:
    if _watched is not None and (
        name.startswith(FORBIDDEN)
        or name in WRITES
        or (name == 'open' and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
    ):
        _watched.append(f'{name}{arguments!r}')


sys.addaudithook(_audit)


@contextmanager
def nothing_done() -> Iterator[None]:
    """Fails when the block starts a program or changes a file."""
    global _watched
    _watched = []
    try:
        yield
        assert _watched == []
    finally:
        _watched = None


def attempt(action: Callable[[], list]) -> None:
    """Runs what may be refused, and checks the message or the stages that come of it."""
    with nothing_done():
        try:
            stages = action()
        except OptionsError as error:
            event('refused')
            message = str(error)
            assert ':' in message and 'Traceback' not in message and len(message) < 50_000
            message.encode()
            return
    event('accepted')
    runs = Path.cwd() / 'experiments'
    for stage in stages:
        assert stage.folder.resolve().is_relative_to(runs) and stage.folder != runs
        json.dumps(stage.options, allow_nan=False)
        assert parse(dump(stage.options), '') == stage.options


def stages_of(recipe: dict) -> list:
    stages = unroll(recipe)
    for stage in stages:
        check_options(stage.options, stage.option_path, is_train=True)
    return stages


# ------------------------------------------------------------------------------------------------- what is tried

CODE = '!!python/object/apply:os.system ["touch P"]'
ODD = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        1.5,
        1e9,
        -1e9,
        10**15,
        1e-30,
        '',
        ' ',
        '.',
        '..',
        '/tmp/x',
        '../x',
        'a/b',
        '~',
        'x' * 300,
    ]
    + [
        '${scale}',
        '${name}',
        '${a.b}',
        '${train}',
        '${',
        '{}',
        '{',
        '{0.x}',
        '{{ _base_.x }}',
        'stage:teacher',
        'stage:',
        CODE,
    ]
    + [
        'L1Loss',
        'FSRCNN',
        'PISRModel',
        'Adam',
        '\0',
        '\ufeff',
        '\n',
        '1e-4',
        '2001-99-99',
        'nan',
        'auto',
        'ü',
        '\u202e',
    ]
    + [[], {}, [[]], [1], ['a'], {'type': 'FSRCNN'}, {'type': ['x']}, {'_delete_': True}, {'_delete_': 5}, {'': 1}]
)
VALUES = st.recursive(
    ODD | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def paths(options: Any, path: tuple = ()) -> list[tuple]:
    """The places of all values."""
    items = options.items() if isinstance(options, dict) else enumerate(options) if isinstance(options, list) else ()
    return [*([path] if path else []), *(deeper for key, item in items for deeper in paths(item, (*path, key)))]


@st.composite
def changed(draw: st.DrawFn, sources: list[dict]) -> dict:
    """Options with one to three values replaced, removed, or put under an odd key."""
    options = deepcopy(draw(st.sampled_from(sources)))
    for _ in range(draw(st.integers(1, 3))):
        *parents, key = draw(st.sampled_from(paths(options)))
        node = options
        for parent in parents:
            node = node[parent]
        how = draw(st.sampled_from(['replace', 'replace', 'replace', 'remove', 'rename']))
        if how == 'replace' or isinstance(node, list):
            node[key] = deepcopy(draw(VALUES))  # the next change must not reach into the strategy
        elif how == 'remove':
            del node[key]
        else:
            node[draw(st.text(max_size=8) | st.sampled_from(['__x', '_delete_', '_base_', 'type', 'stages']))] = (
                node.pop(key)
            )
        if not paths(options):
            break
    return options


TOKENS = [
    '{',
    '}',
    '[',
    ']',
    ': ',
    ', ',
    '\n',
    '\n  ',
    '- ',
    '? ',
    '&a ',
    '*a',
    '<<: ',
    '!!int ',
    '!!float ',
    '!!str ',
    '"',
    "'",
]
TOKENS += [
    '!!python/name:os.system ',
    CODE,
    '%YAML 1.1\n',
    '---\n',
    '...\n',
    '#',
    '|',
    '>',
    '\ufeff',
    '\x07',
    '\t',
    '${',
    '{{',
    '}}',
]
TOKENS += [
    'a',
    'name',
    '_base_',
    '1e9',
    '.nan',
    '0x1',
    '1:2',
    '~',
    '9' * 50,
    '=',
    '!',
    '@',
    '`',
    '\u2028',
    '\x85',
    '\r',
]


@st.composite
def texts(draw: st.DrawFn) -> str:
    """YAML of odd tokens, or a shipped recipe with some of them put in or parts taken out."""
    text = draw(st.sampled_from(['', *TEXTS]))
    if not text:
        return ''.join(draw(st.lists(st.sampled_from(TOKENS), max_size=12)))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 20)))
        text = text[:start] + ''.join(draw(st.lists(st.sampled_from(TOKENS), max_size=3))) + text[end:]
    return text


@pytest.fixture(scope='module', autouse=True)
def folder(tmp_path_factory) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp('fuzz'))
    shutil.copytree(ROOT / 'options', 'options')
    yield
    os.chdir(before)


@given(texts())
def test_texts(text):
    Path('options/a.yml').write_text(text, encoding='utf-8', newline='')
    attempt(lambda: stages_of(compose('options/a.yml')))


@given(changed(COMPOSED))
def test_recipes(recipe):
    attempt(lambda: stages_of(parse(dump(recipe), 'recipe')) if isinstance(recipe, dict) else [])


ENTRIES = st.builds(
    lambda path, change, value: (
        ':'.join(map(str, (*path[: len(path) - (change == 'cut')], *([change] if change == 'x' else ())))) + value
    ),
    st.sampled_from([path for recipe in COMPOSED for path in paths(recipe)]),
    st.sampled_from(['', '', 'cut', 'x']),
    st.builds('={}'.format, VALUES.map(json.dumps) | st.sampled_from(TOKENS) | st.text(max_size=10)) | st.just(''),
)


@given(st.sampled_from(COMPOSED), st.lists(ENTRIES | st.text(max_size=20), min_size=1, max_size=3))
def test_overrides(recipe, entries):
    attempt(lambda: stages_of(override(deepcopy(recipe), entries)))


@settings(max_examples=settings.default.max_examples // 4)
@given(changed([GRID]))
def test_grids(grid):
    Path('grid.yml').write_text(dump(grid), encoding='utf-8')
    attempt(lambda: list(make_plan(read_grid('grid.yml')).stages.values()))
