"""A grid trains each different stage once, goes on after a kill, and compares its rows."""

import json
import random
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from pisr_plugin.ablation import estimate as estimates
from pisr_plugin.ablation import jobs
from pisr_plugin.ablation.grid import read_grid
from pisr_plugin.ablation.plan import make_plan
from pisr_plugin.cli.ablate import main as ablate
from pisr_plugin.cli.train import main as train
from pisr_plugin.config.compose import compose
from pisr_plugin.config.stages import unroll
from pisr_plugin.engine.cpu_timer import cpu_seconds
from tests.conftest import ROOT
from tests.processes import WarmProcess, start, wait_for_progress
from tests.runs import ENDS

MAE = {'train': {'distill_opt': {'body': {'estimator': None, 'loss': {'_delete_': True, 'type': 'FeatureMAELoss'}}}}}
ROWS = {'plain': {'recipe': 'plain.yml'}, 'laplace': {}, 'mae': {'changes': MAE, 'title': 'mean absolute error'}}


@pytest.fixture
def grid(workspace, monkeypatch):
    """Writes a grid over two recipes; returns a function of what to change in it. Stages start warm."""
    monkeypatch.setattr(jobs, 'subprocess', SimpleNamespace(Popen=WarmProcess, DEVNULL=None, STDOUT=None))
    workspace.recipe()
    workspace.recipe('baseline', 'plain')

    def write(**changes) -> str:
        content = {'name': 'grid', 'recipe': 'run.yml', 'rows': ROWS, **changes}
        Path('grid.yml').write_text(yaml.safe_dump(content, sort_keys=False))
        return 'grid.yml'

    return write


def stages_of(folder='experiments/grid'):
    return sorted(path.parent.name for path in Path(folder).glob('*/result.json'))


def test_equal_stages_are_one(grid):
    plan = make_plan(read_grid(grid(seeds=[0, 1])))
    assert plan.asked == 10 and len(plan.stages) == 8  # 2 x (plain, teacher, 2 students)
    teachers = {names[0] for row in ('laplace', 'mae') for names in plan.rows[row].values()}
    assert len(teachers) == 2
    for row in ('laplace', 'mae'):
        for names in plan.rows[row].values():
            assert plan.stages[names[1]].needs['path.pretrain_network_t'] == plan.stages[names[0]].checkpoint


def test_what_does_not_change_weights_does_not_divide_stages(grid):
    rows = {'a': {}, 'b': {'changes': {'logger': {'print_freq': 3}, 'val': {'val_freq': 7}}}}
    assert len(make_plan(read_grid(grid(rows=rows))).stages) == 2


def test_axes_are_multiplied_out(grid):
    weight = {f'{w}': {'train': {'distill_opt': {'body': {'loss': {'loss_weight': w}}}}} for w in (1e-6, 1e-5)}
    length = {'short': {'train': {'total_iter': 2}}, 'long': {'train': {'total_iter': 3}}}
    rows = read_grid(grid(rows=None, axes={'weight': weight, 'length': length})).rows
    assert [row.title for row in rows] == [f'weight {w}, length {n}' for w in ('1e-06', '1e-05') for n in length]
    train_opt = rows[3].recipes[0]['train']
    assert train_opt['total_iter'] == 3 and train_opt['distill_opt']['body']['loss']['loss_weight'] == 1e-5


def test_rows_are_trained_and_compared(grid, capsys):
    file = grid(seeds=[0, 1], published={'laplace': {'test': 37.33}}, against='plain')
    assert ablate(['-opt', file, '--jobs', '2', '--save_img']) == 0
    plan = make_plan(read_grid(file))
    assert stages_of() == sorted(plan.stages)
    record = json.loads(Path('results/grid/evaluation.json').read_text())
    rows = {row['name']: row for row in record['rows']}
    assert [row['role'] for row in record['rows']] == ['bicubic', 'student', 'student', 'student', 'teacher']
    laplace = rows['laplace']['sets']['test']
    assert laplace['difference']['psnr'] == pytest.approx(
        laplace['mean']['psnr'] - rows['plain']['sets']['test']['mean']['psnr']
    )
    assert laplace['spread']['psnr'] > 0 and rows['laplace']['seeds'] == [0, 1]
    assert rows['laplace']['published'] == {'test': 37.33} and rows['mae']['title'] == 'mean absolute error'
    assert all((Path('results/grid') / run['checkpoint']).is_file() for run in rows['mae']['runs'])
    table = Path('results/grid/table.md').read_text()
    assert 'test, published' in table and 'CPU s of training' in table
    spent = {name: cpu_seconds(stage.folder) for name, stage in plan.stages.items()}
    by_seed = [sum(spent[name] for name in names) for names in plan.rows['laplace'].values()]
    assert rows['laplace']['training_seconds'] == pytest.approx(sum(by_seed) / 2) and min(by_seed) > 0
    lines = Path('results/grid/evaluation.csv').read_text().splitlines()
    assert len(lines) == 1 + 2 * (1 + 4 * 2)  # two images: bicubic once, four rows for two seeds

    # again: nothing is trained, and the same comes out
    before = {path: path.stat().st_mtime_ns for path in Path('experiments').rglob('*.pth')}
    assert ablate(['-opt', file]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in Path('experiments').rglob('*.pth')}
    # and each stage is one of a recipe that trains it alone
    name = plan.rows['laplace'][0][1]
    assert train(['-opt', 'experiments/grid/recipe.yml', '--stage', name]) == 0
    assert 'is finished' in capsys.readouterr().out


