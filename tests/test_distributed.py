"""Two processes train as one, on a CPU too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pisr_plugin.engine.distributed import process_group
from pisr_plugin.engine.train import main as train
from pisr_plugin.errors import OptionsError
from tests.conftest import ROOT


def test_two_processes_train_both_stages(workspace):
    command = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--nproc_per_node',
        '2',
        '--master_port',
        '29517',
        str(ROOT / 'tools/train.py'),
        '-opt',
        str(workspace.recipe()),
        '--launcher',
        'pytorch',
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in ('teacher', 'student'):
        folder = Path('experiments/run') / stage
        assert json.loads((folder / 'result.json').read_text())['iter'] == 4
        assert len(list(folder.glob('*.log'))) == 1
    assert 'World size (gpu number): 2' in next(folder.glob('*.log')).read_text()


def test_a_launcher_without_its_processes_says_how_to_start(workspace, capsys, monkeypatch):
    for name in ('RANK', 'SLURM_PROCID'):
        monkeypatch.delenv(name, raising=False)
    assert train(['-opt', str(workspace.recipe()), '--launcher', 'pytorch']) == 2
    assert 'torchrun' in capsys.readouterr().err
    with pytest.raises(OptionsError, match='srun'), process_group('slurm'):
        pass


def test_slurm_variables_are_never_given_to_a_shell(monkeypatch, tmp_path):
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
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            'from pisr_plugin.engine.distributed import process_group\nwith process_group("slurm", port=29518): pass',
        ],
        env={**os.environ, **variables, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'seen').read_text() == hostile and not (tmp_path / 'made').exists()
