"""The stable names of the package, used as docs/python.md shows."""

import re
from pathlib import Path

import torch

import pisr_plugin

PAGE = (Path(__file__).parents[1] / 'docs/python.md').read_text()


def test_the_code_of_the_page_runs_and_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    distil, use = re.findall(r'```python\n(.*?)```', PAGE, re.S)
    # what the loop computes is watched through its own names
    distil = distil.replace('    optimizer.step()\n', '    optimizer.step()\n    losses.append(loss.item())\n')
    names = {'losses': []}
    exec(distil, names)
    assert len(names['losses']) == 10 and names['losses'][-1] < names['losses'][0]
    trained = dict(names['student'].state_dict())
    exec(use, names)
    assert all(torch.equal(value, trained[key]) for key, value in names['model'].net.state_dict().items())
    assert capsys.readouterr().out.splitlines()[-1] == 'FSRCNN 2 1 12644'


def test_every_public_name_exists_and_is_on_the_page():
    for name in pisr_plugin.__all__:
        value = getattr(pisr_plugin, name)
        assert not callable(value) or f'`{name}`' in PAGE and value.__doc__, name
