"""Programs of :mod:`benchmarks.gpu`: each runs in a process of its own and prints a list of tables as its last line.

``python -m benchmarks.gpu_programs profile --device cuda``
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from basicsr.archs import build_network
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.compare_variants import EAGER
from benchmarks.harness import Settings
from benchmarks.machine import facts
from benchmarks.report import Table
from benchmarks.workload import build, iterate, make_batch, stage_options
from pisr_plugin.inference.predict import find_tile_pad, upscale
from pisr_plugin.utils.devices import precision
from pisr_plugin.utils.errors import first_line

_STAGE = 'pisr_fsrcnn_x2', 'student'
_WARMUP = 6  # steps; a CUDA graph is recorded within
_STEPS = 20
_LAUNCHES = ('cudaLaunchKernel', 'cudaLaunchKernelExC', 'cuLaunchKernel', 'cuLaunchKernelEx', 'cudaGraphLaunch')
_COPIES = ('cudaMemcpyAsync', 'cudaMemcpy')
_WAITS = ('cudaStreamSynchronize', 'cudaEventSynchronize', 'cudaMemcpy')


def machine(settings: Settings, _: Path) -> list[Table]:
    """What the machine is; ``gpus`` is 0 where there is none to test."""
    gpus = torch.cuda.device_count() if settings.device == 'cuda' else 0
    found = facts(settings if gpus else Settings(device='cpu', quick=settings.quick))
    return [Table('Machine', [{'gpus': gpus, 'cuda': torch.version.cuda, **found}])]


def profile_steps(settings: Settings, folder: Path) -> list[Table]:
    """Traces 20 steps: what the host asks of the GPU in each, and which kernels take the time."""
    manners = {'eager': EAGER, **({'captured': []} if settings.device == 'cuda' else {})}
    counts, tables = [], []
    for manner, changes in manners.items():
        step = _step(settings, changes)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if settings.device == 'cuda' else [])]
        with profile(activities=activities) as trace:
            for _ in range(_STEPS):
                step()
        trace.export_chrome_trace(str(folder / f'trace_{manner}.json.gz'))
        events = trace.key_averages()
        calls = {event.key: event.count for event in events}
        counts.append({'step': manner, **_calls_per_step(calls)})
        on_gpu = settings.device == 'cuda'
        events = [event for event in events if not on_gpu or event.device_type == DeviceType.CUDA]
        time_of = (lambda e: e.self_device_time_total) if on_gpu else (lambda e: e.self_cpu_time_total)
        busiest = sorted(events, key=time_of, reverse=True)[:12]
        rows = [
            {'kernel': e.key[:90], 'us_per_step': time_of(e) / _STEPS, 'calls_per_step': e.count / _STEPS}
            for e in busiest
        ]
        tables.append(Table(f'Kernels of {manner} steps' if on_gpu else f'Operators of {manner} steps', rows))
    return [Table(f'Calls of the host, means of {_STEPS} steps', counts), *tables]


def _calls_per_step(calls: dict[str, int]) -> dict[str, float]:
    kinds = {'launches': _LAUNCHES, 'copies': _COPIES, 'waits': _WAITS}
    return {kind: sum(calls.get(name, 0) for name in names) / _STEPS for kind, names in kinds.items()}


def find_waits(settings: Settings, _: Path) -> list[Table]:
    """Makes each step that waits for the GPU an error; a precision passes when its steps make none."""
    rows = []
    for amp in ('~', 'bf16', 'fp16'):
        for manner, changes in {'eager': EAGER, 'captured': []}.items():
            step = _step(settings, [f'train:amp={amp}', *changes])
            torch.cuda.set_sync_debug_mode('error')
            waits = ''
            try:
                step()
            except RuntimeError as error:
                waits = f'{first_line(error)} {_our_line(error)}'
            finally:
                torch.cuda.set_sync_debug_mode('default')
            rows.append({'precision': 'fp32' if amp == '~' else amp, 'step': manner, 'waits': waits or 'none'})
    bad = [f'{row["step"]} step in {row["precision"]}' for row in rows if row['waits'] != 'none']
    return [Table('Waits of the host in a step', rows, [f'failed: waits in the {", ".join(bad)}'] if bad else [])]


def _our_line(error: BaseException) -> str:
    """Returns the innermost line of this project in a traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if 'pisr_plugin' in frame.filename]
    return f'at {Path(frames[-1].filename).name}:{frames[-1].lineno}' if frames else ''


