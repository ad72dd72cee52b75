"""Distillation losses. Importing this package registers every loss of its modules with BasicSR."""

from pisr_plugin.utils.registration import import_modules

import_modules(__name__)
