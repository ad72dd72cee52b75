"""Metrics that BasicSR lacks, registered with it by importing this package."""

from .ifc import calculate_ifc

__all__ = ['calculate_ifc']
