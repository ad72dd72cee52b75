"""Lets tools that are built on spandrel load this package's students.

``install()``; then ``spandrel.ModelLoader().load_from_file('fsrcnn_x2.safetensors')`` gives an image model of spandrel,
which takes and returns RGB images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from spandrel import MAIN_REGISTRY, Architecture, ArchSupport, ImageModelDescriptor, ModelTiling, SizeRequirements
from torch import Tensor, nn

from pisr_plugin.archs.network_info import required_inputs
from pisr_plugin.inference import checkpoint
from pisr_plugin.inference.card import read_card
from pisr_plugin.inference.descriptor import ModelDescriptor, build
from pisr_plugin.inference.find_model import list_models
from pisr_plugin.inference.identify import match
from pisr_plugin.inference.predict import upscale_rgb
from pisr_plugin.utils.errors import CheckpointError


class Student(Architecture[nn.Module]):
    """All networks of this package that upscale, told by their tensors."""

    def __init__(self) -> None:
        super().__init__(id='pisr_plugin', detect=lambda weights: _find(weights) is not None)

    def load(self, state_dict: Mapping[str, Any]) -> ImageModelDescriptor[nn.Module]:
        """Builds the network that a state dict belongs to.

        Raises:
            CheckpointError: the tensors fit several scales, and no model of `pisr-list models` has these values.
        """
        found = _find(state_dict)
        assert found is not None  # detect has said so
        options, scales = found
        if len(scales) > 1:
            raise CheckpointError(
                f'{options["type"]} has the same tensors at several scales. Expected one of x'
                f'{", x".join(map(str, scales))} to be known: put the file with its card into a folder of PISR_MODELS.'
            )
        scale = scales[0]
        net = build({**options, 'upscale': scale}).eval()
        model = ModelDescriptor.of('student', net, options, scale, torch.device('cpu'))
        return ImageModelDescriptor(
            net,
            getattr(net, 'convert_released', dict)(state_dict),
            architecture=self,
            purpose='SR',
            tags=[options['type']],
            supports_half=False,  # not tried
            supports_bfloat16=False,
            scale=scale,
            input_channels=3,
            output_channels=3,
            size_requirements=SizeRequirements(multiple_of=model.window),
            tiling=ModelTiling.DISCOURAGED if model.tile_pad is None else ModelTiling.SUPPORTED,
            call_fn=lambda network, rgb: upscale_rgb(network, rgb, on_y=model.channels == 1),
        )


def install() -> None:
    """Adds the networks to spandrel's main registry, once."""
    MAIN_REGISTRY.add(ArchSupport.from_architecture(Student()), ignore_duplicates=True)


def _find(weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], list[int]] | None:
    """Returns options and possible scales: of the model with a name that has these values, else told by the shapes."""
    for path in list_models().values():
        card = read_card(path)
        known = checkpoint.load_weights(card.weights, card.param_key)
        if known.keys() == weights.keys() and all(torch.equal(known[key], weights[key].cpu()) for key in known):
            return card.network, [card.scale]
    found = match(weights)
    if (
        found is None
        or found.share < 1
        or 'gt' in required_inputs(build({**found.options, 'upscale': found.scales[0]}))
    ):
        return None
    return found.options, found.scales
