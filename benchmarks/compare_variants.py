"""One stage in several variants that take turns: ours with different options, plain loops, the convolution peak."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._dynamo import config as dynamo

from benchmarks.harness import Action, Settings, Timings, measure
from benchmarks.machine import Work, conv_peak, count_flops
from benchmarks.parity import Outcome, step_of_ours, step_of_plain
from benchmarks.report import Table
from benchmarks.workload import build, iterate, make_batch, plain_loop, stage_options
from pisr_plugin.utils.errors import PISRError

PLAIN, DEFAULT = 'plain loop', 'default'
_PEAK = 'convolution peak'
_WARMUP = 4  # after the first step; a CUDA graph is recorded within

# how plain loops may differ: arguments of plain_loop
LOOPS: dict[str, Mapping[str, bool]] = {PLAIN: {}, 'plain loop, channels_last': {'channels_last': True}}

# variants of every stage: what --force_yml would get
COMPILE, EAGER = ['train:compile=true'], ['train:cuda_graph=false']
_LAST = ['train:channels_last=true']
LEVERS: dict[str, Sequence[str]] = {
    DEFAULT: [],
    'channels_last: false': ['train:channels_last=false'],
    'compile': COMPILE,
}


class Variant(NamedTuple):
    """A variant that is timed.

    Attributes:
        step: One training step.
        errors: What its first step was off by, against float64.
    """

    step: Action
    errors: Mapping[str, float] = {}


def compare_variants(
    title: str,
    recipe: str,
    stage: str,
    loops: Mapping[str, Mapping[str, bool]],
    levers: Mapping[str, Sequence[str]],
    settings: Settings,
    extra: Mapping[str, Action] | None = None,
) -> Table:
    """Times one stage's step in all variants against the plain loop, and compares what their first steps did.

    Args:
        title: Of the table.
        recipe: A file of ``options/`` without its suffix.
        stage: One of its stages.
        loops: Variants of the plain loop: arguments of :func:`~benchmarks.workload.plain_loop` by name.
        levers: Variants of ours: options by name. What the model refuses becomes a note.
        settings: Rounds, sizes and device.
        extra: Other steps to time, by name.

    Returns:
        One row for each variant. ``speedup`` is over the plain loop; ``percent_of_peak`` counts useful operations
        only, those of the plain loop with its teacher stopped at the feature, against the fp32 peak.
    """
    levers = _levers_here(levers, settings)
    allow_compiling(len(levers))
    opt = stage_options(recipe, stage, settings)
    batch = {key: value.to(settings.device) for key, value in make_batch(opt).items()}
    needed = plain_loop(build(opt), to_tap=True)
    useful = count_flops(lambda: needed.step(batch))
    reference = step_of_plain(plain_loop(build(opt), dtype=torch.float64), batch)

    entrants = {name: _plain(opt, how, batch, reference) for name, how in loops.items()}
    refused = []
    for name, changes in levers.items():
        try:
            entrants[name] = _ours(stage_options(recipe, stage, settings, changes), batch, reference)
        except PISRError as error:
            refused.append(f'{name} was refused: {str(error).split(". ")[0]}')
    entrants |= {name: Variant(step) for name, step in (extra or {}).items()}

    flops = {name: count_flops(entrants[name].step) for name in (PLAIN, DEFAULT)}
    peak = conv_peak(settings)
    steps = {_PEAK: peak.run, **{name: entrant.step for name, entrant in entrants.items()}}
    timings = measure(steps, settings, warmup=_WARMUP)
    rows = [
        {
            'variant': name,
            'ms': 1000 * timings.median(name),
            'speedup': timings.speedup(name, PLAIN),
            'percent_of_peak': 100 * _share_of_peak(timings, name, useful, peak),
            'GFLOP': flops[name] / 1e9 if name in flops else None,
            **entrant.errors,
        }
        for name, entrant in entrants.items()
    ]
    return Table(title, rows, [_floor(timings, useful, peak), *refused])


def allow_compiling(variants: int) -> None:
    """Lets each variant compile the same functions anew; beyond that torch fails instead of quietly not compiling."""
    dynamo.recompile_limit = 8 * max(variants, 1)
    dynamo.fail_on_recompile_limit_hit = True


def _levers_here(levers: Mapping[str, Sequence[str]], settings: Settings) -> dict[str, Sequence[str]]:
    """On CUDA also each variant without a graph; in a quick run none that compiles, which takes half a minute."""
    here = dict(levers)
    if settings.device == 'cuda':  # where maps are channels first by default, except with amp
        del here['channels_last: false']
        here['channels_last'], here['compile, channels_last'] = _LAST, [*COMPILE, *_LAST]
        here |= {f'{name}, eager': [*changes, *EAGER] for name, changes in here.items()}
    if settings.quick:
        here = {name: changes for name, changes in here.items() if not set(COMPILE) & set(changes)}
    return here


def _plain(opt: dict, how: Mapping[str, bool], batch: dict[str, Tensor], reference: Outcome) -> Variant:
    loop = plain_loop(build(opt), **how)
    errors = step_of_plain(loop, batch).errors(reference)
    return Variant(lambda: loop.step(batch), errors)


def _ours(opt: dict, batch: dict[str, Tensor], reference: Outcome) -> Variant:
    model = build(opt)
    errors = step_of_ours(model, batch).errors(reference)
    return Variant(lambda: iterate(model, batch), errors)


def _share_of_peak(timings: Timings, name: str, useful: int, peak: Work) -> float:
    pairs = zip(timings.seconds[name], timings.seconds[_PEAK], strict=True)
    return statistics.median((useful / seconds) / (peak.flops / at_peak) for seconds, at_peak in pairs)


def _floor(timings: Timings, useful: int, peak: Work) -> str:
    rate, best = peak.flops / timings.median(_PEAK), peak.flops / timings.best(_PEAK)
    return (
        f'{useful / 1e9:.1f} useful GFLOP at the {rate / 1e9:.0f} GFLOP/s of the convolution peak '
        f'(best {best / 1e9:.0f}) take {1000 * useful / rate:.0f} ms.'
    )
