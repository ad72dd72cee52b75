"""What distillation adds to plain training of the same network, both by this package with its default options."""

from __future__ import annotations

from benchmarks.harness import Settings, measure
from benchmarks.machine import count_flops
from benchmarks.report import Table
from benchmarks.workload import build, iterate, make_batch, stage_options

_STAGES = {
    'plain training': ('baseline', 'student'),
    'teacher stage': ('pisr', 'teacher'),
    'student stage': ('pisr', 'student'),
}


def run(settings: Settings) -> list[Table]:
    """One table for each network; ``flops_times_plain`` is what the arithmetic alone would give."""
    return [_table('FSRCNN x2 on Y', 'fsrcnn_x2', settings), _table('RFDN x4 on RGB', 'rfdn_x4', settings)]


def _table(title: str, network: str, settings: Settings) -> Table:
    models = {
        name: build(stage_options(f'{kind}_{network}', stage, settings)) for name, (kind, stage) in _STAGES.items()
    }
    batch = make_batch(models['student stage'].opt)
    steps = {name: lambda model=model: iterate(model, batch) for name, model in models.items()}
    for model in models.values():
        iterate(model, batch, current_iter=1)  # a first step probes: its operations are not those of the others
    flops = {name: count_flops(step) for name, step in steps.items()}
    timings = measure(steps, settings)
    rows = [
        {
            'stage': name,
            'ms': 1000 * timings.median(name),
            'times_plain': timings.ratio(name, 'plain training'),
            'GFLOP': flops[name] / 1e9,
            'flops_times_plain': flops[name] / flops['plain training'],
        }
        for name in steps
    ]
    return Table(f'Stages of {title} over plain training', rows)
