"""Metrics that BasicSR lacks, registered with it by importing this package."""

from .ifc import calculate_ifc
from .perceptual import calculate_dists, calculate_lpips

__all__ = ['calculate_dists', 'calculate_ifc', 'calculate_lpips']
