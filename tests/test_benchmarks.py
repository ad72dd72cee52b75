"""Every benchmark runs from its command line; ratios are paired; documents show what was measured."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import quality
from benchmarks.harness import Settings, Timings, measure
from benchmarks.peer import PeerStudentStage
from benchmarks.render import render
from benchmarks.report import Table, json_line, markdown, text
from pisr_plugin.utils.errors import PISRError
from tests.conftest import ROOT
from tests.processes import outputs, start

# the columns of each benchmark's first table, which scripts read
COLUMNS = {
    'step': {'variant', 'ms', 'speedup', 'percent_of_peak', 'GFLOP', 'loss_error', 'gradient_error', 'weight_error'},
    'teacher': {'variant', 'ms', 'speedup', 'percent_of_peak', 'GFLOP', 'loss_error', 'gradient_error', 'weight_error'},
    'overhead': {'stage', 'ms', 'times_plain', 'GFLOP', 'flops_times_plain'},
    'host': {'loop', 'us', 'times_bare', 'times_faster_than_plain', 'operators', 'scalars_read_back'},
    'train': {'store', 'step', 'iterations_per_s', 'percent_waiting_for_data'},
    'data': {'reader', 'samples_per_s', 'times_BasicSR_LMDB', 'times_decoded_in_memory'},
    'allocator': {'freed_memory', 'ms', 'speedup', 'page_faults'},
    'inference': {'variant', 'ms', 'speedup', 'percent_of_peak', 'max_error'},
    'scaling': {'ranks', 'iterations_per_s', 'samples_per_s_times_one_rank', 'efficiency'},
    'quality': {'run', 'iterations', 'Set5_dB', 'CPU_s', 's_to_36.8'},
}


@pytest.fixture(scope='module')
def quick_run(tmp_path_factory):
    """One run of all of them: most of the time is spent on imports."""
    file = tmp_path_factory.mktemp('benchmarks') / 'figures.jsonl'
    command = [sys.executable, '-m', 'benchmarks', *COLUMNS, '--quick', '--json', str(file)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, cwd=ROOT, env={**os.environ, 'OMP_NUM_THREADS': '1'}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert file.read_text() == done.stdout.splitlines()[-1] + '\n'
    return json.loads(file.read_text())


@pytest.mark.parametrize('name', COLUMNS)
def test_a_benchmark_gives_its_figures(quick_run, name):
    assert {'cpu', 'threads', 'torch', 'commit', 'keeps_freed_memory'} <= set(quick_run['machine'])
    first, *_ = quick_run['results'][name]
    assert first['rows'] and all(COLUMNS[name] <= set(row) for row in first['rows'])


def test_the_plain_loop_is_the_same_mathematics(quick_run):
    for name in ('step', 'teacher'):
        for table in quick_run['results'][name]:
            rows = {row['variant']: row for row in table['rows']}
            assert rows['default']['loss_error'] <= 1e-6
            assert rows['default']['gradient_error'] <= 2 * max(rows['plain loop']['gradient_error'], 1e-6)


def test_an_unknown_benchmark_is_refused():
    process = start('-m', 'benchmarks', 'steps', cwd=ROOT)
    [told] = outputs([process])
    assert process.returncode == 2 and "'steps'" in told and 'scaling' in told


def test_ratios_are_paired_within_rounds():
    timings = Timings({'slow': [2.0, 20.0, 200.0], 'fast': [1.0, 10.0, 50.0]})  # a machine that drifts tenfold
    assert timings.speedup('fast', 'slow') == 2
    assert timings.ratio('fast', 'slow') == 0.5
    assert timings.median('slow') == 20 and timings.best('fast') == 1


def test_variants_take_turns_and_short_ones_run_several_times():
    done = []
    ticks = iter(range(1000))
    actions = {'a': lambda: done.append('a'), 'b': lambda: done.append('b')}
    timings = measure(actions, Settings(rounds=3), warmup=1, calls={'a': 1, 'b': 4}, now=lambda: next(ticks))
    assert done[:2] == ['a', 'b']
    rounds = [done[2 + 5 * i : 7 + 5 * i] for i in range(3)]
    assert all(sorted(turn) == ['a', 'b', 'b', 'b', 'b'] for turn in rounds)
    assert timings.seconds == {'a': [1.0] * 3, 'b': [0.25] * 3}


TABLE = Table('Steps', [{'variant': 'a', 'ms': 1234.5, 'speedup': 1.0}, {'variant': 'b', 'ms': 0.00012}], ['A note.'])
MACHINE = {'cpu': 'C', 'cpu_capability': 'X', 'gpu': None, 'threads': 1, 'rounds': 3, 'torch': '2', 'commit': 'abc'}


def test_tables_show_rounded_figures_and_leave_missing_ones_empty():
    assert text(TABLE).splitlines()[-3:] == ['a           1234        1', 'b        1.2e-04', '  A note.']
    assert '| variant | ms | speedup |\n| --- | ---: | ---: |\n| a | 1234 | 1 |\n| b | 1.2e-04 |  |' in markdown(TABLE)


def test_a_document_is_filled_from_the_newest_figures():
    document = '<!-- figures: step -->\nold\n<!-- end -->\ntext\n<!-- figures: data -->\n<!-- end -->\n'
    older = json_line(MACHINE, {'step': [Table('Other', [{'x': 1}])]})
    filled = render(document, older + '\n' + json_line(MACHINE, {'step': [TABLE]}))
    assert '**Steps**' in filled and '**Other**' not in filled and 'old' not in filled
    assert 'commit abc' in filled and '*not measured*' in filled
    assert render(filled, older) != filled
    assert render(filled, json_line(MACHINE, {'step': [TABLE]})) == filled


def test_the_page_on_performance_shows_what_was_measured():
    page = (ROOT / 'docs/performance.md').read_text()
    assert render(page, (ROOT / 'docs/performance.jsonl').read_text()) == page


# What benchmarks.peer needs of a checkout of the PISR authors' code, in our own words.
CHECKOUT = {
    'easydict.py': """
