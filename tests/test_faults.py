"""Disks fail and the power goes; the last good state resumes bit for bit.

By default a sample of the points is tried; ``PISR_ALL_FAULTS=1`` tries them all.
"""

import json
import os

import pytest

from tests.processes import start

EVERY = {'fail': 12, 'cut': 6}  # of the points that are tried by default


@pytest.mark.parametrize('kind', EVERY)
def test_the_last_good_state_survives(workspace, kind):
    workspace.recipe(
        'baseline',
        train={'total_iter': 4, 'ema_decay': 0.5},
        logger={'print_freq': 1, 'save_checkpoint_freq': 2, 'keep_checkpoints': 1, 'use_tb_logger': False},
    )
    every = 1 if os.environ.get('PISR_ALL_FAULTS') else EVERY[kind]
    process = start('-m', 'tests.fault_runs', kind, workspace.path, every, cwd=workspace.path)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    found = json.loads(output.splitlines()[-1])
    assert not found['problems'], '\n'.join(found['problems'])
    assert found['points'] >= 5
    print(found['points'], 'points')
