"""From a name, or options and a checkpoint, to a network that is ready to use: the one way that every command takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from basicsr.archs import build_network
from torch import Tensor, nn

from pisr_plugin.archs.network_info import argument, input_channels, required_inputs, window_size
from pisr_plugin.data.storage.photo_files import read_photo
from pisr_plugin.inference import checkpoint
from pisr_plugin.inference.card import card_file, read_card
from pisr_plugin.inference.find_model import find_model
from pisr_plugin.inference.predict import find_tile_pad
from pisr_plugin.inference.tiles import upscale_pixels, upscale_tensor
from pisr_plugin.utils.errors import CheckpointError, OptionsError


@dataclass
class ModelDescriptor:
    """A network, and what must be known to run it on images.

    Attributes:
        name: Name in tables.
        net: The network in evaluation mode; None stands for bicubic interpolation.
        channels: Channels of its input: 1 for luminance, 3 for RGB.
        scale: Upscaling factor.
        window: Side of its attention windows in pixels of the LR image, 1 without windows.
        device: The device that it runs on.
        inputs: What it sees of an image pair: ``lq``, ``gt`` or both.
    """

    name: str
    net: nn.Module | None
    channels: int
    scale: int
    window: int = 1
    device: torch.device = torch.device('cpu')
    inputs: tuple[str, ...] = ('lq',)

    @classmethod
    def of(
        cls, name: str, net: nn.Module, options: Mapping[str, Any], scale: int, device: torch.device, channels: int = 3
    ) -> ModelDescriptor:
        """Describes a network that is already built.

        Args:
            name: Name in tables.
            net: The network in evaluation mode on ``device``.
            options: Its options, with ``type``.
            scale: Upscaling factor.
            device: The device that it runs on.
            channels: Channels of its input where neither options nor network name them.
        """
        channels = input_channels(options, channels)
        return cls(name, net, channels, scale, window_size(options), device, required_inputs(net))

    @property
    def sees_gt(self) -> bool:
        """Whether the network is a teacher that sees the HR image."""
        return 'gt' in self.inputs

    @cached_property
    def tile_pad(self) -> int | None:
        """Pixels of context that a tile of an image needs on every side; None: tiles are impossible.

        Finding it takes a moment, so it is done once.
        """
        assert self.net is not None
        try:
            return find_tile_pad(self.net, torch.zeros(1, self.channels, 1, 1, device=self.device), self.window)
        except OptionsError:
            return None

    @overload
    def upscale(self, image: np.ndarray | str | os.PathLike) -> np.ndarray: ...

    @overload
    def upscale(self, image: Tensor) -> Tensor: ...

    def upscale(self, image: np.ndarray | Tensor | str | os.PathLike) -> np.ndarray | Tensor:
        """Upscales an image of any size, in tiles where it is large. The pixels are those of ``pisr-upscale``.

        Args:
            image: Pixels (H, W, 3), uint8 or uint16; also gray ones (H, W), and with a channel of transparency,
                (H, W, 4). Or the file of a photo. Or images (3, H, W) or (N, 3, H, W), floating point in [0, 1].

        Returns:
            For pixels and a file: pixels of the same type. For a tensor: a tensor of its type on its device.

        Raises:
            DataError: the file is no photo.
            ValueError: the pixels or the tensor have another shape or type.
        """
        if isinstance(image, Tensor):
            return upscale_tensor(self, image)
        if isinstance(image, np.ndarray):
            return upscale_pixels(self, image)
        return upscale_pixels(self, read_photo(Path(image)).array())

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.net.parameters()) if self.net is not None else 0


def build(options: Mapping[str, Any], option_path: str = '', builder: Callable = build_network) -> nn.Module:
    """Builds a registered network, or what another builder of BasicSR builds.

    Args:
        options: Its options, with ``type``.
        option_path: Option path of ``options``, for messages.
        builder: ``build_network`` or ``build_loss`` of BasicSR.

    Raises:
        OptionsError: the constructor refuses an argument.
    """
    try:
        return builder(dict(options))
    except (TypeError, ValueError, AssertionError, NotImplementedError, KeyError, AttributeError) as error:
        place = f'{option_path}: ' if option_path else ''
        raise OptionsError(f'{place}{options.get("type")} cannot be built: {error}') from None


def load_model(
    model: str | os.PathLike | Mapping[str, Any],
    weights: str | os.PathLike | None = None,
    param_key: str | None = 'params',
    *,
    name: str = '',
    scale: int | None = None,
    channels: int = 3,
    device: str | torch.device = 'cpu',
    allow_gt: bool = False,
) -> ModelDescriptor:
    """Builds a network and loads its weights.

    Example::

        model = load_model('fsrcnn_x2')
        model = load_model('experiments/pisr_fsrcnn_x2')
        model = load_model({'type': 'FSRCNN', 'upscale': 2}, 'net_g_latest.pth')

    Args:
        model: The name of a model (`pisr-list models`), a weights file or a run folder, see
            :func:`pisr_plugin.inference.find_model.find_model`; or options of a network, with ``type``.
        weights: With options: the checkpoint, see :func:`pisr_plugin.inference.checkpoint.load_weights`.
        param_key: With options: state dict in the file to load, ``params`` or ``params_ema``.
        name: Name in tables; by default the model's, or the network's type.
        scale: Upscaling factor; by default what the model's card or the options say.
        channels: With options: channels of the input where neither options nor network name them.
        device: The device to load the network onto.
        allow_gt: Whether to accept a teacher, which sees the HR image.

    Returns:
        The network in evaluation mode, described.

    Raises:
        OptionsError: the network cannot be built, or is a teacher and ``allow_gt`` is False.
        CheckpointError: there is no such model, or the file is missing, damaged or belongs to another network.
    """
    if isinstance(model, Mapping):
        if weights is None:
            raise OptionsError('load_model: weights: missing. Expected a checkpoint for the network of these options.')
        options = model
        scale = scale or argument(options, 'upscale', 'scale', default=1)
        _compare_with_card(options, scale, weights)
    else:
        card = find_model(model, scale)
        options, weights, param_key, name = card.network, card.weights, card.param_key, name or card.name
        scale, channels = card.scale, card.channels
    net = build(options).eval()
    if not allow_gt and 'gt' in required_inputs(net):
        raise OptionsError(f'{options["type"]} sees the HR image, so it cannot upscale one. Name a student.')
    checkpoint.load_network(net, weights, param_key)
    device = torch.device(device)
    return ModelDescriptor.of(name or options['type'], net.to(device), options, scale, device, channels)


def _compare_with_card(options: Mapping[str, Any], scale: int, weights: str | os.PathLike) -> None:
    """Refuses options that differ from those on the card of a weights file, if it has one."""
    if not card_file(weights).is_file():
        return
    card = read_card(weights)
    found = {'type': options['type'], 'scale': scale}
    expected = {'type': card.network['type'], 'scale': card.scale}
    for key, value in expected.items():
        if found[key] != value:
            raise CheckpointError(
                f'{weights}: another {key} than its card says (found {found[key]!r}). Expected {value!r}, see '
                f'{card_file(weights)}.'
            )
