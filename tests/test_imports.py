"""Imports run one way: each room of the package imports only rooms below it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

# From the top down. compat stands above utils, whose errors it raises.
FLOORS = (
    *('cli', 'ablation', 'engine', 'diagnostics', 'report', 'export', 'config', 'models'),
    *('evaluation', 'losses', 'inference'),
    *('data.prepare', 'data.loading', 'data.datasets', 'data.storage'),
    *('degradations', 'archs', 'distill', 'metrics', 'compat', 'utils', 'version'),
)
# These import their rooms to register networks, losses, datasets, ... with BasicSR; no room imports them.
REGISTERS = ('pisr_plugin', 'pisr_plugin.data')
METHODS = re.compile(r'PISR(?!Error)|KDSR|VID|FAKD|GAN|privileged|pisr_model|discriminator|net_[de]\b')

FILES = sorted((ROOT / 'pisr_plugin').rglob('*.py'))
TESTS = sorted((ROOT / 'tests').glob('*.py'))


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def imports_of(file: Path) -> Iterator[tuple[int, str]]:
    """Line and name of each imported module: for ``from a import b`` it is ``a.b`` if that is one, else ``a``."""
    typing = [node for node in ast.walk(tree_of(file)) if isinstance(node, ast.If) and is_typing(node.test)]
    never_run = {child for node in typing for child in ast.walk(node)}
    for node in ast.walk(tree_of(file)):
        if node in never_run:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{file}:{node.lineno}: a relative import'
            modules = [f'{node.module}.{alias.name}' for alias in node.names]
            yield from ((node.lineno, name if is_module(name) else node.module) for name in modules)


def is_typing(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == 'TYPE_CHECKING'


def is_module(name: str) -> bool:
    path = ROOT / name.replace('.', '/')
    return path.with_suffix('.py').is_file() or (path / '__init__.py').is_file()


def floor_of(module: str) -> int:
    """Position in FLOORS, the top is 0."""
    inside = module.removeprefix('pisr_plugin.') + '.'
    found = [number for number, room in enumerate(FLOORS) if inside.startswith(f'{room}.')]
    assert found, f'{module} lies in no room of FLOORS'
    return found[0]


def places(found: list[tuple[Path, int, str]]) -> str:
    return '\n'.join(sorted({f'{file.relative_to(ROOT)}:{line}: {what}' for file, line, what in found}))


def test_every_room_imports_only_rooms_below_it():
    upwards = [
        (file, line, name)
        for file in FILES
        if module_of(file) not in REGISTERS
        for line, name in imports_of(file)
        if name.split('.')[0] == 'pisr_plugin' and (name in REGISTERS or floor_of(name) < floor_of(module_of(file)))
    ]
    assert not upwards, f'imports that run up:\n{places(upwards)}'


@pytest.mark.parametrize('files', [FILES, TESTS], ids=['package', 'tests'])
def test_no_imports_form_a_circle(files):
    graph = {module_of(file): {name for _, name in imports_of(file)} for file in files}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, ' imports '.join([*path[path.index(module) :], module])
        if module not in done:
            for name in graph.get(module, ()):
                visit(name, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_only_commands_parse_arguments_and_print():
    found = [
        (file, node.lineno, 'prints')
        for file in FILES
        if 'cli' not in file.parts
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'print'
    ]
    found += [
        (file, line, 'imports argparse')
        for file in FILES
        if 'cli' not in file.parts and file.name != 'compat.py'  # reads the flags of BasicSR's own scripts
        for line, name in imports_of(file)
        if name == 'argparse'
    ]
    assert not found, f'outside cli/:\n{places(found)}'


def test_the_engine_names_no_method():
    """What trains and tests a stage holds for every method; only models and losses know one."""
    found = [
        (file, number, line.strip())
        for file in FILES
        if 'engine' in file.parts
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if METHODS.search(line)
    ]
    assert not found, f'methods named in engine/:\n{places(found)}'


def test_tests_are_imported_by_their_full_name_and_never_by_helpers():
    stems = {file.stem for file in TESTS}
    found = [
        (file, line, name)
        for file in TESTS
        for line, name in imports_of(file)
        if name.split('.')[0] in stems or (name.startswith('tests.test_') and not file.name.startswith('test_'))
    ]
    assert not found, places(found)
