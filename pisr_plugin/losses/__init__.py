"""Distillation losses, registered with BasicSR by importing this package."""

from .affinity_loss import FeatureAffinityLoss
from .attention_loss import AttentionTransferLoss
from .feature_loss import FeatureMAELoss
from .frequency_loss import FocalFrequencyLoss, FrequencyLoss
from .hint_loss import HintLoss
from .representation_loss import RepresentationKLLoss
from .statistics_loss import StatisticalMapLoss
from .vid_loss import VIDGaussianLoss, VIDLaplaceLoss, vid_gaussian_nll, vid_laplace_nll

__all__ = [
    'AttentionTransferLoss',
    'FeatureAffinityLoss',
    'FeatureMAELoss',
    'FocalFrequencyLoss',
    'FrequencyLoss',
    'HintLoss',
    'RepresentationKLLoss',
    'StatisticalMapLoss',
    'VIDGaussianLoss',
    'VIDLaplaceLoss',
    'vid_gaussian_nll',
    'vid_laplace_nll',
]
