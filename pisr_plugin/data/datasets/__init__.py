"""Datasets: importing this package registers the class of every module in it with BasicSR."""

from pisr_plugin.utils.registration import import_modules

import_modules(__name__)
