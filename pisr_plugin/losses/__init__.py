"""Distillation losses, registered with BasicSR by importing this package."""

from .feature_loss import FeatureMAELoss
from .vid_loss import VIDGaussianLoss, VIDLaplaceLoss, vid_gaussian_nll, vid_laplace_nll

__all__ = ['FeatureMAELoss', 'VIDGaussianLoss', 'VIDLaplaceLoss', 'vid_gaussian_nll', 'vid_laplace_nll']
