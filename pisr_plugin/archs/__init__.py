"""Networks. Importing this package registers every network of its modules, and the estimators, with BasicSR."""

from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from pisr_plugin.distill import estimators
from pisr_plugin.utils.registration import import_modules

import_modules(__name__)

# Recipes name estimators by type, like networks. Their own file does not import BasicSR, so they are registered here.
for _value in list(vars(estimators).values()):
    if isinstance(_value, type) and issubclass(_value, nn.Module):
        ARCH_REGISTRY.register(_value)
