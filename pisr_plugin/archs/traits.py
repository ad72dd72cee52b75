"""What a network is like, by its options or by what it declares."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import redirect_stdout

from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn


def input_names(net: nn.Module) -> tuple[str, ...]:
    """What a network sees of an image pair: what it declares in ``inputs``, else ``('lq',)``."""
    return tuple(getattr(net, 'inputs', ('lq',)))


def input_channels(options: Mapping, default: int = 3) -> int:
    """Channels that a network of these options takes, a teacher's decoder standing for it."""
    return argument(_inner(options), 'num_in_ch', 'in_chans', 'in_channels', default=default)


def window_size(options: Mapping) -> int:
    """Side of the windows that a network works in, of which its input must hold whole ones; 1 where it has none.

    A teacher's are those of its decoder.
    """
    window = argument(_inner(options), 'window_size', default=1)
    return window if isinstance(window, int) else 1


def argument(options: Mapping, *names: str, default: object) -> object:
    """The value that a network of these options will see for the first of ``names`` it knows.

    Args:
        options: Options of a network, with its type.
        names: What networks call this argument.
        default: Taken when the network knows none of them.
    """
    with redirect_stdout(None):  # BasicSR prints when a name has its suffix
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
