"""Privileged-information distillation for efficient image super-resolution, as a plugin for BasicSR.

Importing it makes BasicSR importable (:mod:`pisr_plugin.compat`) and registers networks, losses, models and a dataset
with it.
"""

from . import compat

__version__ = '0.1.0'

# before anything that imports basicsr
compat.apply()

from . import archs, losses, models  # noqa: E402
from .data import patch_store_dataset  # noqa: E402, F401  (registers)

__all__ = ['archs', 'losses', 'models']
