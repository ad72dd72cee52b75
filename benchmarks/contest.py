"""One stage in several variants that take turns: ours with different options, plain loops, the convolution peak."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
from torch._dynamo import config as dynamo

from benchmarks.harness import Action, Settings, Timings, measure
from benchmarks.machine import conv_peak, count_flops
from benchmarks.parity import step_of_ours, step_of_plain
from benchmarks.report import Table
from benchmarks.workload import build, iterate, make_batch, plain_loop, stage_options
from pisr_plugin.errors import PISRError

PLAIN, PLAIN_CHANNELS_LAST = 'plain loop', 'plain loop, channels_last'
_PEAK = 'convolution peak'

# variants of every stage: what --force_yml would get
COMPILE = ['train:compile=true']
LEVERS: dict[str, Sequence[str]] = {
    'default': [],
    'channels_last: false': ['train:channels_last=false'],
    'compile': COMPILE,
}


def contest(
    title: str,
    recipe: str,
    stage: str,
    levers: Mapping[str, Sequence[str]],
    settings: Settings,
    extra: Mapping[str, Action] | None = None,
) -> Table:
    """Times one stage's step in all variants against the plain loop, and compares what their first steps did.

    Args:
        title: Of the table.
        recipe: A file of ``options/`` without its suffix.
        stage: One of its stages.
        levers: Variants of ours: options by name. What the model refuses becomes a note.
        settings: Rounds, sizes and device.
        extra: Other steps to time, by name.

    Returns:
        One row for each variant. ``speedup`` is over the plain loop; ``percent_of_peak`` counts useful operations
        only, those of the plain loop with its teacher stopped at the feature, against the fp32 peak.
    """
    if settings.quick:  # compiling takes half a minute each
        levers = {name: changes for name, changes in levers.items() if COMPILE[0] not in changes}
    allow_compiling(len(levers))
    opt = stage_options(recipe, stage, settings)
    batch = {key: value.to(settings.device) for key, value in make_batch(opt).items()}
    needed = plain_loop(build(opt), to_tap=True)
    useful = count_flops(lambda: needed.step(batch))
    reference = step_of_plain(plain_loop(build(opt), dtype=torch.float64), batch)
    peak = conv_peak(settings)

    steps: dict[str, Action] = {_PEAK: peak.run}
    errors: dict[str, dict[str, float]] = {}
    flops: dict[str, int] = {}
    refused: dict[str, str] = {}
    for name, channels_last in ((PLAIN, False), (PLAIN_CHANNELS_LAST, True)):
        loop = plain_loop(build(opt), channels_last=channels_last)
        errors[name] = step_of_plain(loop, batch).errors(reference)
        steps[name] = lambda loop=loop: loop.step(batch)
    for name, changes in levers.items():
        try:
            model = build(stage_options(recipe, stage, settings, changes))
            errors[name] = step_of_ours(model, batch).errors(reference)
        except PISRError as error:
            refused[name] = str(error).split('. ')[0]
            continue
        steps[name] = lambda model=model: iterate(model, batch)
    steps.update(extra or {})
    for name in (PLAIN, 'default'):
        flops[name] = count_flops(steps[name])
    timings = measure(steps, settings)

    rows = [
        {
            'variant': name,
            'ms': 1000 * timings.median(name),
            'speedup': timings.speedup(name, PLAIN),
            'percent_of_peak': 100 * _share_of_peak(timings, name, useful, peak.flops),
            'GFLOP': flops[name] / 1e9 if name in flops else None,
            **errors.get(name, {}),
        }
        for name in timings.seconds
        if name != _PEAK
    ]
    rate = peak.flops / timings.median(_PEAK)
    floor = (
        f'{useful / 1e9:.1f} useful GFLOP at the {rate / 1e9:.0f} GFLOP/s of the convolution peak '
        f'(best {peak.flops / timings.best(_PEAK) / 1e9:.0f}) take {1000 * useful / rate:.0f} ms.'
    )
    return Table(title, rows, [floor, *(f'{name} was refused: {reason}' for name, reason in refused.items())])


def allow_compiling(variants: int) -> None:
    """Lets each variant compile the same functions anew; beyond that torch fails instead of quietly not compiling."""
    dynamo.recompile_limit = 8 * max(variants, 1)
    dynamo.fail_on_recompile_limit_hit = True


def _share_of_peak(timings: Timings, name: str, useful: int, peak_flops: int) -> float:
    pairs = zip(timings.seconds[name], timings.seconds[_PEAK], strict=True)
    return statistics.median((useful / seconds) / (peak_flops / at_peak) for seconds, at_peak in pairs)
