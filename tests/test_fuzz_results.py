"""Whatever an evaluation.json or a metrics.jsonl holds, reading it returns a valid record or raises one message."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pisr_plugin.evaluation.results import read_evaluation, to_json, to_markdown
from pisr_plugin.report.sections.curves import read_log
from pisr_plugin.report.sections.summary import below_bicubic
from pisr_plugin.utils.errors import DataError

SETTINGS = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBERS = st.one_of(st.integers(), st.integers(10**20, 10**400), st.floats(), st.booleans(), st.none())
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(['', '/etc/passwd', '../x', 'a\0b', '\ud800', 'x' * 5000]))
VALUES = st.recursive(
    NUMBERS | TEXTS, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXTS, v, max_size=3), max_leaves=8
)


def sample() -> dict:
    images = {'baby': {'psnr': 30.0, 'ssim': 0.9, 'picture': 'pictures/baby.png'}}
    sets = {
        'Set5': {'mean': {'psnr': 30.0, 'ssim': 0.9}, 'spread': {'psnr': 0.1}, 'difference': None, 'images': images}
    }
    row = {'title': 'A', 'role': 'student', 'network': 'FSRCNN', 'parameters': 12, 'multi_adds': 3e9, 'sets': sets}
    row['training_seconds'] = 12.5
    row |= {'published': {'Set5': [37.0, 0.9]}, 'seeds': [0], 'seconds': {'Set5': 0.1}}
    row['runs'] = [{'seed': 0, 'stage': 's', 'folder': '../../e/s', 'checkpoint': '../../e/s/net_g_latest.pth'}]
    return {
        'kind': 'evaluation',
        'version': 1,
        'title': 'T',
        'scale': 2,
        'protocol': {'name': 'pisr', 'text': 't', 'borders': {'psnr': 2}},
        'self_ensemble': False,
        'environment': {'torch': '2', 'threads': 1},
        'metrics': {'psnr': 'higher', 'ssim': 'higher'},
        'against': 'a',
        'ground_truth': {'Set5': {'baby': 'pictures/gt.png'}},
        'rows': [{'name': 'b', **row, 'role': 'bicubic'}, {'name': 'a', **row}],
    }


def places(value, path=()):
    """Paths to all that a JSON value holds."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def changed(draw) -> dict:
    """The sample with one to three places changed, removed or renamed."""
    content = json.loads(json.dumps(sample()))
    for _ in range(draw(st.integers(1, 3))):
        *parents, key = draw(st.sampled_from(sorted(places(content), key=str)))
        holder = content
        for parent in parents:
            holder = holder[parent]
        action = draw(st.sampled_from(['change', 'remove', 'rename']))
        if action == 'rename' and isinstance(holder, dict):
            holder[draw(TEXTS)] = holder.pop(key)
        elif action == 'remove':
            del holder[key]
        else:
            holder[key] = draw(VALUES)
    return content


def is_read_or_refused(folder, content: bytes) -> None:
    (folder / 'evaluation.json').write_bytes(content)
    before = sorted(folder.iterdir())
    try:
        evaluation = read_evaluation(folder)
    except DataError as error:
        assert str(folder) in str(error) and len(str(error)) < 6000
    else:
        json.dumps(to_json(evaluation, folder), allow_nan=False).encode()
        to_markdown(evaluation).encode()
        below_bicubic(evaluation)
        for row in evaluation.rows:
            for record in row.sets.values():
                assert all(math.isfinite(value) for value in record.mean.values())
    assert sorted(folder.iterdir()) == before


def test_the_sample_is_valid_and_is_written_as_it_was_read(tmp_path):
    for name in ('baby', 'gt'):
        (tmp_path / 'pictures').mkdir(exist_ok=True)
        (tmp_path / f'pictures/{name}.png').touch()
    (tmp_path / 'evaluation.json').write_text(json.dumps(sample()))
    assert to_json(read_evaluation(tmp_path), tmp_path) == sample()


@SETTINGS
@given(changed())
def test_a_changed_evaluation_is_read_or_refused(tmp_path, content):
    is_read_or_refused(tmp_path, json.dumps(content).encode())


@SETTINGS
@given(st.data())
def test_damaged_bytes_are_read_or_refused(tmp_path, data):
    content = bytearray(json.dumps(sample()).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    is_read_or_refused(tmp_path, bytes(content))


@pytest.mark.parametrize(
    'content', [b'', b'[' * 100_000, b'{"kind": "evaluation", "version": 1e400}', b'\xff', b'9' * 6000]
)
def test_files_that_are_no_evaluation_are_refused(tmp_path, content):
    (tmp_path / 'evaluation.json').write_bytes(content)
    with pytest.raises(DataError):
        read_evaluation(tmp_path)


def test_containers_of_any_depth_are_refused(tmp_path):
    """Near the depth that the JSON parser refuses itself, the text of a value exhausts the stack."""
    for place in ('title', 'version', 'scale'):
        for depth in range(1, 1000, 9):
            value = b'[' * depth + b']' * depth
            content = json.dumps({**sample(), place: '@'}).encode().replace(b'"@"', value)
            (tmp_path / 'evaluation.json').write_bytes(content)
            with pytest.raises(DataError):
                read_evaluation(tmp_path)


@SETTINGS
@given(st.lists(st.dictionaries(st.sampled_from(['iter', 'l_pix', 'psnr', 'dataset', 'lr']), VALUES)), st.binary())
def test_a_log_gives_finite_points_in_order(tmp_path, records, garbage):
    path = tmp_path / 'metrics.jsonl'
    path.write_bytes(b'\n'.join([json.dumps(record).encode() for record in records] + [garbage]))
    for series in read_log(path):
        for iterations, values in series.values():
            assert iterations == sorted(set(iterations)) and all(map(math.isfinite, values))
    path.write_bytes(path.read_bytes() + b'\n{"iter": 7, "l_sure": 2}\n{"iter": 8, "l_su')
    assert read_log(path)[0]['l_sure'] == ([7], [2])
