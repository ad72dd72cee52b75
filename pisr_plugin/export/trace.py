"""Traces a network to the graph that every format is written from."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pisr_plugin.archs.network_info import split_output
from pisr_plugin.inference.descriptor import ModelDescriptor
from pisr_plugin.utils.errors import OptionsError, first_line

# Sides in windows from which on a graph shall hold; the second where a network computes small images in another way
SMALLEST = (1, 32)


class _Exported(nn.Module):
    """A network that takes ``lq`` and returns the image alone, both in float32 whatever its weights are."""

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net = net.to(dtype)
        self.dtype = dtype

    def forward(self, lq: Tensor) -> Tensor:
        return split_output(self.net(lq.to(self.dtype)))[0].float()


def trace(model: ModelDescriptor, half: bool = False) -> ExportedProgram:
    """Returns the graph of a network with free height and width.

    Args:
        model: The network, on the CPU. It stays as it is.
        half: Whether weights and features are float16. Input and output are float32 all the same.

    Raises:
        OptionsError: torch.export cannot trace the network, or only for images of one size.
    """
    assert model.net is not None
    net = copy.deepcopy(model.net).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    height, width = (model.window * (-(-side // model.window)) for side in (40, 48))
    lq = torch.rand(1, model.channels, height, width, generator=torch.Generator().manual_seed(0))
    exported = _Exported(net, torch.float16 if half else torch.float32).eval()
    for smallest in SMALLEST:
        sides = {axis: model.window * Dim(name, min=smallest) for axis, name in ((2, 'height'), (3, 'width'))}
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter('ignore')  # of torch about itself
                return torch.export.export(exported, (lq,), dynamic_shapes={'lq': sides}, strict=False)
        except Exception as error:  # a network can fail in any way while it is traced
            problem = first_line(error)
    raise OptionsError(f'{model.name}: torch.export cannot trace this network: {problem}')
