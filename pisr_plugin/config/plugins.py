"""Import the modules of users, so that they register their networks, losses, metrics, datasets and degradations."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pisr_plugin.config.compose import compose, override
from pisr_plugin.utils.errors import OptionsError, shown

GROUP = 'pisr_plugin.plugins'  # of entry points: an installed package names its module there


def import_plugins(names: Any, option_path: str) -> None:
    """Imports modules by name, from the installed packages or the current folder.

    Args:
        names: List of dotted module names; None: none.
        option_path: Where they stand, for messages.

    Raises:
        OptionsError: it is no list of names, or a module cannot be imported.
    """
    _import_installed()
    if names is None:
        return
    if not isinstance(names, list) or not all(
        isinstance(name, str) and all(part.isidentifier() for part in name.split('.')) for name in names
    ):
        raise OptionsError(f'{option_path}: wrong value (found {shown(names)}). Expected a list of module names.')
    if names and not {'', os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # last, so that no file of this folder replaces an installed package
    for name in names:
        _run(partial(importlib.import_module, name), f'{option_path} {name}')


@cache
def _import_installed() -> None:
    for entry in entry_points(group=GROUP):
        _run(entry.load, f'entry point {GROUP}: {entry.name}')


def _run(load: Callable[[], object], place: str) -> None:
    try:
        load()
    except (Exception, SystemExit) as error:  # a plugin is any code: whatever it raises is told in one message
        raise OptionsError(f'{place}: cannot import it ({type(error).__name__}: {error})') from error


def read_recipe(path: str | Path, overrides: Iterable[str] = ()) -> dict:
    """Composes a recipe, applies overrides, and imports the modules that its ``plugins`` name.

    Args:
        path: File of the recipe, or name of a recipe of the package.
        overrides: ``a:b=c`` entries of ``--force_yml``.

    Raises:
        OptionsError: as :func:`~pisr_plugin.config.compose.compose`, or a plugin cannot be imported.
    """
    recipe = override(compose(path), overrides)
    import_plugins(recipe.get('plugins'), 'plugins')
    return recipe
