"""Changes the code in small ways and sees whether the tests notice: ``make mutants``, or ``python -m tests.mutants``.

Own code rather than mutmut or cosmic-ray: mutmut wraps every function, and the registries, the recipe schema and
torch.compile read signatures; cosmic-ray starts a process for each mutant, which imports PyTorch and BasicSR for
longer than the tests take. Here a mutant is a fork of a process that has imported them, and gets its one changed
module as it imports the package.

Results are kept in ``.mutants.jsonl``: the next call goes on with what is not there. Delete it to begin anew.
"""

from __future__ import annotations

import argparse
import ast
import importlib.machinery
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pisr_plugin.cli.train  # noqa: F401  (with all that it imports in turn)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / '.mutants.jsonl'
LOSSES = ('losses', 'distillation_losses', 'estimators')
# module: tests of it, the quickest first
TARGETS = {
    'losses/affinity_loss': LOSSES,
    'losses/attention_loss': LOSSES,
    'losses/base': LOSSES,
    'losses/feature_loss': LOSSES,
    'losses/frequency_loss': LOSSES,
    'losses/hint_loss': LOSSES,
    'losses/representation_loss': LOSSES,
    'losses/statistics_loss': LOSSES,
    'losses/vid_loss': LOSSES,
    'distill/taps': ('taps', 'links'),
    'distill/links': ('links', 'model'),
    'data/loading/sampler': ('sampling', 'patch_store'),
    'models/step': ('step', 'model'),
    'inference/checkpoint': ('released', 'inference', 'model'),
    'utils/resize': ('resize',),
    'evaluation/protocol': ('protocol', 'evaluate'),
    'evaluation/measure': ('protocol', 'evaluate'),
}
SWAPS = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn},
    **{ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
}


def changes(node: ast.AST) -> Iterator[tuple[int, str, Callable[[], None]]]:
    """Line, description and function of each change that can be made to a tree; the function makes it.

    Strings, messages of exceptions and annotations are left alone.
    """
    for field, value in ast.iter_fields(node):
        if field in ('annotation', 'returns', 'decorator_list'):
            continue
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or isinstance(child, (ast.Raise, ast.JoinedStr)):
                continue

            def put(new: ast.AST, value=value, index=index, field=field) -> None:
                if isinstance(value, list):
                    value[index] = new
                else:
                    setattr(node, field, new)

            line, text = getattr(child, 'lineno', getattr(node, 'lineno', 0)), ast.unparse(child)
            if type(child) in SWAPS:
                new = SWAPS[type(child)]()
                yield (
                    line,
                    f'{ast.unparse(node)}: {type(child).__name__} -> {type(new).__name__}',
                    lambda n=new, put=put: put(n),
                )
            elif isinstance(child, ast.Constant) and isinstance(child.value, (int, float)):
                new = not child.value if isinstance(child.value, bool) else child.value + 1
                around = ast.unparse(node) if isinstance(node, ast.expr) else text
                yield line, f'{around}: {text} -> {new}', lambda n=new, put=put: put(ast.Constant(n))
            elif isinstance(child, ast.UnaryOp):
                yield line, f'{text} -> {ast.unparse(child.operand)}', lambda c=child, put=put: put(c.operand)
            elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
                yield line, f'{text} -> pass', lambda put=put: put(ast.Pass())
            elif isinstance(child, (ast.If, ast.IfExp)) and not isinstance(child.test, (ast.Compare, ast.UnaryOp)):
                test = ast.unparse(child.test)
                yield line, f'if {test} -> if not', lambda c=child: setattr(c, 'test', ast.UnaryOp(ast.Not(), c.test))
            yield from changes(child)


def mutant(source: str, number: int | None) -> ast.Module:
    """The tree of a module with one change, or none."""
    tree = ast.parse(source)
    if number is not None:
        list(changes(tree))[number][2]()
    return ast.fix_missing_locations(tree)


def tests_pass(file: Path, tree: ast.Module, tests: list[str], seconds: int) -> tuple[bool, float]:
    """Whether tests pass with a changed module, and their CPU seconds. Tests that take longer than allowed fail."""
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        signal.alarm(20 * seconds)  # a deadlock
        get_code = importlib.machinery.SourceFileLoader.get_code

        def changed_code(loader, name):
            return compile(tree, str(file), 'exec') if Path(loader.path) == file else get_code(loader, name)

        importlib.machinery.SourceFileLoader.get_code = changed_code
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
        os._exit(pytest.main(['-x', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', *tests]))
    _, status, usage = os.wait4(pid, 0)
    return status == 0, usage.ru_utime + usage.ru_stime


def forget_package() -> None:
    """Lets children import the package and BasicSR, whose registries it fills, once more."""
    for name in [name for name in sys.modules if name.split('.')[0] in ('pisr_plugin', 'basicsr')]:
        del sys.modules[name]


def main() -> int:
    """Runs the mutants; the exit code is 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('modules', nargs='*', help='of TARGETS, such as distill/taps (default: all)')
    parser.add_argument('--sample', type=int, metavar='N', help='N mutants drawn at random, the same in every call')
    parser.add_argument('--minutes', type=float, default=1e9, metavar='M', help='end after M minutes')
    args = parser.parse_args()
    results = {}
    if RESULTS.exists():
        results = {tuple(key): survived for *key, survived in map(json.loads, RESULTS.read_text().splitlines())}
    found = []
    for module in args.modules or TARGETS:
        source = (ROOT / f'pisr_plugin/{module}.py').read_text()
        found += [(module, number, line, text) for number, (line, text, _) in enumerate(changes(ast.parse(source)))]
    random.Random(0).shuffle(found)
    found = found[: args.sample]
    forget_package()
    limits: dict[str, int] = {}
    deadline = time.monotonic() + 60 * args.minutes
    for module, number, line, text in found:
        if (module, line, text) in results or time.monotonic() > deadline:
            continue
        file = ROOT / f'pisr_plugin/{module}.py'
        source, tests = file.read_text(), [f'tests/test_{name}.py' for name in TARGETS[module]]
        if module not in limits:
            passed, seconds = tests_pass(file, mutant(source, None), tests, 3600)
            limits[module] = int(3 * seconds) + 10 if passed else 0
            if not passed:
                print(f'{module}: left out, its tests fail without a change: {" ".join(tests)}', file=sys.stderr)
        if not limits[module]:
            continue
        survived, _ = tests_pass(file, mutant(source, number), tests, limits[module])
        results[module, line, text] = survived
        with RESULTS.open('a') as log:
            print(json.dumps([module, line, text, survived]), file=log)
        print('SURVIVED' if survived else 'killed  ', f'pisr_plugin/{module}.py:{line}', text, flush=True)
    tried = Counter(module for module, *_ in results)
    survivors = Counter(module for (module, *_), survived in results.items() if survived)
    for module, count in tried.items():
        print(f'{module}: {count - survivors[module]} of {count} noticed')
    print(f'{tried.total() - survivors.total()} of {tried.total()} noticed; {len(found)} can be made')
    return 0


if __name__ == '__main__':
    sys.exit(main())
