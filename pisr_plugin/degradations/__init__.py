"""Degradations of training batches: importing this package registers the class of every module in it."""

from pisr_plugin.utils.registration import import_modules

import_modules(__name__)
