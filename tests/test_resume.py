"""A run that is killed, wherever it is, and resumed ends as one that never stopped."""

import shutil
import signal
from pathlib import Path

import pytest
import torch

from pisr_plugin.engine.training_states import TrainingStates
from pisr_plugin.inference import checkpoint
from tests.processes import TRAIN, outputs, random_seconds, start, start_ranks, wait_for_progress
from tests.runs import ENDS, assert_same, reports

TOTAL = 16
DROPOUT_NETWORK = """
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

@ARCH_REGISTRY.register()
class DropoutNet(nn.Sequential):
    def __init__(self, num_in_ch: int, num_feat: int, upscale: int):
        super().__init__()
        self.body = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.drop = nn.Dropout(0.3)
        self.tail = nn.Conv2d(num_feat, num_in_ch * upscale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(upscale)
"""
DROPOUT = ['network_g={type: DropoutNet, num_in_ch: 1, num_feat: 6, upscale: 2}', 'train:distill_opt:body:student=body']
SOAP = [
    'network_g={type: FSRCNN, d: 8, s: 4, m: 1, upscale: 2}',
    'train:optim_g={type: SOAP, lr: 3e-3, betas: [0.95, 0.98], precondition_frequency: 3}',
    'train:warmup_iter=6',
]
SETTINGS = {'FSRCNN, no workers': (0, []), 'dropout, two workers': (2, DROPOUT), 'SOAP, warm-up': (0, SOAP)}


@pytest.fixture
def job(workspace):
    """Writes the recipe of a run that saves and validates all the time, and gives the arguments for it."""
    (workspace.path / 'dropout_network.py').write_text(DROPOUT_NETWORK)
    recipe = workspace.recipe(
        network_g=None,
        train={'total_iter': TOTAL, 'ema_decay': 0.9},
        logger={'print_freq': 1, 'save_checkpoint_freq': 2, 'keep_checkpoints': 3, 'use_tb_logger': False},
        val={'val_freq': 3},
    )

    def arguments(workers, changes):
        changes = changes or ['network_g={type: FSRCNN, d: 8, s: 4, m: 1, upscale: 2}']
        return [
            *('-opt', str(recipe), '--plugin', 'dropout_network', '--auto_resume', '--force_yml'),
            *(f'datasets:train:num_worker_per_gpu={workers}', 'datasets:train:batch_size_per_gpu=2', *changes),
        ]

    return arguments


def finish(processes) -> None:
    told = outputs(processes)
    assert {process.returncode for process in processes} == {0}, told


def put_aside(folder: str = 'experiments') -> Path:
    return Path(shutil.move(folder, f'unbroken_{folder}'))


def assert_same_runs(unbroken: Path, resumed: Path = Path('experiments')) -> None:
    """Compares all networks, averages, optimisers, schedules, random states, best and reported figures."""
    for stage in ('teacher', 'student'):
        folders = [root / 'run' / stage for root in (resumed, unbroken)]
        assert reports(folders[0]) == reports(folders[1])
        # a card is no state: it has the seconds of training
        files = [
            [f.relative_to(folder) for f in sorted(folder.glob('*/*')) if f.suffix != '.json'] for folder in folders
        ]
        assert files[0] == files[1] and Path(f'training_states/{TOTAL}.state') in files[0]
        for file in files[0]:
            assert_same(*(checkpoint.load_file_safely(folder / file) for folder in folders), str(file))


def test_a_stop_leaves_nothing_behind_that_an_unbroken_run_would_not(tmp_path):
    def save(*iterations):
        for iteration in iterations:
            for file in (tmp_path / f'training_states/{iteration}.state', tmp_path / f'models/net_g_{iteration}.pth'):
                file.parent.mkdir(exist_ok=True)
                file.touch()

    states = TrainingStates(tmp_path, 'net_g')
    save(8, 10, 12, 13)
    states.prune(3, 13, 2, best={8})  # stopped there: a run goes on from it
    assert states.iterations() == [13, 12, 10]
    save(14)
    states.prune(3, 14, 2, best={8, 13})
    assert states.iterations() == [14, 12, 10]
    assert sorted(file.name for file in tmp_path.glob('models/*')) == [f'net_g_{i}.pth' for i in (10, 12, 14, 8)]


@pytest.mark.parametrize('setting', SETTINGS)
def test_a_killed_run_ends_as_one_that_never_stopped(workspace, job, setting):
    workers, changes = SETTINGS[setting]
    finish([start(TRAIN, *job(0, changes), cwd=workspace.path)])
    unbroken = put_aside()
    waits = random_seconds(workers, 0.4)
    for number, wait in zip([signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL], waits):
        process = start(TRAIN, *job(workers, changes), cwd=workspace.path)
        wait_for_progress([process], Path('experiments'), wait)
        process.send_signal(number)
        (output,) = outputs([process])
        assert process.returncode in ENDS, output
        assert 'Traceback' not in output
    finish([start(TRAIN, *job(workers, changes), cwd=workspace.path)])
    assert_same_runs(unbroken)


def test_two_killed_ranks_end_as_two_that_never_stopped(workspace, job):
    finish(start_ranks(2, *job(0, DROPOUT), cwd=workspace.path))
    unbroken = put_aside()
    for number, wait in zip([signal.SIGKILL, signal.SIGTERM, signal.SIGKILL], random_seconds(2, 0.6)):
        processes = start_ranks(2, *job(0, DROPOUT), cwd=workspace.path)
        wait_for_progress(processes, Path('experiments'), wait)
        for process in processes:
            process.send_signal(number)
        outputs(processes)
    finish(start_ranks(2, *job(0, DROPOUT), cwd=workspace.path))
    assert_same_runs(unbroken)
    random_states = torch.load('experiments/run/student/training_states/16.state')['random_states']
    assert len(random_states) == 2 and not torch.equal(random_states[0]['torch'], random_states[1]['torch'])
