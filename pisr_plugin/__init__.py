"""Privileged-information distillation for efficient image super-resolution, as a plugin for BasicSR.

Importing it makes BasicSR importable (:mod:`pisr_plugin.compat`) and registers networks, losses, metrics, models,
datasets and degradations with it. ``__all__`` lists the names that stay stable; docs/python.md shows how to use them.
"""

from pisr_plugin import compat
from pisr_plugin.version import __version__

# before anything that imports basicsr
compat.apply()

from pisr_plugin import archs, degradations, losses, metrics, models  # noqa: E402
from pisr_plugin.archs.pi_teacher_arch import PITeacher  # noqa: E402
from pisr_plugin.data import datasets  # noqa: E402
from pisr_plugin.data.storage.lmdb_env import share_with_basicsr  # noqa: E402
from pisr_plugin.distill.links import Link, LinkedNetwork, build_links, transfer_weights  # noqa: E402
from pisr_plugin.distill.taps import TapReader  # noqa: E402
from pisr_plugin.inference.descriptor import load_model  # noqa: E402

share_with_basicsr()

__all__ = [
    '__version__',
    'archs',
    'datasets',
    'degradations',
    'losses',
    'metrics',
    'models',
    'Link',
    'LinkedNetwork',
    'PITeacher',
    'TapReader',
    'build_links',
    'load_model',
    'transfer_weights',
]
