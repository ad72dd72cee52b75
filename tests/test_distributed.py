"""Several processes train as one, on a CPU too, and end together."""

import json
import os
import signal
import time
import zlib
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from pisr_plugin.cli.train import main as train
from pisr_plugin.engine.distributed import process_group
from pisr_plugin.engine.watchdog import RankWatchdog
from pisr_plugin.inference import checkpoint
from pisr_plugin.utils.errors import OptionsError
from tests.conftest import make_images
from tests.processes import TRAIN, free_port, outputs, start, start_ranks, wait_for_progress

EXPERIMENTS = Path('experiments')


def torchrun(*arguments, cwd, nodes=1, node=0, port=None, ranks=2):
    return start(
        *('-m', 'torch.distributed.run', '--nnodes', nodes, '--node_rank', node, '--nproc_per_node', ranks),
        *('--master_addr', '127.0.0.1', '--master_port', port or free_port()),
        *(TRAIN, *arguments, '--launcher', 'pytorch'),
        cwd=cwd,
    )


def endless(workspace, *changes, **options):
    """Arguments for a run that only a signal ends."""
    recipe = workspace.recipe(
        'baseline',
        train={'total_iter': 10**6},
        logger={'print_freq': 1, 'save_checkpoint_freq': 10**5, 'use_tb_logger': False},
        **{'val': {'val_freq': 10**5}, **options},
    )
    return '-opt', recipe, *(('--force_yml', *changes) if changes else ())


def weights(folder, name):
    return checkpoint.load_weights(folder / 'models' / name)


def test_two_ranks_train_as_one_process_with_twice_the_batch(workspace):
    """Same weights within rounding, estimators too, same metrics over a set that ranks share unevenly."""
    make_images(workspace.path / 'datasets/three', 3)
    recipe = workspace.recipe(
        train={'total_iter': 4, 'ema_decay': 0.5},
        val={'val_freq': 2, 'save_img': True},
    )
    common = ['-opt', recipe, '--force_yml', 'datasets:val:dataroot_gt=datasets/three/HR']
    common += ['datasets:val:dataroot_lq=datasets/three/LR_bicubic/X2']
    alone = start(TRAIN, *common, 'datasets:train:batch_size_per_gpu=8', 'name=alone', cwd=workspace.path)
    together = torchrun(*common, 'datasets:train:batch_size_per_gpu=4', 'name=together', cwd=workspace.path)
    told = outputs([alone, together], timeout=300)
    assert alone.returncode == together.returncode == 0, told
    for stage, files in (('teacher', ['net_t']), ('student', ['net_g', 'net_e'])):
        folders = [EXPERIMENTS / name / stage for name in ('alone', 'together')]
        for file in files:
            one, two = (weights(folder, f'{file}_latest.pth') for folder in folders)
            for key in one:
                torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-6)
        one, two = (json.loads((folder / 'result.json').read_text())['metrics']['test'] for folder in folders)
        assert two == pytest.approx(one, abs=2e-4)  # the weights differ by rounding
        images = [{p.name for p in folder.rglob('*.png')} for folder in folders]
        assert images[0] == images[1] and len(images[0]) == 6
        assert len(list(folders[1].glob('*.log'))) == 1
    assert 'World size (gpu number): 2' in next(folders[1].glob('*.log')).read_text()
    assert told[1].count('Validation test') == 4


VALIDATION = """
import sys, torch
import pisr_plugin
from basicsr.models import build_model
from pisr_plugin.engine.distributed import process_group
from pisr_plugin.engine.watchdog import RankWatchdog
from pisr_plugin.engine.loop import _val_loaders
from pisr_plugin.config.runtime import runtime_options
from pisr_plugin.config.compose import compose
from pisr_plugin.config.stages import unroll

with process_group(sys.argv[1]):
    stage = unroll(compose('run.yml'))[0]
    opt = runtime_options(stage, stage.folder, is_train=True)
    torch.manual_seed(0)
    model = build_model(opt)
    model.validation(_val_loaders(opt)[0], 1, None, False)
    open(f'{sys.argv[2]}_{opt["rank"]}', 'w').write(repr(list(model.metric_results.values())))
"""


