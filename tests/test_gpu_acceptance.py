"""``make gpu`` on a machine without a GPU: every check that needs none runs to its end, in small."""

import json

import pytest
import torch

from benchmarks import gpu
from tests.processes import WarmProcess

NEED_GPUS = {'marked_tests', 'waits', 'ablation'}


def test_every_check_that_needs_no_gpu_passes_in_small(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    code = gpu.main(['--device', 'cpu', '-o', str(tmp_path / 'gpu')], popen=WarmProcess)
    told = capsys.readouterr().out.splitlines()
    results = json.loads(told[-1])['results']
    [summary] = results.pop('summary')
    found = {row['check']: row['result'] for row in summary['rows']}
    assert found == {check.__name__: 'skipped' if check.__name__ in NEED_GPUS else 'passed' for check in gpu.CHECKS}, (
        told
    )
    assert code == 0
    assert all(results[name] and all(table['rows'] for table in results[name]) for name in set(found) - NEED_GPUS)
    page = (tmp_path / 'gpu/gpu.md').read_text()
    assert json.loads(page.split('```json\n')[1].split('\n```')[0]) == json.loads(told[-1])
    assert '| demo | passed |' in page and '## ranks' in page


def place(tmp_path) -> gpu.Place:
    return gpu.Place(tmp_path, 'cpu', deadline=float('inf'))


def test_checks_go_on_after_one_that_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu.Place, 'program', lambda *_: [gpu.Table('Machine', [{'gpus': 0}])])

    def breaks(place):
        place.tables.append(gpu.Table('Seen before', [{'value': 1}]))
        raise gpu.CheckFailed('PSNR differs')

    def crashes(place):
        raise KeyError('rows')

    def works(place):
        pass

    assert gpu.run(place(tmp_path), (breaks, crashes, works)) == 2
    page = (tmp_path / 'gpu.md').read_text()
    assert 'PSNR differs' in page and "KeyError: 'rows'" in page and 'Seen before' in page
    assert '| works | passed |' in page


def test_a_command_that_fails_is_told_with_its_last_line(tmp_path):
    with pytest.raises(gpu.CheckFailed, match='exit code 3 in place of 0, see 01.log: no such kernel'):
        place(tmp_path).python('-c', 'print("no such kernel"); raise SystemExit(3)')


def test_a_table_that_notes_a_failure_fails_its_check(tmp_path):
    one = place(tmp_path)
    with pytest.raises(gpu.CheckFailed, match='waits in the eager step'):
        one._tables([{'title': 'Waits', 'rows': [{'a': 1}], 'notes': ['failed: waits in the eager step']}])
    assert one.tables


def test_lines_of_falling_back_are_found(tmp_path):
    one = place(tmp_path)
    log = one.stage('run', 'student') / 'train.log'
    log.parent.mkdir(parents=True)
    log.write_text('INFO: train.cuda_graph: needs a CUDA device; steps are launched one by one.\n  cuda_graph: True\n')
    assert one.fallbacks('run') == ['train.cuda_graph: needs a CUDA device; steps are launched one by one.']


@pytest.mark.skipif(torch.cuda.is_available(), reason='for a machine without CUDA')
def test_without_a_gpu_it_says_so_and_ends_with_2(tmp_path, capsys):
    assert gpu.main(['-o', str(tmp_path / 'gpu')], popen=WarmProcess) == 2
    message = 'There is no GPU here that PyTorch can use. (--device cpu runs the same checks in small.)'
    assert capsys.readouterr().out.splitlines() == [message]
