"""What a network sees, returns and works on, by what it declares or by its options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn


def required_inputs(net: nn.Module) -> tuple[str, ...]:
    """Returns what a network sees of an image pair: its attribute ``inputs``, or ``('lq',)`` without one."""
    return tuple(getattr(net, 'inputs', ('lq',)))


def split_output(output: object) -> tuple[Tensor, Tensor | None]:
    """Separates the reconstruction from the compact feature that an hourglass teacher returns beside it.

    Args:
        output: What a network returned: an image (N, C, H, W), or a pair of image and compact feature.

    Returns:
        The image, and the compact feature or None.
    """
    return output if isinstance(output, tuple) else (output, None)


def input_channels(options: Mapping, default: int = 3) -> int:
    """Returns the number of channels of a network's input; for a teacher, of its decoder's.

    Args:
        options: Options of a network, with ``type``.
        default: Returned when neither the options nor the network's signature name it.
    """
    return argument(_inner(options), 'num_in_ch', 'in_chans', 'in_channels', default=default)


def window_size(options: Mapping) -> int:
    """Returns the side of a network's attention windows in pixels, 1 without windows; for a teacher, of its decoder's.

    The sides of its input must be multiples of this.

    Args:
        options: Options of a network, with ``type``.
    """
    window = argument(_inner(options), 'window_size', default=1)
    return window if isinstance(window, int) else 1


def argument(options: Mapping, *names: str, default: Any) -> Any:
    """Returns the value that a network of these options gets for an argument.

    Args:
        options: Options of a network, with ``type``.
        names: Names that networks use for this argument; the first that the network knows counts.
        default: Returned when the network knows none of them.
    """
    with redirect_stdout(None):  # BasicSR prints a line when a name carries its suffix
        network = ARCH_REGISTRY.get(options['type'])
    parameters = inspect.signature(network).parameters
    for name in names:
        if name in options:
            return options[name]
        if name in parameters and parameters[name].default is not inspect.Parameter.empty:
            return parameters[name].default
    return default


def _inner(options: Mapping) -> Mapping:
    decoder = options.get('decoder')
    return decoder if isinstance(decoder, Mapping) and 'type' in decoder else options
