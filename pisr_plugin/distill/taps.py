"""Read the features of any network by module path, without touching the network.

A tap is written ``path``, ``path@input`` or ``path#2``, e.g. ``body.3``, ``upsampler@input``, ``block#2@input``:
the output (or first input) of the module at that dotted path, at its second call when it is called several times.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from pisr_plugin.errors import TapError, choice

_SYNTAX = re.compile(r'(?P<path>[^@#]+)(#(?P<call>[1-9]\d*))?(?P<side>@input|@output)?')


class Tap(NamedTuple):
    """A parsed tap."""

    path: str
    call: int | None  # 1-based; None: the module must be called exactly once
    at_input: bool

    @classmethod
    def parse(cls, text: str) -> Tap:
        """Parses ``path[#call][@input]``.

        Raises:
            TapError: ``text`` does not follow that form.
        """
        match = _SYNTAX.fullmatch(str(text))
        if match is None:
            raise TapError(f'{text!r} is not a tap. Write a module path, e.g. body.3, body.3@input or body.3#2.')
        call = match['call']
        return cls(match['path'], int(call) if call else None, match['side'] == '@input')


class _AllTapsRead(Exception):
    """Ends a forward pass whose remaining layers nobody asked for."""


class TapReader:
    """Reads features at the taps of one network while it runs.

    Features are what the tapped module really produced: where a later layer works in place on the same memory, the
    reader keeps a copy instead. Which taps need one is learnt in the first pass, so the others cost nothing.

    Args:
        net: Any network. It is not changed; hooks exist only inside :meth:`reading`.
        taps: Taps to read, see the module's docstring.

    Raises:
        TapError: a tap is malformed or names no module of ``net``.

    Example::

        reader = TapReader(net, ['body.3'])
        with reader.reading() as features:
            output = net(lq)
        features['body.3']
    """

    def __init__(self, net: nn.Module, taps: Iterable[str]) -> None:
        self.net = net
        self.taps = {text: Tap.parse(text) for text in taps}
        self._copies: dict[str, bool] = dict.fromkeys(self.taps, True)
        self._settled = False
        modules = dict(net.named_modules())
        for text, tap in self.taps.items():
            if tap.path not in modules or tap.path == '':
                raise TapError(f'{type(net).__name__} has no tap {text!r}. {choice(tap.path, filter(None, modules))}')

    @contextmanager
    def reading(self):
        """Yields a dict that holds ``{tap: feature}`` once the network has run inside the block.

        Raises:
            TapError: a tapped module did not run, ran several times without a call being chosen, or did not
                produce a tensor.
        """
        features: dict[str, Tensor] = {}
        with self._hooked(features, stop=False):
            yield features
            self._settle(features)

    def read(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Runs the network only as far as its last tap and returns ``{tap: feature}``."""
        features: dict[str, Tensor] = {}
        # The first pass runs to its end: it has to see later calls of a module and later in-place layers.
        with self._hooked(features, stop=self._settled):
            try:
                self.net(*inputs)
            except _AllTapsRead:
                pass
            self._settle(features)
        return features

    @contextmanager
    def _hooked(self, features: dict[str, Tensor], stop: bool):
        calls = dict.fromkeys(self.taps, 0)
        originals: dict[str, tuple[Tensor, int]] = {}

        def record(text: str, tap: Tap, value: object) -> None:
            calls[text] += 1
            if tap.call is None and calls[text] > 1:
                raise TapError(
                    f'{type(self.net).__name__}: {tap.path} is called more than once in a forward pass. '
                    f'Choose the call: {tap.path}#1, {tap.path}#2, ...'
                )
            if tap.call not in (None, calls[text]):
                return
            if not isinstance(value, Tensor):
                raise TapError(
                    f'{type(self.net).__name__}: {text} yields {type(value).__name__}, not a tensor. '
                    'Tap a module inside it.'
                )
            features[text] = value.clone() if self._copies[text] else value
            originals[text] = (value, value._version)
            if stop and len(features) == len(self.taps):
                raise _AllTapsRead

        def attach(text: str, tap: Tap):
            module = self.net.get_submodule(tap.path)
            if tap.at_input:
                return module.register_forward_pre_hook(
                    lambda _, args, kwargs: record(text, tap, args[0] if args else next(iter(kwargs.values()), None)),
                    with_kwargs=True,
                )
            return module.register_forward_hook(lambda _, args, output: record(text, tap, output))

        self._originals, self._calls = originals, calls
        handles = [attach(text, tap) for text, tap in self.taps.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._originals = {}

    def _settle(self, features: dict[str, Tensor]) -> None:
        """Checks that every tap was read and learns which of them later layers overwrite."""
        for text, tap in self.taps.items():
            if text not in features:
                ran = self._calls[text]
                what = f'ran {ran} time(s)' if ran else 'did not run'
                raise TapError(
                    f'{type(self.net).__name__}: {text} was not reached: {tap.path} {what} in the forward pass.'
                )
        overwritten = {text: value._version != version for text, (value, version) in self._originals.items()}
        if not self._settled:
            self._copies, self._settled = overwritten, True
        for text, changed in overwritten.items():
            if changed and not self._copies[text]:
                raise TapError(
                    f'{type(self.net).__name__}: {text} was overwritten by a later layer in this pass but not '
                    'in the first one. Build a new reader for a network whose control flow has changed.'
                )