def upscale_by_tiles(settings: Settings, _: Path) -> list[Table]:
    """Compares images computed whole and in tiles of rows, with TF32 and without."""
    height, width = (96, 48) if settings.quick else (360, 640)
    rows, bad = [], []
    for name, options in {
        'FSRCNN': {'num_in_ch': 1, 'num_out_ch': 1},
        'VDSR': {'num_in_ch': 1, 'num_out_ch': 1},
        'CARN': {},
        'EDSR': {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 32, 'num_block': 4},
    }.items():
        torch.manual_seed(0)
        channels = options.get('num_in_ch', 3)
        net = build_network({'type': name, 'upscale': 2, **options}).eval().requires_grad_(False).to(settings.device)
        lq = torch.rand(1, channels, height, width, device=settings.device)
        tile_pad = find_tile_pad(net, lq)
        for tf32 in (False, True):
            with precision(tf32), torch.no_grad():
                whole = net(lq)
                tiles = upscale(net, lq, tile_rows=40, tile_pad=tile_pad)
            error = ((whole - tiles).abs().max() / whole.abs().max()).item()
            rows.append({'network': name, 'TF32': 'on' if tf32 else 'off', 'tile_pad': tile_pad, 'difference': error})
            if not error <= (1e-2 if tf32 else 1e-4):
                bad.append(f'{name} with TF32 {"on" if tf32 else "off"}')
    notes = ['The largest difference, relative to the largest value; at most 1e-4, with TF32 1e-2.']
    return [Table('Images in tiles of 40 rows', rows, notes + ([f'failed: {", ".join(bad)}'] if bad else []))]


def train_rank(arguments: Sequence[str]) -> int:
    """Trains as one rank, and fails where it has used a GPU other than its own."""
    from pisr_plugin.cli.train import main as train

    code = train([*arguments, '--launcher', 'pytorch'])
    if code or not torch.cuda.is_initialized():
        return code
    own = torch.cuda.current_device()
    used = [n for n in range(torch.cuda.device_count()) if n != own and torch._C._cuda_hasPrimaryContext(n)]
    print(f'The rank of GPU {own} also uses the GPUs {used}' if used else f'The rank of GPU {own} uses no other GPU')
    return 1 if used else 0


def _step(settings: Settings, changes: Sequence[str]) -> Callable[[], None]:
    """Returns a step of the student stage that has run often enough to be in its final form."""
    torch.backends.cudnn.benchmark = True  # as training
    model = build(stage_options(*_STAGE, settings, changes))
    batch = {name: value.to(settings.device) for name, value in make_batch(model.opt).items()}
    for current_iter in range(1, 1 + _WARMUP):
        iterate(model, batch, current_iter)
    if settings.device == 'cuda':
        torch.cuda.synchronize()
    return lambda: iterate(model, batch)


PROGRAMS = {'machine': machine, 'profile': profile_steps, 'waits': find_waits, 'tiles': upscale_by_tiles}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ['rank']:
        return train_rank(argv[1:])
    parser = argparse.ArgumentParser(prog='python -m benchmarks.gpu_programs')
    parser.add_argument('program', choices=PROGRAMS)
    parser.add_argument('--device', choices=['cuda', 'cpu'], default='cuda')
    parser.add_argument('--folder', type=Path, default=Path())
    args = parser.parse_args(argv)
    settings = Settings(device=args.device, quick=args.device == 'cpu')
    print(json.dumps([asdict(table) for table in PROGRAMS[args.program](settings, args.folder)]))
    return 0


if __name__ == '__main__':
    sys.exit(main())
