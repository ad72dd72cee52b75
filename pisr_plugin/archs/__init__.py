"""Networks, registered with BasicSR by importing this package."""

from basicsr.utils.registry import ARCH_REGISTRY

from pisr_plugin.distill.estimators import Adapter, LocationFreeScale, LocationScale

from .bicubic_arch import Bicubic
from .carn_arch import CARN
from .carnm_arch import CARNM
from .erfdn_arch import ERFDN
from .fsrcnn_arch import FSRCNN
from .hrfsrcnn_arch import HRFSRCNN
from .idn_arch import IDN
from .imdn_arch import IMDN
from .kdsr_arch import KDSRStudent, KDSRTeacher
from .pi_teacher_arch import PIEncoder, PITeacher, TeacherOutput
from .rfdn_arch import RFDN
from .vdsr_arch import VDSR

# Recipes name estimators by type like any network; their own file does without BasicSR.
for _estimator in (Adapter, LocationFreeScale, LocationScale):
    ARCH_REGISTRY.register(_estimator)

__all__ = [
    'Bicubic',
    'CARN',
    'CARNM',
    'ERFDN',
    'FSRCNN',
    'HRFSRCNN',
    'IDN',
    'IMDN',
    'KDSRStudent',
    'KDSRTeacher',
    'RFDN',
    'VDSR',
    'Adapter',
    'LocationFreeScale',
    'LocationScale',
    'PIEncoder',
    'PITeacher',
    'TeacherOutput',
]
