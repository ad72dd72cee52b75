"""What all command lines share: flags, exit codes, how mistakes are told."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable

from pisr_plugin.engine.recipe import compose, override
from pisr_plugin.errors import OptionsError, PISRError

STOPPED = 130  # the exit code of a run that was interrupted and can be resumed


def recipe_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that every recipe-driven tool takes, named as in BasicSR."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('-opt', required=True, metavar='RECIPE', help='recipe or resolved options file (YAML)')
    parser.add_argument('--force_yml', nargs='+', default=[], metavar='A:B=C',
                        help='change options, e.g. train:total_iter=1000 network_g:num_feat=52')
    parser.add_argument('--stage', help='one stage of the recipe instead of all')
    parser.add_argument('--plugin', action='append', default=[], metavar='MODULE',
                        help='import this module first, for the networks and losses that it registers')
    return parser


def load_recipe(args: argparse.Namespace) -> dict:
    """The recipe that the flags of :func:`recipe_parser` describe, its plugins imported."""
    import_plugins(args.plugin)
    return override(compose(args.opt), args.force_yml)


def import_plugins(modules: list[str]) -> None:
    """Imports the user's packages of networks and losses."""
    sys.path.insert(0, '')  # a plugin may lie in the current folder, as for a BasicSR train.py
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise OptionsError(f'--plugin {module}: {error}') from None


def run(command: Callable[[], int | None]) -> int:
    """Runs a command and turns mistakes of the user into one message and exit code 2."""
    try:
        return command() or 0
    except PISRError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return STOPPED