def test_validation_over_ranks_gives_the_figures_of_one_process(workspace):
    make_images(workspace.path / 'datasets/test', 3)
    workspace.recipe('baseline')
    (workspace.path / 'validation.py').write_text(VALIDATION)
    meeting = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': free_port(), 'WORLD_SIZE': 2}
    ranks = [{'RANK': rank, 'LOCAL_RANK': rank, **meeting} for rank in range(2)]
    processes = [start('validation.py', 'none', 'one', cwd=workspace.path)]
    processes += [start('validation.py', 'pytorch', 'two', cwd=workspace.path, **rank) for rank in ranks]
    told = outputs(processes)
    assert [process.returncode for process in processes] == [0, 0, 0], told
    one, *two = (json.loads(Path(name).read_text()) for name in ('one_0', 'two_0', 'two_1'))
    assert two[0] == two[1] == pytest.approx(one, abs=1e-6) and len(one) == 2


@pytest.mark.parametrize('optimizer', ['{type: Adam, lr: 1e-3}', '{type: SOAP, lr: 3e-3}'])
def test_ranks_hold_the_same_student_and_estimators(workspace, optimizer):
    (workspace.path / 'spy.py').write_text(
        'import os, torch\n'
        'from pisr_plugin.models.pisr_model import PISRModel\n'
        'save = PISRModel.save\n'
        'def spied(self, epoch, current_iter):\n'
        '    save(self, epoch, current_iter)\n'
        '    if len(self.estimators):\n'
        '        content = {"net": self.net.state_dict(), "estimators": self.estimators.state_dict()}\n'
        '        torch.save(content, f"spy_{os.environ[\'RANK\']}.pth")\n'
        'PISRModel.save = spied\n'
    )
    arguments = ('-opt', workspace.recipe(), '--plugin', 'spy', '--force_yml', f'train:optim_g={optimizer}')
    processes = start_ranks(2, *arguments, cwd=workspace.path)
    told = outputs(processes)
    assert [process.returncode for process in processes] == [0, 0], told
    one, two = (torch.load(f'spy_{rank}.pth') for rank in range(2))
    for part in ('net', 'estimators'):
        assert one[part] and all(torch.equal(one[part][key], two[part][key]) for key in one[part])


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_ranks_stop_at_the_same_iteration_although_one_alone_is_asked(workspace, number):
    processes = start_ranks(2, *endless(workspace), cwd=workspace.path)
    wait_for_progress(processes, EXPERIMENTS, 0.2)
    processes[1].send_signal(number)
    told = outputs(processes)
    assert [process.returncode for process in processes] == [130, 130], told
    assert 'Traceback' not in ''.join(told) and ''.join(told).count('--auto_resume') == 1
    (state,) = EXPERIMENTS.rglob('*.state')
    assert len(torch.load(state)['random_states']) == 2


@pytest.mark.parametrize('dead', [0, 1])
def test_when_a_rank_is_killed_the_others_say_so_and_end(workspace, dead):
    processes = start_ranks(3, *endless(workspace), cwd=workspace.path)
    wait_for_progress(processes, EXPERIMENTS, 0.2)
    processes[dead].kill()
    told = outputs(processes)
    others = [rank for rank in range(3) if rank != dead]
    assert [processes[rank].returncode for rank in others] == [2, 2], told
    assert 'Traceback' not in ''.join(told) and 'terminate called' not in ''.join(told)
    # rank 0 keeps the store at which they meet; without it each tells for itself
    messages = [line for rank in others for line in told[rank].splitlines() if line.startswith('error: ')]
    assert len(messages) in ({1} if dead else {1, 2}) and all(f'rank {dead} has ended' in line for line in messages)


class LosableStore:
    """A store that can be lost, as the one of rank 0 is when rank 0 ends."""

    def __init__(self):
        self.store, self.lost = dist.HashStore(), False

    def __getattr__(self, name):
        if self.lost:
            raise dist.DistError('Connection closed')
        return getattr(self.store, name)


