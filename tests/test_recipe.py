"""Recipes compose, take overrides and references, unroll into stages; and nothing in them runs."""

import textwrap
from pathlib import Path

import pytest

from pisr_plugin.ablation.grid import read_grid
from pisr_plugin.config.compose import compose, override, resolve
from pisr_plugin.config.recipes import OPTIONS, find_recipe
from pisr_plugin.config.stages import select, unroll
from pisr_plugin.utils.errors import OptionsError


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(textwrap.dedent(text))
        return tmp_path / name

    return write


def test_a_recipe_merges_over_its_base(write):
    write('base.yml', 'train: {lr: 1e-3, optim: {type: Adam, eps: 1e-8}, steps: !!float 2e5}')
    path = write(
        'child.yml',
        """
        _base_: base.yml
        name: child
        train: {lr: 2.5E-4, optim: {_delete_: true, type: SGD}}""",
    )
    assert compose(path) == {'name': 'child', 'train': {'lr': 2.5e-4, 'optim': {'type': 'SGD'}, 'steps': 2e5}}


@pytest.mark.parametrize(
    'text, value',
    [('1e-4', 1e-4), ('!!float 1e-4', 1e-4), ('1e6', 1000000), ('-.5e2', -50), ('e4', 'e4'), ('x1e4', 'x1e4')],
)
def test_numbers_with_exponents_are_numbers(write, text, value):
    assert compose(write('a.yml', f'x: {text}'))['x'] == value
    assert override({}, [f'x={text}'])['x'] == value
    assert type(override({}, [f'x={text}'])['x']) is type(value)


def test_yaml_with_python_objects_is_refused_and_not_run(write, tmp_path):
    evil = f'x: !!python/object/apply:os.mkdir ["{tmp_path}/made"]'
    for path in (write('evil.yml', evil), write('child.yml', '_base_: evil.yml')):
        with pytest.raises(OptionsError, match='evil.yml: cannot read this as YAML'):
            compose(path)
    with pytest.raises(OptionsError, match='force_yml'):
        override({}, [f'a={evil[3:]}'])
    assert not (tmp_path / 'made').exists()


@pytest.mark.parametrize(
    'files, fragments',
    [
        (
            {'a.yml': '_base_: bse.yml', 'base.yml': 'x: 1'},
            ['a.yml: _base_: ', 'bse.yml does not exist', "Did you mean 'base.yml'?"],
        ),
        ({'a.yml': '_base_: b.py', 'b.py': 'x = 1'}, ['a.yml: _base_: ', 'b.py is not a YAML file']),
        ({'a.yml': 'x: [1'}, ['a.yml: cannot read this as YAML', 'line 1']),
        ({'a.yml': 'x: 1\nx: 2'}, ["'x' is given twice", 'line 2']),
        ({'a.yml': '- 1'}, ['Expected a mapping of options']),
        ({'a.yml': '_base_: a.yml'}, ['its own base']),
        (
            {'a.yml': '_base_: [b.yml, c.yml]', 'b.yml': 'x: {y: 1}', 'c.yml': 'x: {z: 1}'},
            ['the same option (found x)', 'Chain the bases'],
        ),
        (
            {'a.yml': '_base_: b.yml\nx: {y: 1}', 'b.yml': 'x: 3'},
            ['a.yml: x: a mapping meets', '(found 3)', '_delete_'],
        ),
    ],
)
def test_a_broken_recipe_is_told_in_one_message(write, tmp_path, files, fragments):
    for name, text in files.items():
        write(name, text)
    with pytest.raises(OptionsError) as error:
        compose(tmp_path / 'a.yml')
    assert all(fragment in str(error.value) for fragment in fragments), error.value


# ------------------------------------------------------------------------------------- recipes of the package


NAMES = ['pisr_fsrcnn_x2', 'pisr_fsrcnn_x2.yml', 'options/pisr_fsrcnn_x2.yml', './options/pisr_fsrcnn_x2']


