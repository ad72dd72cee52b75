"""Whatever fails, a run ends with one message, an exit code, and a state to go on from."""

import json
import os
import signal
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pisr_plugin.cli.train import main as train
from pisr_plugin.engine import loop, training_states
from pisr_plugin.engine.training_states import TrainingStates
from pisr_plugin.inference import checkpoint
from pisr_plugin.utils import files
from pisr_plugin.utils.errors import CheckpointError
from tests.processes import TRAIN, outputs, start, wait_for_progress

RUN = Path('experiments/run/student')
# Plugins that make a run fail at a chosen moment.
DIVERGES = """
from pisr_plugin.models.pisr_model import PISRModel
step = PISRModel.optimize_parameters
def diverging(self, current_iter):
    if current_iter == 7:
        self.batch['lq'].fill_(float('nan'))
    step(self, current_iter)
PISRModel.optimize_parameters = diverging
"""
GRADIENT_DIVERGES = """
import torch
from pisr_plugin.models.pisr_model import PISRModel
step = PISRModel.optimize_parameters
def diverging(self, current_iter):
    step(self, current_iter)
    if current_iter == 8:
        with torch.no_grad():
            next(self.net.parameters()).fill_(float('nan'))
PISRModel.optimize_parameters = diverging
"""
# no file may become longer than the report of the run
FULL_DISK = 'resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY))'
AT_ITERATION_5 = """
import os, resource, shutil
from pisr_plugin.models.pisr_model import PISRModel
step = PISRModel.optimize_parameters
def filling(self, current_iter):
    if current_iter == 5:
        FAILURE
    step(self, current_iter)
PISRModel.optimize_parameters = filling
"""


@pytest.fixture
def run(workspace):
    """Trains a recipe with a plugin in a process of its own; gives exit code and output."""
    recipe = workspace.recipe(
        'baseline',
        train={'total_iter': 12},
        logger={'print_freq': 5, 'save_checkpoint_freq': 4, 'use_tb_logger': False},
        val={'val_freq': 4},
    )

    def run(plugin, *changes):
        (workspace.path / 'failure.py').write_text(plugin)
        process = start(
            *(TRAIN, '-opt', recipe, '--plugin', 'failure', '--auto_resume'),
            *(('--force_yml', *changes) if changes else ()),
            cwd=workspace.path,
        )
        (output,) = outputs([process])
        return process.returncode, output

    return run


def saved():
    return sorted(int(file.stem) for file in (RUN / 'training_states').glob('*.state'))


def assert_finite():
    for file in RUN.glob('models/*.pth'):
        assert all(value.isfinite().all() for value in checkpoint.load_weights(file).values()), file


@pytest.mark.parametrize('plugin', [DIVERGES, GRADIENT_DIVERGES])
def test_a_run_that_diverges_stops_before_it_is_saved(run, plugin):
    code, output = run(plugin)
    assert code == 2 and 'Traceback' not in output
    message = output[output.index('error: ') :]
    assert 'not finite' in message and '4.state' in message and 'train.on_nan' in message
    assert 'between 6 and 8' in message or 'between 6 and 10' in message
    assert 4 in saved() and max(saved()) <= 8
    assert_finite()
    assert run('')[0] == 0  # without the failure, it goes on
    assert [r['iter'] for r in map(json.loads, (RUN / 'metrics.jsonl').open()) if 'l_pix' in r] == [5, 10]


def test_a_full_disk_ends_the_run_and_leaves_the_last_state(run):
    code, output = run(AT_ITERATION_5.replace('FAILURE', FULL_DISK))
    assert code == 2 and 'Traceback' not in output, output
    assert 'error: cannot write' in output and 'net_g_8.pth: File too large' in output
    assert saved() == [4] and not list(RUN.rglob('.*.tmp'))
    assert run('')[0] == 0
    assert saved() == [4, 8, 12]


def test_a_folder_that_becomes_unwritable_ends_the_run(run):
    models = 'experiments/run/student/models'
    take_away = f'shutil.rmtree("{models}")' if os.geteuid() == 0 else f'os.chmod("{models}", 0o500)'
    code, output = run(AT_ITERATION_5.replace('FAILURE', take_away))
    (RUN / 'models').mkdir(exist_ok=True)
    (RUN / 'models').chmod(0o700)
    assert code == 2 and 'Traceback' not in output and 'net_g_8.pth' in output
    assert saved() == [4]


