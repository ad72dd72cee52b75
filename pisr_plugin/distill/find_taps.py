"""Run a network once on noise, record the calls of its modules, and find where to tap it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pisr_plugin.utils.devices import evaluating

# An upsampling block may contain a convolution and an activation at LR size; more layers than that are a body.
_LAYERS_BEFORE_GROWTH = 2


@dataclass
class Call:
    """One call of a module that outputs a tensor.

    Attributes:
        path: Dotted path of the module.
        number: Number of this call among the module's calls, from 1.
        begin: Time of its begin, counted in begins and ends of calls.
        end: Time of its end.
        times: Number of the module's calls.
        seen: First input and output, each with its version: later layers may overwrite a tensor in place.
        parameters: Number of parameters of all modules that had ended by then, this one included.
        leaf: Whether no other module ran inside.
        shuffles: Whether the module is a pixel shuffle.
    """

    path: str
    number: int
    begin: int
    end: int = 0
    times: int = 0
    seen: dict[str, tuple[Tensor, int]] = field(default_factory=dict, repr=False)
    parameters: int = 0
    leaf: bool = True
    shuffles: bool = False

    @property
    def source(self) -> Tensor | None:
        """The first input, if it is a tensor."""
        return self.seen['input'][0] if 'input' in self.seen else None

    @property
    def output(self) -> Tensor:
        """The output."""
        return self.seen['output'][0]


@dataclass
class Row:
    """One line of the table of taps.

    Attributes:
        tap: The tap, as recipes write it.
        calls: Number of calls of its module.
        shape: Shape of its feature.
        parameters: Number of parameters of all modules that ran before.
        notes: Remarks, e.g. that it is the default tap.
    """

    tap: str
    calls: int
    shape: tuple[int, ...]
    parameters: int
    notes: list[str] = field(default_factory=list)


def trace(net: nn.Module, inputs: Sequence[Tensor]) -> list[Call]:
    """Runs a network in evaluation mode, without gradients, and records the calls of its modules.

    Args:
        net: The network.
        inputs: Its inputs.

    Returns:
        The calls in the order in which they ended. Calls that output no tensor, and that of ``net`` itself, are left
        out.
    """
    calls: list[Call] = []
    with torch.no_grad(), evaluating(net), _noting(net, calls):
        net(*inputs)
    return calls


@contextmanager
def _noting(net: nn.Module, calls: list[Call]):
    running: list[Call] = []
    numbers: Counter[str] = Counter()
    counted: set[nn.Parameter] = set()
    moment = 0

    def note(call: Call, side: str, value: object) -> None:
        if isinstance(value, Tensor):
            call.seen[side] = (value, value._version)

    def begin(path: str, args: tuple, kwargs: dict) -> None:
        nonlocal moment
        moment += 1
        numbers[path] += 1
        if running:
            running[-1].leaf = False
        call = Call(path, numbers[path], moment)
        note(call, 'input', args[0] if args else next(iter(kwargs.values()), None))
        running.append(call)

    def end(module: nn.Module, output: object) -> None:
        nonlocal moment
        moment += 1
        call = running.pop()
        counted.update(module.parameters())
        call.end, call.parameters = moment, sum(p.numel() for p in counted)
        call.shuffles = isinstance(module, nn.PixelShuffle)
        note(call, 'output', output)
        if 'output' in call.seen:
            calls.append(call)

    handles = []
    for path, module in net.named_modules():
        if path:
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, args, kwargs, path=path: begin(path, args, kwargs), with_kwargs=True
                )
            )
            handles.append(module.register_forward_hook(lambda module, args, output: end(module, output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for call in calls:
        call.times = numbers[call.path]


def candidates(calls: Sequence[Call], images: Sequence[Tensor], size: tuple[int, int]) -> dict[tuple[int, str], str]:
    """Finds the last features of LR size of a network.

    Args:
        calls: Return value of :func:`trace`.
        images: Inputs of the network. A module that enlarges one of them is a skip connection.
        size: Height and width of the LR image.

    Returns:
        ``{(index of the call, 'input' or 'output'): description}``, empty when no feature of LR size is enlarged.
    """

    def is_lr(value: Tensor | None) -> bool:
        return value is not None and value.dim() == 4 and tuple(value.shape[2:]) == size

    def is_larger(value: Tensor | None) -> bool:
        return value is not None and value.dim() == 4 and value.shape[2] > size[0] and value.shape[3] > size[1]

    leaves = [i for i, call in enumerate(calls) if call.leaf]
    growing = [i for i in leaves if is_lr(calls[i].source) and is_larger(calls[i].output)]
    whole = [_whole_upsampling(calls, i, is_lr) for i in growing]
    upsampling = next((i for i in reversed(whole) if not any(calls[i].source is image for image in images)), None)
    if upsampling is not None:
        moment = calls[upsampling].begin
    else:  # a function may enlarge it: look before the first call whose input is larger than LR size
        ended = max((calls[i].end for i in leaves if is_lr(calls[i].output)), default=None)
        larger = min((c.begin for c in calls if ended and c.begin > ended and is_larger(c.source)), default=None)
        if larger is None:
            return {}
        moment = larger

    before = [i for i, call in enumerate(calls) if call.end < moment and is_lr(call.output)]
    found: dict[tuple[int, str], str] = {}
    if before:
        found[before[-1], 'output'] = 'last output at LR size'
    if upsampling is not None:
        read = calls[upsampling].seen['input']
        gave = calls[before[-1]].seen['output'] if before else (None, 0)
        if gave[0] is read[0] and gave[1] == read[1]:
            found[before[-1], 'output'] = 'last at LR size, enters the upsampling'
        else:
            found[upsampling, 'input'] = 'last at LR size, enters the upsampling'
        # The input of a pixel shuffle already holds the pixels of the image; the features are one layer before.
        features = [i for i in before if calls[i].output.shape[1] != read[0].shape[1]]
        if calls[upsampling].shuffles and features:
            found[features[-1], 'output'] = 'last features before the layer for the pixel shuffle'
    return found


def _whole_upsampling(calls: Sequence[Call], growing: int, is_lr) -> int:
    """Returns the largest module around a call that does little but enlarge, such as ``upsample`` around one layer."""
    chosen = growing
    for i in range(growing + 1, len(calls)):
        call = calls[i]
        if call.begin < calls[growing].begin:  # it also ended later, so it contains the growing call
            before = sum(other.leaf and call.begin < other.begin < calls[growing].begin for other in calls)
            if before > _LAYERS_BEFORE_GROWTH or not is_lr(call.source):
                break
            chosen = i
    return chosen


def table(
    calls: Sequence[Call], images: Sequence[Tensor], size: tuple[int, int], default_tap: str | None = None
) -> list[Row]:
    """Lists the taps of a network in the order of computation, candidates and default tap marked.

    Args:
        calls: Return value of :func:`trace`.
        images: Inputs of the network.
        size: Height and width of the LR image.
        default_tap: The tap that the network declares, if any.
    """
    marked = candidates(calls, images, size)
    rows: list[tuple[int, Row]] = []
    for i, call in enumerate(calls):
        for side, moment in (('input', call.begin), ('output', call.end)):
            tap = f'{call.path}#{call.number}' if call.times > 1 else call.path
            tap += '@input' * (side == 'input')
            notes = [marked[i, side]] if (i, side) in marked else []
            if tap == default_tap:
                notes.append('default tap')
            if side == 'output':
                rows.append((moment, Row(tap, call.times, tuple(call.output.shape), call.parameters, notes)))
            elif notes and call.source is not None:
                done = max((other.parameters for other in calls if other.end < moment), default=0)
                rows.append((moment, Row(tap, call.times, tuple(call.source.shape), done, notes)))
    return [row for _, row in sorted(rows, key=lambda item: item[0])]
