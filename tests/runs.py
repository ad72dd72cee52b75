"""How runs end, what they report, and whether their files hold the same."""

import json
import signal

import torch

# 130 once it takes signals itself; before that it has nothing to save
ENDS = (130, 0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)


def assert_same(found, expected, place=''):
    assert type(found) is type(expected), place
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), place
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key in expected:
            assert_same(found[key], expected[key], f'{place}.{key}')
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for i, pair in enumerate(zip(found, expected)):
            assert_same(*pair, f'{place}[{i}]')
    else:
        assert found == expected, place


def reports(folder):
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith('time')} for line in lines]