@pytest.mark.parametrize(
    ('reason', 'expected'), [(b'rank 1 has ended.', ''), (b'', 'rank 0 has ended; see its message.')]
)
def test_a_rank_that_loses_the_store_repeats_no_message(reason, expected):
    store = LosableStore()
    watchdog = RankWatchdog(lambda: store, rank=2, world_size=3)
    store.set('ended/0', reason)
    deadline = time.monotonic() + 30
    while not watchdog._gone and time.monotonic() < deadline:
        time.sleep(0.01)
    store.lost = True
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert str(watchdog.explain(RuntimeError('gloo: Connection reset by peer'))) == expected
    finally:
        signal.signal(signal.SIGTERM, handler)
        watchdog.leave()


def test_a_rank_that_loses_the_store_while_it_waits_repeats_no_message():
    """Rank 0 has told what happened, and ends as soon as the others know it, with the store."""
    reason = 'rank 1 has ended without a message: it was killed, or its machine is gone.'

    class EndsWhenAllKnow(LosableStore):
        def set(self, key, value):
            self.store.set(key, value)
            self.lost = self.lost or key == 'ended/2'

    store = EndsWhenAllKnow()
    store.store.set('ended/0', reason)
    store.store.add(f'told/{zlib.crc32(reason.encode())}', 1)
    watchdog = RankWatchdog(lambda: store, rank=2, world_size=3)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert str(watchdog.explain(RuntimeError('gloo: Connection reset by peer'))) == ''
    finally:
        signal.signal(signal.SIGTERM, handler)
        watchdog.leave()


def test_when_a_rank_fails_the_others_refer_to_it(workspace):
    (workspace.path / 'failing.py').write_text(
        'import os\n'
        'from pisr_plugin.models.pisr_model import PISRModel\n'
        'step = PISRModel.optimize_parameters\n'
        'def failing(self, current_iter):\n'
        '    if current_iter == 5 and os.environ["RANK"] == "1":\n'
        '        raise ZeroDivisionError("on purpose")\n'
        '    step(self, current_iter)\n'
        'PISRModel.optimize_parameters = failing\n'
    )
    processes = start_ranks(2, *endless(workspace), '--plugin', 'failing', cwd=workspace.path)
    told = outputs(processes)
    assert processes[0].returncode == 2 and processes[1].returncode == 70
    assert 'error: rank 1 has ended; see its message.' in told[0] and 'Traceback' not in ''.join(told)
    assert 'error: unexpected ZeroDivisionError: on purpose' in told[1]
    assert len(list(workspace.path.glob('pisr-error-*.log'))) == 1


def test_a_mistake_is_told_once_and_ends_all_ranks(workspace):
    processes = start_ranks(2, *endless(workspace, 'network_g:num_feet=3'), cwd=workspace.path)
    told = outputs(processes)
    assert [process.returncode for process in processes] == [2, 2]
    assert sum(text.count('error: ') for text in told) == 1 and 'num_feet' in ''.join(told)


def test_what_only_the_first_rank_finds_ends_all(workspace):
    EXPERIMENTS.write_text('in the way')
    processes = start_ranks(2, *endless(workspace), cwd=workspace.path)
    told = outputs(processes)
    assert [process.returncode for process in processes] == [2, 2]
    assert sum(text.count('error: ') for text in told) == 1 and 'cannot create this folder' in ''.join(told)


def test_two_nodes(workspace):
    port, recipe = free_port(), workspace.recipe('baseline')
    nodes = [torchrun('-opt', recipe, cwd=workspace.path, nodes=2, node=node, port=port, ranks=1) for node in range(2)]
    told = outputs(nodes, timeout=200)
    assert [node.returncode for node in nodes] == [0, 0], told
    state = torch.load(EXPERIMENTS / 'run/student/training_states/4.state')
    assert state['world_size'] == 2


