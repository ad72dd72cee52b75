"""Finds the modules of a package that register classes when they are imported."""

from __future__ import annotations

import importlib
import pkgutil


def import_modules(package: str) -> None:
    """Imports every module of a package, so that a new file needs no entry in a list.

    Args:
        package: Name of the package, such as ``pisr_plugin.degradations``.
    """
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f'{package}.'):
        importlib.import_module(module.name)
