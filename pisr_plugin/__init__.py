"""Privileged-information distillation for efficient image super-resolution, as a plugin for BasicSR.

Importing it makes BasicSR importable (:mod:`pisr_plugin.compat`) and registers networks, losses, metrics, models and
datasets with it.
"""

from . import compat

__version__ = '0.1.0'

# before anything that imports basicsr
compat.apply()

from . import archs, losses, metrics, models  # noqa: E402
from .data import blurred_dataset, patch_store_dataset, second_order  # noqa: E402, F401  (for their registration)

__all__ = ['archs', 'losses', 'metrics', 'models']