@pytest.mark.parametrize('name', [*NAMES, 'fast/pisr_fsrcnn_x2'])
def test_a_recipe_of_the_package_is_named_without_a_path(name, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = OPTIONS / ('fast/pisr_fsrcnn_x2.yml' if 'fast' in name else 'pisr_fsrcnn_x2.yml')
    assert compose(name) == compose(file)
    assert compose(write('mine.yml', f'_base_: {name}\nscale: 3')) == {**compose(file), 'scale': 3}


@pytest.mark.parametrize('name', NAMES)
def test_a_file_wins_over_a_recipe_of_the_package(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'options').mkdir()
    (tmp_path / name).write_text('mine: 1')
    assert find_recipe(name) == Path(name)


def test_a_grid_names_recipes_of_the_package_and_is_a_base_anywhere(write):
    rows = '{plain: {recipe: options/baseline_fsrcnn_x2.yml}, pisr: {}}'
    grid = read_grid(write('grid.yml', f'name: mine\nrecipe: pisr_fsrcnn_x2\ncommon: _base_/b100\nrows: {rows}'))
    assert [row.recipes[0]['name'] for row in grid.rows] == ['baseline_fsrcnn_x2', 'pisr_fsrcnn_x2']
    ours = read_grid('ablation/table1_x2')
    assert [row.name for row in read_grid(write('table.yml', '_base_: ablation/table1_x2\nname: mine')).rows] == [
        row.name for row in ours.rows
    ]


@pytest.mark.parametrize(
    'name, fragments',
    [
        ('pisr_fsrcn_x2', ['pisr_fsrcn_x2: does not exist', "Did you mean 'pisr_fsrcnn_x2'?", 'pisr-list recipes']),
        ('table1_x2_short', ["Did you mean 'ablation/table1_x2_short'?"]),
        ('my_recipe', ["Did you mean 'my_recipe.yml'?"]),
        ('../options/pisr_fsrcnn_x2.yml', ['does not exist']),
        (f'{OPTIONS}/../options/pisr_fsrcnn_x9', ['does not exist']),
        ('fast', ['does not exist']),
        ('', ['not a file']),
        ('x' * 300, ['not a file name']),
    ],
)
def test_an_unknown_name_is_one_message(name, fragments, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write('my_recipe.yml', 'x: 1')
    with pytest.raises(OptionsError) as error:
        find_recipe(name)
    assert all(fragment in str(error.value) for fragment in fragments), error.value


def staged():
    return {
        'name': 'r',
        'scale': 2,
        'network_g': {'type': 'N', 'upscale': '${scale}'},
        'network_t': {'type': 'T', 'decoder': '${network_g}'},
        'train': {'total_iter': 100, 'periods': ['${train.total_iter}'], 'links': {'a': 1}, 'ema_decay': 0.9},
        'stages': {
            'teacher': {'network_g': None, 'train': {'links': None, 'total_iter': 50}},
            'student': {'path': {'pretrain_network_t': 'stage:teacher'}},
        },
    }


def test_stages_resolve_to_plain_options(tmp_path):
    teacher, student = unroll(staged(), tmp_path)
    assert teacher.options == {
        'name': 'r_teacher',
        'scale': 2,
        'path': {},
        'network_t': {'type': 'T', 'decoder': {'type': 'N', 'upscale': 2}},
        'train': {'total_iter': 50, 'periods': [50], 'ema_decay': 0.9},
    }
    assert teacher.checkpoint == tmp_path / 'experiments/r/teacher/models/net_t_latest.pth'
    assert student.network == 'network_g' and teacher.network == 'network_t'
    assert student.options['train']['periods'] == [100]
    assert student.options['path'] == {
        'pretrain_network_t': str(teacher.checkpoint),
        'param_key_t': 'params_ema',
        'ignore_resume_networks': ['network_t'],
    }
    assert student.needs == {'path.pretrain_network_t': teacher.checkpoint}


def test_an_override_reaches_every_stage_that_has_the_option():
    recipe = override(staged(), ['train:total_iter=7', 'network_g:num_feat=8', 'train:links:a=2'])
    teacher, student = unroll(recipe)
    assert teacher.options['train']['total_iter'] == student.options['train']['total_iter'] == 7
    assert 'network_g' not in teacher.options and teacher.options['network_t']['decoder']['num_feat'] == 8
    assert 'links' not in teacher.options['train'] and student.options['train']['links'] == {'a': 2}


def test_an_override_does_not_bring_back_what_a_stage_does_without():
    teacher, student = unroll(override(staged(), ['network_g={type: M}', 'train:links={b: 3}']))
    assert 'network_g' not in teacher.options and 'links' not in teacher.options['train']
    assert student.options['network_g'] == {'type': 'M'} == teacher.options['network_t']['decoder']


def test_an_override_can_mean_one_stage_or_name_the_teacher():
    recipe = override(staged(), ['stages:teacher:train:total_iter=7', 'path:pretrain_network_t=/t.pth'])
    teacher, student = unroll(recipe)
    assert (teacher.options['train']['total_iter'], student.options['train']['total_iter']) == (7, 100)
    assert student.options['path']['pretrain_network_t'] == '/t.pth' and not student.needs


def test_a_recipe_without_stages_is_one_run(tmp_path):
    (stage,) = unroll({'name': 'plain', 'network_g': {'type': 'N'}}, tmp_path)
    assert stage.options['name'] == 'plain' and stage.folder == tmp_path / 'experiments/plain'


@pytest.mark.parametrize(
    'change, fragments',
    [
        (
            {'stages': {'student': {'path': {'pretrain_network_t': 'stage:techer'}}}},
            ['stages.student.path.pretrain_network_t', 'names no earlier stage'],
        ),
        ({'network_t': '${netwrk_g}'}, ['network_t', 'does not exist', "Did you mean 'network_g'?"]),
        ({'scale': '${scale}'}, ['refers to itself']),
        ({'name': 'a/b'}, ['name: not a name', "'a/b'", 'without slashes']),
        ({'stages': {}}, ['stages']),
        ({'stages': {'student': 3}}, ['stages.student', 'mapping']),
        ({'stages': {'student': {'train': {'total_iter': {'x': 1}}}}}, ['stages.student', 'total_iter']),
    ],
)
def test_stages_that_do_not_hold_together(change, fragments):
    with pytest.raises(OptionsError) as error:
        unroll({**staged(), **change})
    assert all(fragment in str(error.value) for fragment in fragments), error.value


def test_override_mistakes():
    for entry, fragment in (('a', 'write keys joined'), ('a:b:c=1', 'a.b is not a mapping'), ('x=[1', 'x=[1')):
        with pytest.raises(OptionsError, match='force_yml') as error:
            override({'a': {'b': 3}}, [entry])
        assert fragment in str(error.value)


def test_select_names_the_choice():
    with pytest.raises(OptionsError, match="Did you mean 'student'"):
        select(unroll(staged()), 'studnt')


def test_references_inside_text_and_lists():
    assert resolve({'s': 3, 'x': 'X${s}.lmdb', 'l': ['${s}', {'y': '${x}'}]}) == {
        's': 3,
        'x': 'X3.lmdb',
        'l': [3, {'y': 'X3.lmdb'}],
    }
