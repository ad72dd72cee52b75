"""Models registered with BasicSR."""

from .pisr_model import PISRModel

__all__ = ['PISRModel']
