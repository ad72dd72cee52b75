"""Networks, registered with BasicSR by importing this package."""

from basicsr.utils.registry import ARCH_REGISTRY

from pisr_plugin.distill.estimators import Adapter, LocationScale

from .bicubic_arch import Bicubic
from .fsrcnn_arch import FSRCNN
from .hrfsrcnn_arch import HRFSRCNN
from .pi_teacher_arch import PIEncoder, PITeacher, TeacherOutput
from .rfdn_arch import RFDN

# Recipes name estimators by type like any network; their own file does without BasicSR.
for _estimator in (Adapter, LocationScale):
    ARCH_REGISTRY.register(_estimator)

__all__ = ['Bicubic', 'FSRCNN', 'HRFSRCNN', 'RFDN', 'Adapter', 'LocationScale', 'PIEncoder', 'PITeacher', 'TeacherOutput']