def damage_bit(file):
    """Changes one bit of the largest tensor; between the parts of a file there are bytes that mean nothing."""
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        part = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
    content[content.index(part) + len(part) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    'cut off': lambda file: file.write_bytes(file.read_bytes()[:-100]),
    'empty': lambda file: file.write_bytes(b''),
    'gone': Path.unlink,
    'one bit': damage_bit,
    'not a state': lambda file: torch.save([1, 2], file),
}


@pytest.mark.parametrize('damage', DAMAGES)
@pytest.mark.parametrize('name', ['training_states/4.state', 'models/net_g_4.pth', 'models/net_e_4.pth'])
def test_the_newest_whole_state_is_resumed(workspace, damage, name, capfd):
    if (name, damage) == ('training_states/4.state', 'gone'):
        pytest.skip('then it is not there to be skipped')
    if damage == 'not a state' and 'models' in name:
        pytest.skip('that is found when the network is loaded')
    recipe = str(workspace.recipe())
    assert train(['-opt', recipe]) == 0
    (RUN / 'result.json').unlink()
    DAMAGES[damage](RUN / name)
    assert TrainingStates(RUN, 'net_g').newest().iteration == 2
    assert train(['-opt', recipe, '--auto_resume']) == 0
    told = capfd.readouterr().err
    assert name in told and 'Resuming training from iter: 2.' in told
    assert TrainingStates(RUN, 'net_g').newest().iteration == 4


def test_a_run_whose_states_are_all_damaged_is_not_begun_anew(workspace, capsys):
    recipe = str(workspace.recipe('baseline'))
    assert train(['-opt', recipe]) == 0
    (RUN / 'result.json').unlink()
    for state in (RUN / 'training_states').iterdir():
        state.write_bytes(b'')
    before = sorted(RUN.rglob('*'))
    assert train(['-opt', recipe, '--auto_resume']) == 2
    error = capsys.readouterr().err
    assert 'none of its 2 training states can be resumed' in error and '2.state' in error and '4.state' in error
    assert sorted(RUN.rglob('*')) == before
    with pytest.raises(CheckpointError):
        TrainingStates(RUN, 'net_g').newest()


def test_states_of_another_optimiser_are_refused(workspace, capsys):
    recipe = str(workspace.recipe('baseline'))
    assert train(['-opt', recipe]) == 0
    (RUN / 'result.json').unlink()
    state = torch.load(RUN / 'training_states/4.state')
    state['optimizers'][0]['param_groups'][0]['params'].pop()
    checkpoint.save_atomic(state, RUN / 'training_states/4.state')
    assert train(['-opt', recipe, '--auto_resume']) == 2
    error = capsys.readouterr().err
    assert '4.state does not fit the optimizer' in error and 'train.optim_g' in error


def test_only_the_newest_states_and_the_best_networks_are_kept(workspace):
    recipe = workspace.recipe(
        'baseline',
        train={'total_iter': 10, 'optim_g': {'type': 'Adam', 'lr': 0.0}},
        logger={'print_freq': 1, 'save_checkpoint_freq': 2, 'keep_checkpoints': 2, 'use_tb_logger': False},
        val={'val_freq': 4, 'metrics': {'ssim': {'better': 'lower'}}},
    )
    plugin = workspace.path / 'worse.py'
    plugin.write_text(  # metrics that get worse: best in the first validation, at iteration 4
        'import itertools\n'
        'from pisr_plugin.evaluation import measure\n'
        'assert measure.calculate_metric\n'
        'calls = itertools.count()\n'
        'measure.calculate_metric = lambda images, option: next(calls) * (1 if "ssim" in option["type"] else -1)\n'
    )
    process = start(TRAIN, '-opt', recipe, '--plugin', 'worse', cwd=workspace.path)
    (output,) = outputs([process])
    assert process.returncode == 0, output
    records = [json.loads(line) for line in (RUN / 'metrics.jsonl').open()]
    psnr = [record['psnr'] for record in records if 'psnr' in record]
    assert len(psnr) == 3 and psnr == sorted(psnr, reverse=True)  # the plugin's values were used
    assert saved() == [8, 10]
    assert sorted(p.name for p in (RUN / 'models').glob('*.pth')) == sorted(
        f'net_g_{when}.pth' for when in (4, 8, 10, 'latest')
    )


