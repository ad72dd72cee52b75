"""What all command lines share: flags, exit codes, how mistakes are told."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec

from pisr_plugin.engine.recipe import compose, override
from pisr_plugin.engine.schema import check_options
from pisr_plugin.engine.stages import Stage, select, unroll
from pisr_plugin.errors import InstallError, OptionsError, PISRError

STOPPED = 130  # the exit code of a run that was interrupted and can be resumed


def recipe_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that every recipe-driven tool takes, named as in BasicSR."""
    parser = argparse.ArgumentParser(description=description)
    add_recipe_flags(parser)
    return parser


def add_recipe_flags(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds the flags that choose and change a recipe."""
    parser.add_argument('-opt', required=required, metavar='RECIPE', help='recipe or resolved options file (YAML)')
    parser.add_argument(
        '--force_yml',
        nargs='+',
        default=[],
        metavar='A:B=C',
        help='change options, e.g. train:total_iter=1000 network_g:num_feat=52',
    )
    parser.add_argument('--stage', help='one stage of the recipe instead of all')
    add_plugin_flag(parser)


def add_plugin_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that :func:`import_plugins` reads."""
    parser.add_argument(
        '--plugin',
        action='append',
        default=[],
        metavar='MODULE',
        help='import this module first, for the networks and losses that it registers',
    )


def load_recipe(args: argparse.Namespace) -> dict:
    """The recipe that the flags of :func:`recipe_parser` describe, its plugins imported."""
    import_plugins(args.plugin)
    return override(compose(args.opt), args.force_yml)


def load_stage(args: argparse.Namespace) -> Stage:
    """The stage of the recipe that ``--stage`` names, else the last, its options checked."""
    stages = unroll(load_recipe(args))
    [stage] = select(stages, args.stage or stages[-1].name)
    check_options(stage.options, stage.place)
    return stage


def named_options(args: argparse.Namespace) -> set[str]:
    """Option paths that ``--force_yml`` sets, written with dots."""
    return {entry.partition('=')[0].replace(':', '.') for entry in args.force_yml}


def import_plugins(plugins: Iterable[str]) -> None:
    """Imports what ``--plugin`` names, so that it registers its networks and losses."""
    sys.path.insert(0, '')  # a plugin may lie in the current folder, as for a BasicSR train.py
    for plugin in plugins:
        try:
            importlib.import_module(plugin)
        except ImportError as error:
            raise OptionsError(f'--plugin {plugin}: {error}') from None


def require(what: str, packages: Iterable[str]) -> None:
    """Makes sure that packages of an extra of setup.py are there.

    Args:
        what: Needs them.
        packages: Their names.

    Raises:
        InstallError: some are not installed.
    """
    missing = [package for package in packages if not find_spec(package)]
    if missing:
        raise InstallError(f'{what} needs what is not installed: pip install {" ".join(missing)}')


def run(command: Callable[[], int | None]) -> int:
    """Runs a command and turns mistakes of the user into one message and exit code 2."""
    try:
        return command() or 0
    except PISRError as error:
        if str(error):  # else another rank has told it
            print(f'error: {error}', file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder without permission
        print(f'error: {error.filename or "writing"}: {error.strerror or error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return STOPPED