def test_tasks_of_slurm(workspace):
    slurm = {'SLURM_NTASKS': 2, 'SLURM_NODELIST': 'node[1-2]', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': free_port()}
    tasks = [
        start(
            *(TRAIN, '-opt', workspace.recipe('baseline'), '--launcher', 'slurm'),
            cwd=workspace.path,
            SLURM_PROCID=task,
            SLURM_LOCALID=task,
            **slurm,
        )
        for task in range(2)
    ]
    told = outputs(tasks)
    assert [task.returncode for task in tasks] == [0, 0], told
    assert torch.load(EXPERIMENTS / 'run/student/training_states/4.state')['world_size'] == 2


def test_ranks_that_do_not_come_are_waited_for_no_longer_than_asked(workspace):
    variables = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': free_port(), 'WORLD_SIZE': 2, 'RANK': 0, 'LOCAL_RANK': 0}
    alone = start(
        TRAIN,
        *endless(workspace, 'dist_params={timeout: 3}'),
        *('--launcher', 'pytorch'),
        cwd=workspace.path,
        **variables,
    )
    (told,) = outputs([alone])
    assert alone.returncode == 2 and 'rank 0 of 2 did not meet the others at 127.0.0.1' in told, told
    assert 'Traceback' not in told


LAUNCHED = {'RANK': '0', 'WORLD_SIZE': '1', 'LOCAL_RANK': '0', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '29500'}


@pytest.mark.parametrize(
    'name, value, told',
    [
        ('RANK', '1', 'Expected 0 to 0'),
        ('RANK', '-1', 'Expected a whole number'),
        ('RANK', 'first', "found 'first'"),
        ('WORLD_SIZE', '0', 'Expected a whole number from 1'),
        ('LOCAL_RANK', '', 'Expected a whole number'),
        ('MASTER_PORT', '70000', 'from 1 to 65535'),
        ('MASTER_ADDR', 'no such host', 'cannot be resolved'),
    ],
)
def test_a_mistake_in_the_launchers_environment_is_one_message(workspace, capsys, monkeypatch, name, value, told):
    for key, text in {**LAUNCHED, name: value}.items():
        monkeypatch.setenv(key, text)
    assert train(['-opt', str(workspace.recipe()), '--launcher', 'pytorch']) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: --launcher pytorch: {name}') and told in error and error.count('\n') == 1
    assert not EXPERIMENTS.exists()


def test_nccl_without_a_gpu_becomes_gloo(monkeypatch, capsys):
    for key, text in {**LAUNCHED, 'MASTER_PORT': str(free_port())}.items():
        monkeypatch.setenv(key, text)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with process_group('pytorch', backend='nccl'):
        assert torch.distributed.get_backend() == 'gloo'
    assert capsys.readouterr().err.count('nccl needs a GPU') == 1


def test_ranks_that_torchrun_starts_again_resume(workspace, monkeypatch, capfd):
    recipe = ['-opt', str(workspace.recipe('baseline'))]
    assert train(recipe) == 0
    for file in ('result.json', 'training_states/4.state'):
        (EXPERIMENTS / 'run/student' / file).unlink()
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')
    assert train(recipe) == 0
    assert 'Resuming training from iter: 2.' in capfd.readouterr().err
    assert not list(EXPERIMENTS.rglob('*archived*'))


def test_a_launcher_without_its_processes_says_how_to_start(workspace, capsys, monkeypatch):
    for name in ('RANK', 'SLURM_PROCID'):
        monkeypatch.delenv(name, raising=False)
    assert train(['-opt', str(workspace.recipe()), '--launcher', 'pytorch']) == 2
    assert 'torchrun' in capsys.readouterr().err
    with pytest.raises(OptionsError, match='srun'), process_group('slurm'):
        pass


def test_slurm_variables_are_never_given_to_a_shell(tmp_path):
    (tmp_path / 'scontrol').write_text('#!/bin/sh\nprintf "%s" "$3" > "$OUT"\necho 127.0.0.1\n')
    (tmp_path / 'scontrol').chmod(0o755)
    hostile = f'node1; touch {tmp_path}/made'
    variables = {
        'PATH': f'{tmp_path}:{os.environ["PATH"]}',
        'OUT': str(tmp_path / 'seen'),
        'SLURM_NODELIST': hostile,
        'SLURM_PROCID': '0',
        'SLURM_NTASKS': '1',
        'SLURM_LOCALID': '0',
    }
    code = (
        'from pisr_plugin.engine.distributed import process_group\n'
        f'with process_group("slurm", port={free_port()}): pass'
    )
    process = start('-c', code, cwd=tmp_path, **variables)
    told = outputs([process])
    assert process.returncode == 0, told
    assert (tmp_path / 'seen').read_text() == hostile and not (tmp_path / 'made').exists()