def test_left_overs_of_killed_runs_are_removed(workspace):
    for folder in (RUN, RUN / 'models', RUN / 'training_states'):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / '.net_g_2.pth.123.tmp').write_bytes(b'half')
        (folder / '.mine').write_bytes(b'whole')
    assert train(['-opt', str(workspace.recipe('baseline')), '--auto_resume']) == 0
    assert not list(RUN.rglob('*.tmp')) and len(list(RUN.rglob('.mine'))) == 3


def test_a_state_of_another_number_of_processes_is_resumed_with_a_word(workspace, capfd):
    recipe = str(workspace.recipe('baseline'))
    assert train(['-opt', recipe]) == 0
    (RUN / 'result.json').unlink()
    state = torch.load(RUN / 'training_states/4.state')
    state['random_states'] *= 2
    checkpoint.save_atomic(state, RUN / 'training_states/4.state')
    assert train(['-opt', recipe, '--auto_resume', '--force_yml', 'train:total_iter=6']) == 0
    assert capfd.readouterr().err.count('saved by 2 process(es), not 1') == 1


def test_tensorboard_shows_each_iteration_once_after_a_resume(workspace):
    recipe = workspace.recipe(
        'baseline', logger={'print_freq': 1, 'save_checkpoint_freq': 2, 'use_tb_logger': True}, train={'total_iter': 5}
    )
    assert train(['-opt', str(recipe)]) == 0
    for name in ('result.json', 'training_states/5.state', 'training_states/4.state'):
        (RUN / name).unlink()
    assert train(['-opt', str(recipe), '--auto_resume']) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(RUN / 'tb_logger'))
    events.Reload()
    assert [event.step for event in events.Scalars('losses/l_pix')] == [1, 2, 3, 4, 5]


def test_stopping_while_it_validates_saves_and_validates_again_when_resumed(workspace):
    (workspace.path / 'slow.py').write_text(
        'import os, time\n'
        'from pisr_plugin.evaluation import measure\n'
        'reconstruct = measure.reconstruct\n'
        'def slow(*args, **options):\n'
        '    open("validating", "w").close()\n'
        '    time.sleep(float(os.environ["SECONDS"]))\n'
        '    return reconstruct(*args, **options)\n'
        'measure.reconstruct = slow\n'
    )
    recipe = workspace.recipe('baseline', train={'total_iter': 4}, val={'val_freq': 3})
    command = (TRAIN, '-opt', recipe, '--plugin', 'slow', '--auto_resume')
    process = start(*command, cwd=workspace.path, SECONDS=2)
    while not Path('validating').exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    (output,) = outputs([process])
    assert process.returncode == 130, output
    assert saved()[-1] == 3
    process = start(*command, cwd=workspace.path, SECONDS=0)
    (output,) = outputs([process])
    assert process.returncode == 0, output
    assert [r['iter'] for r in map(json.loads, (RUN / 'metrics.jsonl').open()) if 'psnr' in r] == [3, 4]


