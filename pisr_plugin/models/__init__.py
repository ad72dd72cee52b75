"""Models. Importing this package registers every model of its modules with BasicSR."""

from pisr_plugin.utils.registration import import_modules

import_modules(__name__)
