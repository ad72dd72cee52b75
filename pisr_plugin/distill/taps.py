"""Taps: features of any network, named by module path and read with hooks; the network is not changed.

A tap is written ``path``, ``path@input`` or ``path#2``, e.g. ``body.3``, ``upsampler@input``, ``block#2@input``. It is
the output (or the first input) of the module at that dotted path; ``#2`` chooses the second call of a module that is
called several times. ``.`` is the network itself: its output, or the first element of an output that is a tuple.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pisr_plugin.utils.errors import TapError, did_you_mean

_SYNTAX = re.compile(r'(?P<path>[^@#]+)(#(?P<call>[1-9]\d*))?(?P<side>@input|@output)?')


class Tap(NamedTuple):
    """A parsed tap.

    Attributes:
        path: Dotted module path; empty: the network itself.
        call: Number of the call, from 1; None: the module must be called exactly once.
        at_input: Whether the tap is the module's first input instead of its output.
    """

    path: str
    call: int | None
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
        path = match['path']
        return cls('' if path == '.' else path, int(call) if call else None, match['side'] == '@input')


class _AllTapsRead(Exception):
    """Raised inside a forward pass to skip the layers behind the last tap."""


class TapReader:
    """Reads features at the taps of one network while it runs.

    A later layer may overwrite a feature in place. The reader then returns a copy made in time. It learns in the first
    pass which taps need one; the others are not copied.

    Args:
        net: Any network. Hooks exist only inside :meth:`reading`, unless :meth:`attach` keeps them.
        taps: Taps to read, written as this module's docstring says.

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
        self._attached = False
        self._pass: _Pass | None = None
        # Taps that need a copy, for passes that stop at the last tap (True) and that run to the end (False):
        # a pass that stops may skip the layer that overwrites a feature.
        self._copied: dict[bool, frozenset[str]] = {}
        modules = dict(net.named_modules())
        for text, tap in self.taps.items():
            if tap.path not in modules:
                raise TapError(
                    f'{type(net).__name__} has no tap {text!r}. {did_you_mean(tap.path, filter(None, modules))}'
                )

    def attach(self) -> TapReader:
        """Keeps the hooks on the network from now on; they do nothing outside :meth:`reading` and :meth:`read`.

        Use it to read in every step, and for compiled networks, which do not see hooks that come and go.

        Returns:
            The reader itself.
        """
        if not self._attached:
            self._hook()
        self._attached = True
        return self

    @contextmanager
    def reading(self) -> Iterator[dict[str, Tensor]]:
        """Yields a dict that holds ``{tap: feature}`` once the network has run inside the block.

        Raises:
            TapError: a tapped module did not run, ran several times without a call being chosen, or did not
                produce a tensor.
        """
        with self._recording(stop=False) as features:
            yield features

    def read(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Runs the network up to its last tap and returns ``{tap: feature}``.

        Args:
            *inputs: Arguments of the network.
        """
        # The first pass runs to its end: only so the reader sees whether a tapped module is called once more.
        with self._recording(stop=bool(self._copied)) as features:
            try:
                self.net(*inputs)
            except _AllTapsRead:
                pass
        return features

    @contextmanager
    def _recording(self, stop: bool) -> Iterator[dict[str, Tensor]]:
        handles = [] if self._attached else self._hook()
        current = self._pass = _Pass(stop, self._copied.get(stop, frozenset(self.taps)))
        try:
            yield current.features
        finally:
            self._pass = None
            for handle in handles:
                handle.remove()
        self._learn(current)

    def _hook(self) -> list[RemovableHandle]:
        return [self._hook_one(text, tap) for text, tap in self.taps.items()]

    def _hook_one(self, text: str, tap: Tap) -> RemovableHandle:
        module = self.net.get_submodule(tap.path)
        if tap.at_input:
            return module.register_forward_pre_hook(
                lambda _, args, kwargs: self._record(text, tap, args[0] if args else next(iter(kwargs.values()), None)),
                with_kwargs=True,
            )
        return module.register_forward_hook(lambda _, args, output: self._record(text, tap, output))

    def _record(self, text: str, tap: Tap, value: object) -> None:
        now = self._pass
        if now is None:
            return
        call = now.calls[text] = now.calls.get(text, 0) + 1
        if tap.call is None and call > 1:
            raise TapError(
                f'{type(self.net).__name__}: {tap.path} is called more than once in a forward pass. '
                f'Choose the call: {tap.path}#1, {tap.path}#2, ...'
            )
        if tap.call not in (None, call):
            return
        if isinstance(value, tuple) and not tap.path and value:
            value = value[0]
        if not isinstance(value, Tensor):
            raise TapError(
                f'{type(self.net).__name__}: {text} yields {type(value).__name__}, not a tensor. '
                'Tap a module inside it.'
            )
        now.features[text] = value.clone() if text in now.copied else value
        if not torch.compiler.is_compiling():  # compiled code has no versions, and does not overwrite what is read
            now.versions[text] = (value, value._version)
        if now.stop and len(now.features) == len(self.taps):
            raise _AllTapsRead

    def _learn(self, done: _Pass) -> None:
        """Checks that every tap was read, and notes which of them later layers overwrote."""
        for text, tap in self.taps.items():
            if text not in done.features:
                ran = done.calls.get(text, 0)
                what = f'ran {ran} time(s)' if ran else 'did not run'
                raise TapError(
                    f'{type(self.net).__name__}: {text} was not reached: {tap.path} {what} in the forward pass.'
                )
        overwritten = frozenset(text for text, (value, version) in done.versions.items() if value._version != version)
        self._copied.setdefault(done.stop, overwritten)
        for text in overwritten - self._copied[done.stop]:
            raise TapError(
                f'{type(self.net).__name__}: {text} was overwritten by a later layer in this pass but not '
                'in the first one. Build a new reader for a network whose control flow has changed.'
            )


class _Pass:
    """What the hooks recorded in one forward pass.

    Args:
        stop: Whether to end the pass at the last tap.
        copied: Taps whose features are copied.
    """

    def __init__(self, stop: bool, copied: frozenset[str]) -> None:
        self.stop, self.copied = stop, copied
        self.features: dict[str, Tensor] = {}
        self.calls: dict[str, int] = {}
        self.versions: dict[str, tuple[Tensor, int]] = {}