@pytest.mark.parametrize('number', [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_the_warnings_of_batch_systems_save_and_end_the_run(run_endlessly, number):
    before = signal.signal(number, signal.SIG_DFL)  # nohup around the tests would make the run ignore hangups
    try:
        process = run_endlessly()
    finally:
        signal.signal(number, before)
    wait_for_progress([process], Path('experiments'))
    process.send_signal(number)
    (output,) = outputs([process])
    assert process.returncode == 130 and 'Go on with --auto_resume' in output, output
    assert len(saved()) == 1


def test_a_run_started_by_nohup_ignores_hangups(run_endlessly):
    process = run_endlessly(
        '-c',
        'import os, signal, sys\nsignal.signal(1, signal.SIG_IGN)\n'
        'os.execv(sys.executable, [sys.executable, *sys.argv[1:]])',
    )
    wait_for_progress([process], Path('experiments'))
    process.send_signal(signal.SIGHUP)
    wait_for_progress([process], Path('experiments'))
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    outputs([process])
    assert process.returncode == 130


@pytest.fixture
def run_endlessly(workspace):
    recipe = workspace.recipe(
        'baseline',
        train={'total_iter': 10**6},
        logger={'print_freq': 1, 'save_checkpoint_freq': 10**5, 'use_tb_logger': False},
        val=None,
    )
    return lambda *before: start(*before, TRAIN, '-opt', recipe, cwd=workspace.path)


def test_what_nobody_expected_is_one_message_and_a_log(run):
    code, output = run(AT_ITERATION_5.replace('FAILURE', 'raise ZeroDivisionError("on purpose")'))
    assert code == 70 and 'Traceback' not in output
    assert 'error: unexpected ZeroDivisionError: on purpose' in output
    (log,) = Path.cwd().glob('pisr-error-*.log')
    assert str(log) in output and 'Traceback' in log.read_text() and 'failure.py' in log.read_text()
    assert saved() == [4]


@pytest.mark.parametrize('error', ['torch.OutOfMemoryError("CUDA out of memory. Tried 1 GiB")', 'MemoryError()'])
def test_too_little_memory_says_what_to_lower(run, error):
    code, output = run(AT_ITERATION_5.replace('FAILURE', f'import torch; raise {error}'))
    assert code == 2 and 'error: training: the memory is too small' in output
    assert 'batch_size_per_gpu' in output and 'train.accumulate' in output


def test_a_process_that_waited_for_another_does_not_train_again(workspace, monkeypatch, capfd):
    """The other one finishes the stage after this one has looked and before it has the lock."""
    recipe = ['-opt', str(workspace.recipe('baseline'))]

    @contextmanager
    def finished_meanwhile(path):
        monkeypatch.undo()
        monkeypatch.chdir(workspace.path)
        assert train(recipe) == 0
        yield True

    monkeypatch.setattr(loop, 'locked', finished_meanwhile)
    assert train(recipe) == 0
    assert 'another process has finished this stage' in capfd.readouterr().err
    assert not list(RUN.parent.glob('*archived*')) and saved() == [2, 4]


def test_runs_that_start_again_within_a_second_are_moved_to_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(files.time, 'strftime', lambda _: 'now')
    moved = []
    for _ in range(3):
        (tmp_path / 'run').mkdir()
        (tmp_path / 'run/metrics.jsonl').touch()
        moved.append(training_states.archive(tmp_path / 'run'))
    assert [path.name for path in moved] == ['run_archived_now', 'run_archived_now_2', 'run_archived_now_3']
    assert all((path / 'metrics.jsonl').is_file() for path in moved)


def test_damaged_records_do_not_keep_a_run_from_resuming(workspace):
    recipe = str(workspace.recipe('baseline'))
    assert train(['-opt', recipe]) == 0
    (RUN / 'result.json').unlink()
    (RUN / 'training_states/4.state').unlink()
    content = (RUN / 'metrics.jsonl').read_bytes()
    (RUN / 'metrics.jsonl').write_bytes(b'\xff\xfe\n[1]\n{"iter": "x"}\n' + content + b'{"iter": 4, "psn')
    assert train(['-opt', recipe, '--auto_resume']) == 0
    assert (RUN / 'metrics.jsonl').read_text().count('\n') == content.count(b'\n')
    assert [r['iter'] for r in map(json.loads, (RUN / 'metrics.jsonl').open()) if 'l_pix' in r] == [1, 2, 3, 4]


@pytest.mark.parametrize('content', [b'a: [', b'\xff\xfe', b'[1]', b'datasets: 5'])
def test_damaged_options_of_a_finished_stage_are_one_message(workspace, capsys, content):
    recipe = workspace.recipe('baseline')
    for file in ('result.json', 'models/net_g_latest.pth', 'options.yml'):
        (RUN / file).parent.mkdir(parents=True, exist_ok=True)
        (RUN / file).write_bytes(content)
    assert train(['-opt', str(recipe)]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and 'options.yml: the options of this finished stage cannot be read' in error
    assert error.count('\n') == 1


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_are_not_finite_are_found_before_training(workspace, capsys, value):
    recipe = str(workspace.recipe('baseline'))
    assert train(['-opt', recipe]) == 0
    content = torch.load(RUN / 'models/net_g_latest.pth')
    next(iter(content['params'].values())).view(-1)[0] = value
    torch.save(content, 'bad.pth')
    capsys.readouterr()
    bad = ['name=bad', 'path:pretrain_network_g=bad.pth']
    assert train(['-opt', recipe, '--force_yml', *bad]) == 2
    error = capsys.readouterr().err
    assert 'NaN or infinite values' in error and 'bad.pth' in error
    assert not Path('experiments/bad').exists()


def test_ctrl_c_before_the_first_iteration_ends_at_once(workspace):
    (workspace.path / 'slow.py').write_text('import time\nopen("loading", "w").close()\ntime.sleep(30)\n')
    process = start(TRAIN, '-opt', workspace.recipe(), '--plugin', 'slow', cwd=workspace.path)
    while not Path('loading').exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    (output,) = outputs([process])
    assert process.returncode == 130 and 'Traceback' not in output, output