def test_dry_run_trains_nothing(grid, capsys):
    assert ablate(['-opt', grid(), '--dry-run']) == 0
    printed = capsys.readouterr().out
    assert '3 rows, 5 stages, of which 4 differ' in printed and '(shared)' in printed and '4 stages to train' in printed
    assert not Path('experiments').exists() and not Path('results').exists()


WARM_STAGES = """
from types import SimpleNamespace
from pisr_plugin.ablation import jobs
from pisr_plugin.cli.ablate import main
from tests.runs import ENDS
from tests.processes import WarmProcess
jobs.subprocess = SimpleNamespace(Popen=WarmProcess, DEVNULL=None, STDOUT=None)
raise SystemExit(main())
"""
PARENT = """
import time
from pathlib import Path
from pisr_plugin.ablation.jobs import LocalJobs
print(LocalJobs(1, Path('logs')).start('stage', ['sleep', '100']).pid, flush=True)
time.sleep(100)
"""


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='elsewhere stages outlive a killed parent')
def test_a_stage_ends_with_a_killed_parent(tmp_path):
    parent = start('-c', PARENT, cwd=tmp_path)
    stage = Path('/proc', parent.stdout.readline().strip())
    assert stage.exists()
    parent.kill()
    deadline = time.monotonic() + 60
    while stage.exists() and '\nState:\tZ' not in (stage / 'status').read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='elsewhere stages outlive a killed parent')
def test_a_killed_grid_ends_as_an_unbroken_one(grid):
    more = {'total_iter': 30, 'scheduler': {'periods': [30]}}
    file = grid(common={'train': more, 'logger': {'save_checkpoint_freq': 5}})
    command = ('-c', WARM_STAGES, '-opt', file, '--jobs', '2')
    unbroken = start(*command, cwd=Path.cwd())
    output, _ = unbroken.communicate(timeout=300)
    assert unbroken.returncode == 0, output
    expected = Path('results/grid/evaluation.csv').read_text()
    Path('experiments').rename('unbroken')

    moments = random.Random(0)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        process = start(*command, cwd=Path.cwd())
        wait_for_progress([process], Path('experiments'), moments.uniform(0, 1))
        process.send_signal(number)
        process.communicate(timeout=120)
        assert process.returncode in ENDS
    last = start(*command, cwd=Path.cwd())
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output
    assert Path('results/grid/evaluation.csv').read_text() == expected
    assert stages_of() == stages_of('unbroken/grid')
    assert not list(Path('experiments/grid').glob('*_archived_*'))


def test_a_stage_that_fails_takes_only_its_dependants_with_it(grid, capsys):
    bad = {'train': {'optim_g': {'lr': 1e30}, 'imitation_opt': {'loss_weight': 1e-3}}}
    rows = {'plain': {'recipe': 'plain.yml'}, 'bad': {'changes': bad}}
    assert ablate(['-opt', grid(rows=rows, common={'train': {'total_iter': 40, 'scheduler': {'periods': [40]}}})]) == 2
    error = capsys.readouterr().err
    assert '1 stages failed' in error and 'not finite' in error
    assert 'Not trained, because they need those: student_' in error
    assert len(stages_of()) == 1


