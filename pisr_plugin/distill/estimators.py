"""Estimators: small networks that turn a student's tapped feature into an estimate of the teacher's. Training only."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from pisr_plugin.utils.checks import check_choice, check_positive


class Estimate(NamedTuple):
    """Parameters of a distribution of the teacher's feature.

    Attributes:
        location: Centre of the distribution, of the shape of the teacher's feature.
        scale: Its width, positive; broadcasts to ``location``.
    """

    location: torch.Tensor
    scale: torch.Tensor


class LocationScale(nn.Module):
    """Estimates the location and scale of the teacher's feature from the student's (PISR, ECCV 2020, section 3.2).

    Two branches, each a 1x1 convolution, a PReLU with one slope and a 1x1 convolution; the scale branch ends in
    softplus. 12,770 parameters at 56 channels. Branches are named ``mean`` and ``var`` as in the authors' files
    (``vid_module_dict.<tap>_mean``, ``vid_module_dict.<tap>_var``); the hidden width is ``in_ch``.

    The losses of :mod:`pisr_plugin.losses.vid_loss` say whether the scale is Laplace's b or a Gaussian variance.

    Args:
        in_ch: Channels of the student's feature.
        out_ch: Channels of the teacher's feature.
        homoscedastic: What shares one scale in an image: None (nothing: one scale for each element, as in the paper),
            ``'C'`` (one scale for each channel), ``'HW'`` (one for each position), ``'CHW'`` (one for the image).

    Attributes:
        location: The branch that estimates the location; links use it alone for losses that take no scale.

    Shape:
        (N, in_ch, H, W) to location (N, out_ch, H, W) and scale (N, out_ch, H, W), (N, out_ch, 1, 1), (N, 1, H, W) or
        (N, 1, 1, 1) for the four values of ``homoscedastic``.

    Raises:
        ValueError: ``homoscedastic`` is none of these.
    """

    def __init__(self, *, in_ch: int, out_ch: int, homoscedastic: str | None = None) -> None:
        super().__init__()
        check_choice('homoscedastic', homoscedastic, (None, 'C', 'HW', 'CHW'))
        self.mean = _branch(in_ch, out_ch)
        self.var = _branch(in_ch, 1 if homoscedastic in ('HW', 'CHW') else out_ch)
        self.pool = homoscedastic in ('C', 'CHW')

    @property
    def location(self) -> nn.Module:
        return self.mean

    def forward(self, x: torch.Tensor) -> Estimate:
        scale = self.var(x)
        if self.pool:
            scale = scale.mean(dim=(2, 3), keepdim=True)
        return Estimate(location=self.mean(x), scale=F.softplus(scale))


class LocationFreeScale(nn.Module):
    """Estimates the location of the teacher's feature; its scale is a free parameter, the same for all images.

    The homoscedastic model of Variational Information Distillation (CVPR 2019, section 2), whose variance is
    softplus(parameter) + 1e-5 for each channel, starting at 5; its loss is VIDGaussianLoss with ``scale_factor: 1``,
    ``eps: 1e-5`` and ``official_constant: false``. The location branch is LocationScale's, so that replacing one by
    the other changes the scale only (the VID authors' has three convolutions without bias, and ReLU). There is no free
    scale for each position, because patches are cropped at random: a position has no meaning.

    Given the locations, the Gaussian loss is smallest where the variance is the mean squared residual that shares it,
    the Laplace loss where its b is the mean absolute residual.

    .. code-block:: yaml

        estimator: {type: LocationFreeScale, homoscedastic: C}
        loss: {type: VIDGaussianLoss, scale_factor: 1.0, eps: 1e-5, official_constant: false}

    Args:
        in_ch: Channels of the student's feature.
        out_ch: Channels of the teacher's feature.
        homoscedastic: ``'C'`` (one scale for each channel) or ``'CHW'`` (one scale for the layer).
        initial: Initial scale, above 0.

    Attributes:
        location: As of LocationScale.

    Shape:
        (N, in_ch, H, W) to location (N, out_ch, H, W) and scale (N, out_ch, 1, 1) or (N, 1, 1, 1).

    Raises:
        ValueError: ``homoscedastic`` is neither, or ``initial`` is not above 0.
    """

    def __init__(self, *, in_ch: int, out_ch: int, homoscedastic: str = 'C', initial: float = 5.0) -> None:
        super().__init__()
        check_choice('homoscedastic', homoscedastic, ('C', 'CHW'))
        check_positive('initial', initial)
        self.mean = _branch(in_ch, out_ch)
        # The inverse of softplus.
        start = initial + math.log(-math.expm1(-initial))
        self.raw_scale = nn.Parameter(torch.full((1, out_ch if homoscedastic == 'C' else 1, 1, 1), start))

    @property
    def location(self) -> nn.Module:
        return self.mean

    def forward(self, x: torch.Tensor) -> Estimate:
        scale = F.softplus(self.raw_scale).expand(len(x), -1, -1, -1)
        return Estimate(location=self.mean(x), scale=scale)


class Adapter(nn.Module):
    """One 1x1 convolution that gives the student's feature the teacher's number of channels.

    Args:
        in_ch: Channels of the student's feature.
        out_ch: Channels of the teacher's feature.

    Shape:
        (N, in_ch, H, W) to (N, out_ch, H, W).
    """

    def __init__(self, *, in_ch: int, out_ch: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_ch, out_ch, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def _branch(in_ch: int, out_ch: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_ch, in_ch, 1), nn.PReLU(), nn.Conv2d(in_ch, out_ch, 1))
