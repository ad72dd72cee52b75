"""Privileged-information distillation for efficient image super-resolution, as a plugin for BasicSR."""

from . import compat

__version__ = '0.1.0'

# before anything that imports basicsr
compat.apply()