class EasyDict(dict):
    def __init__(self, **content):
        super().__init__({k: EasyDict(**v) if isinstance(v, dict) else v for k, v in content.items()})

    __getattr__ = dict.__getitem__
""",
    'step2_train_student.py': """
from collections import OrderedDict
import easydict
from torch import nn, optim
from pisr_plugin.archs.fsrcnn_arch import FSRCNN
from pisr_plugin.archs.pi_teacher_arch import PIEncoder
from pisr_plugin.distill.estimators import LocationScale

device = None


def get_model(config, kind):
    options = config[kind + '_model'].params
    network = FSRCNN(upscale=options['scale'])
    if kind == 'teacher':
        network.add_module('encoder', PIEncoder(num_in_ch=options['n_colors'], upscale=options['scale']))
    model = nn.Module()
    model.backbone = nn.ModuleDict({'network': network})
    if kind == 'student':
        branches = LocationScale(in_ch=56, out_ch=56)
        names = {'expanding_mean': branches.mean, 'expanding_var': branches.var}
        model.vid_module_dict = nn.Sequential(OrderedDict(names))
    return model


def get_loss(config):
    return {'train': nn.L1Loss()}


def get_optimizer(config, model):
    return optim.Adam(model.parameters(), lr=config.optimizer.params.lr)


def train_single_epoch(config, student, teacher, dataloader, criterion, optimizer, epoch, writer, visualizer, postfix):
    for lq, gt, _ in dataloader:
        assert len(lq) == len(dataloader.dataset) == config.train.batch_size
        optimizer.zero_grad()
        loss = criterion['train'](student.backbone['network'](lq.to(device)), gt.to(device))
        loss.backward()
        optimizer.step()
""",
}


def test_a_checkout_of_the_original_is_driven_from_our_weights(tmp_path):
    for name, content in CHECKOUT.items():
        (tmp_path / name).write_text(content)
    program = (
        'from pathlib import Path; from benchmarks.harness import Settings; from benchmarks.peer import *;'
        f'peer = PeerStudentStage(Settings(quick=True, peer=Path({str(tmp_path)!r})), "pisr_fsrcnn_x2");'
        'ours = build(stage_options("pisr_fsrcnn_x2", "student", Settings(quick=True))).net.state_dict();'
        'theirs = peer.student.backbone["network"].state_dict();'
        'assert all((ours[key] == theirs[key]).all() for key in ours); peer.step();'
        'assert any((ours[key] != theirs[key]).any() for key in ours)'
    )
    process = start('-c', program, cwd=ROOT)
    [told] = outputs([process])
    assert process.returncode == 0, told[-3000:]


@pytest.mark.parametrize('content, message', [(None, 'no checkout'), ('import no_such_package', 'no_such_package')])
def test_what_is_no_checkout_is_said_so(tmp_path, content, message):
    if content:
        (tmp_path / 'step2_train_student.py').write_text(content)
    with pytest.raises(PISRError, match=message):
        PeerStudentStage(Settings(quick=True, peer=tmp_path), 'pisr_fsrcnn_x2')


METRICS = [
    {'iter': 10, 'cpu_time': 0.5, 'l_pix': 1.0},
    {'iter': 20, 'cpu_time': 1.0, 'l_pix': 0.5},
    {'iter': 20, 'dataset': 'Set5', 'psnr': 30.0},
    {'iter': 40, 'cpu_time': 0.25, 'l_pix': 0.5},
    {'iter': 40, 'dataset': 'Set5', 'psnr': 31.0},
]


def test_time_to_quality_is_read_from_a_runs_metrics(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in METRICS))
    curve = quality.points(tmp_path / 'metrics.jsonl')
    assert curve == [quality.Point(20, 15.0, 30.0), quality.Point(40, 20.0, 31.0)]
    assert quality.seconds_to(curve, 30.5) == 20.0 and quality.seconds_to(curve, 31.5) is None
    slow = [quality.Point(1000, 150.0, 30.0)]
    adam, soap = quality.Run('Adam', 'r', 1000, quality.ADAM), quality.Run('SOAP', 'r', 40)
    table = quality.table(quality.Subject('S', (30.5,), [adam, soap]), {adam: slow, soap: curve})
    assert [row['s_to_30.5'] for row in table.rows] == [None, 20.0]
    assert table.notes == ['Adam ends at 30.00 dB; SOAP is there 10 times as soon.']


def test_quality_without_photos_is_one_message():
    with pytest.raises(PISRError, match='--photos and --test'):
        quality.run(Settings())