@pytest.mark.parametrize(
    'changes, fragments',
    [
        ({'rows': None}, ['neither rows nor axes']),
        ({'rwos': {}}, ["unknown key 'rwos'. Did you mean 'rows'"]),
        ({'against': 'laplas'}, ["against: there is no row 'laplas'. Did you mean 'laplace'"]),
        ({'published': {'lplace': {}}}, ["published: there is no row 'lplace'"]),
        ({'rows': {'a': {'chnges': {}}}}, ["rows.a: unknown key 'chnges'. Did you mean 'changes'"]),
        ({'rows': {'a': {'recipe': 'nowhere.yml'}}}, ['nowhere.yml', 'does not exist']),
        ({'rows': {'a': {'changes': {'train': {'totl_iter': 3}}}}}, ['rows.a', 'train.totl_iter', "'total_iter'"]),
        ({'seeds': [1, 1]}, ['seeds: wrong value (found [1, 1])']),
        ({'name': 'a/b'}, ["name: not a name for a folder (found 'a/b')"]),
        ({'recipe': None, 'rows': {'a': {}}}, ['recipe: missing']),
    ],
    ids=str,
)
def test_mistakes_in_a_grid(grid, capsys, changes, fragments):
    assert ablate(['-opt', grid(**changes)]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and all(fragment in error for fragment in fragments), error
    assert not Path('experiments').exists()


def test_every_grid_of_ours_has_a_plan():
    for path in sorted((ROOT / 'options/ablation').glob('*.yml')):
        plan = make_plan(read_grid(path))
        assert len(plan.stages) <= plan.asked


def test_a_cluster_needs_its_package(grid, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'submitit', None)
    assert ablate(['-opt', grid(), '--cluster', 'slurm']) == 2
    assert 'pip install submitit' in capsys.readouterr().err


def test_stages_run_through_submitit(grid):
    pytest.importorskip('submitit')
    file = grid(rows={'laplace': {}})  # two stages, the second needs the first
    assert ablate(['-opt', file, '--cluster', 'local', '--jobs', '2', '--cluster_args', 'timeout_min=10']) == 0
    assert stages_of() == sorted(make_plan(read_grid(file)).stages)
    assert list(Path('experiments/grid/logs').glob('*_log.out'))
    assert Path('results/grid/table.md').is_file()


def test_a_stage_that_fails_on_a_cluster_is_named(grid, capsys):
    pytest.importorskip('submitit')
    broken = {
        'changes': {
            'network_g': {'type': 'FSRCNN', 'd': 8, 's': 4, 'm': 1, 'upscale': 2},
            'train': {'on_nan': 'stop', 'optim_g': {'type': 'Adam', 'lr': 1e30}},
        }
    }
    assert ablate(['-opt', grid(rows={'plain': {'recipe': 'plain.yml', **broken}}), '--cluster', 'local']) == 2
    assert 'student' in capsys.readouterr().err


class Sleeping:
    """A process that runs until it is told to end."""

    code = None

    def poll(self):
        return self.code

    def terminate(self):
        self.code = 0


def test_a_job_gets_the_gpu_that_is_free(tmp_path, monkeypatch):
    started = []

    def popen(command, env, **_):
        started.append((env['CUDA_VISIBLE_DEVICES'], Sleeping()))
        return started[-1][1]

    monkeypatch.setattr(jobs.torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(jobs.subprocess, 'Popen', popen)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    runner = jobs.LocalJobs(2, tmp_path)
    runner.start('a', [])
    runner.start('b', [])
    started[1][1].terminate()
    runner.start('c', [])
    assert [gpu for gpu, _ in started] == ['0', '1', '1']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5, 7')
    runner = jobs.LocalJobs(2, tmp_path)
    runner.start('d', [])
    runner.start('e', [])
    assert [gpu for gpu, _ in started[3:]] == ['5', '7']


@pytest.mark.parametrize('gpus', [0, 2])
def test_steps_are_timed_on_the_device_that_trains(workspace, monkeypatch, gpus):
    built = []

    class Model:
        device = torch.device('cuda' if gpus else 'cpu')

        def feed_data(self, batch):
            pass

        def optimize_parameters(self, current_iter):
            pass

    monkeypatch.setattr(estimates, 'build_trial', lambda opt, to_come, num_gpu: built.append(num_gpu) or Model())
    monkeypatch.setattr(estimates, '_SECONDS', 0)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: built.append('synchronized'))
    [stage] = unroll(compose(workspace.recipe('baseline', num_gpu='auto')))
    assert stage.name in estimates.estimate([stage])
    assert built == ([1] + ['synchronized'] * 21 if gpus else [0])
