"""Metrics that BasicSR lacks. Importing this package registers every metric of its modules with BasicSR."""

from pisr_plugin.utils.registration import import_modules

import_modules(__name__)
