"""The stable names of the package, used as docs/python.md shows."""

import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch

import pisr_plugin

PAGE = (Path(__file__).parents[1] / 'docs/python.md').read_text()
DISTIL, USE, LIGHTNING = re.findall(r'```python\n(.*?)```', PAGE, re.S)


def test_the_code_of_the_page_runs_and_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    # what the loop computes is watched through its own names
    distil = DISTIL.replace('    optimizer.step()\n', '    optimizer.step()\n    losses.append(loss.item())\n')
    names = {'losses': []}
    exec(distil, names)
    assert len(names['losses']) == 10 and names['losses'][-1] < names['losses'][0]
    trained = dict(names['student'].state_dict())
    exec(USE, names)
    assert all(torch.equal(value, trained[key]) for key, value in names['model'].net.state_dict().items())
    assert capsys.readouterr().out.splitlines()[-1] == 'FSRCNN 2 1 12644'


def test_the_code_for_lightning_trains_the_student_alone(tmp_path, monkeypatch):
    pytest.importorskip('lightning')
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    start, end = LIGHTNING.split('trainer.fit(')
    names: dict = {}
    losses: list[float] = []
    exec(start, names)
    before = deepcopy(names['model'].state_dict())
    names['model'].log = lambda name, value: losses.append(value.item())
    exec(f'trainer.fit({end}', names)
    after = names['model'].state_dict()
    same = {key for key, value in before.items() if torch.equal(value, after[key])}
    assert {key for key in before if key.startswith('teacher.')} == same
    assert not names['teacher'].training
    saved = torch.load('net_g.pth', weights_only=True)['params']
    assert all(torch.equal(value, after[f'linked.net.{key}']) for key, value in saved.items())
    assert len(losses) == 20 and losses[-1] < losses[0]


def test_every_public_name_exists_and_is_on_the_page():
    for name in pisr_plugin.__all__:
        value = getattr(pisr_plugin, name)
        assert not callable(value) or f'`{name}`' in PAGE and value.__doc__, name
