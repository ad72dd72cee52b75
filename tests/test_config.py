"""Hostile and mistaken options: each is one message that names the place, and nothing runs or is written."""

from __future__ import annotations

import sys
from copy import deepcopy
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml

from pisr_plugin.ablation import plan as plans
from pisr_plugin.ablation.grid import read_grid
from pisr_plugin.cli.ablate import main as ablate
from pisr_plugin.cli.train import main as train
from pisr_plugin.config import parse as limits
from pisr_plugin.config import plugins, schema
from pisr_plugin.config.compose import compose, merge, override, resolve
from pisr_plugin.config.parse import dump, parse, read_yaml
from pisr_plugin.config.plugins import read_recipe
from pisr_plugin.config.schema import check_options, stage_rule
from pisr_plugin.config.stages import unroll, weight_options
from pisr_plugin.engine.train import is_finished
from pisr_plugin.utils.errors import OptionsError
from tests.conftest import ROOT

RECIPE = ROOT / 'options/pisr_fsrcnn_x2.yml'
COMPOSED = compose(RECIPE)


def checked(*overrides: str) -> list:
    """The stages of a shipped recipe after overrides, checked as for training."""
    stages = unroll(override(deepcopy(COMPOSED), overrides))
    for stage in stages:
        check_options(stage.options, stage.option_path, is_train=True)
    return stages


# -------------------------------------------------------------------------------------------------- one strict parse

OBJECT = '!!python/object/apply:os.mkdir ["made"]'
SMUGGLED = {
    'tag': f'name: {OBJECT}',
    'key': f'? {OBJECT}\n: 1',
    'a substitution that swallows a line': f'z: {{p: {{q: 1, # {{{{ _base_.x\n}}}}\ny: a, {OBJECT}}}}}',
    'U+FEFF': f'a: 1\n\ufeff---\nname: {OBJECT}',
    'U+FEFF in a line': f'a: "\ufeff"\nb: {OBJECT}',
    'another module': 'name: !!python/name:os.system',
    'directive': '%TAG !e! tag:yaml.org,2002:python/\n---\nname: !e!object/apply:os.mkdir ["made"]',
    'second document': f'a: 1\n---\nname: {OBJECT}',
}


@pytest.mark.parametrize('how', SMUGGLED)
@pytest.mark.parametrize('command', [train, ablate], ids=['recipe', 'grid'])
def test_no_yaml_runs_code(tmp_path, monkeypatch, capsys, command, how):
    monkeypatch.chdir(tmp_path)
    for name, text in (('evil.yml', SMUGGLED[how]), ('child.yml', '_base_: evil.yml')):
        Path(name).write_text(text, encoding='utf-8')
        assert command(['-opt', name]) == 2
        assert capsys.readouterr().err.startswith('error: ')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['child.yml', 'evil.yml']


@pytest.mark.parametrize(
    'text, problem',
    [
        ('a: 1\na: 2', "'a' is given twice"),
        ('? [a]\n: 1', 'this key is not text'),
        ('~: 1', 'this key is not text'),
        ('a: .nan', 'expected a finite number'),
        ('a: -.inf', 'expected a finite number'),
        ('a: 1e999', 'expected a finite number'),
        (f'a: {"9" * 5000}', 'a number of 5000 characters'),
        (f'a: {"9" * 39}:59', 'a number of 42 characters'),
        (f'a: {"x" * 30_000}', 'a text of 30000 characters'),
        (f'? {"x" * 30_000}\n: 1', 'a text of 30000 characters'),
        ('[' * 5000, 'nested deeper than'),
        ('a: &a [*a]', 'refers to itself'),
        ('a: &a {b: *a}', 'refers to itself'),
        ('&a : *a', 'this key is not text'),
        (
            'x0: &x0 [1]\n' + '\n'.join(f'x{i + 1}: &x{i + 1} [*x{i}, *x{i}]' for i in range(30)),
            'more than 200000 values',
        ),
        ('<<: [1]', '<< merges mappings alone'),
        ('a: !!timestamp 2001-99-99', "tag 'tag:yaml.org,2002:timestamp'"),
        ('a: !!binary aGk=', "tag 'tag:yaml.org,2002:binary'"),
        ('a: !!set {b}', "tag 'tag:yaml.org,2002:set'"),
        ("a: !!int ''", 'cannot read this as YAML'),
        ('a: !!bool 7', 'cannot read this as YAML'),
        ('a: !!str [b]', 'expected plain values alone'),
        ('a: *b', 'undefined alias'),
        ('a: \x07', 'special characters'),
    ],
    ids=lambda value: value[:30],
)
def test_what_yaml_may_not_say(text, problem):
    with pytest.raises(OptionsError, match=r'^here: ') as error:
        parse(text, 'here')
    assert problem in str(error.value) and len(str(error.value)) < 1000


def test_values_keys_and_merges_are_as_written():
    text = 'd: 2001-99-99\n1e-6: 1e-6\non: yes\nb: &b {x: 1, y: 2}\nc: {<<: *b, y: 3}\nq: "1e-6"\n'
    values = {'d': '2001-99-99', '1e-6': 1e-6, 'on': True, 'b': {'x': 1, 'y': 2}, 'c': {'x': 1, 'y': 3}, 'q': '1e-6'}
    assert parse(text, '') == values == parse(dump(values), '')
    assert yaml.safe_load(dump(values)) == values  # stock BasicSR reads it too


def test_a_file_is_read_within_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, 'MAX_BYTES', 100)
    for name, content, problem in (
        ('large', b'a: ' + b'x' * 100, 'too large'),
        ('latin', b'a: \xe4', 'utf-8'),
        ('utf16', 'a: 1'.encode('utf-16'), 'utf-8'),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OptionsError, match=f'{name}: .*{problem}'):
            read_yaml(tmp_path / name)
    for name in ('nowhere', 'a\0b', 'x' * 5000):
        with pytest.raises(OptionsError):
            read_yaml(tmp_path / name)
        with pytest.raises(OptionsError):
            compose(tmp_path / f'{name}.yml')
    (tmp_path / 'bom').write_bytes(b'\xef\xbb\xbfa: 1')
    assert read_yaml(tmp_path / 'bom') == {'a': 1}


@pytest.mark.parametrize('base', ['5', '{a: 1}', '[5]', '[[a.yml]]', 'true', 'a.yml', '[b.yml, b.yml, b.yml]', '.'])
def test_a_base_that_cannot_be(tmp_path, monkeypatch, capsys, base):
    monkeypatch.chdir(tmp_path)
    Path('a.yml').write_text(f'_base_: {base}')
    Path('b.yml').write_text('_base_: [c.yml, c.yml, c.yml, c.yml]')
    Path('c.yml').write_text('_base_: [d.yml, d.yml, d.yml, d.yml]')
    Path('d.yml').write_text('{}')
    assert train(['-opt', 'a.yml']) == 2
    assert capsys.readouterr().err.startswith('error: ')


def test_a_merge_alters_nothing_and_keeps_delete_for_a_later_one():
    options = {'a': {'b': {'c': 1}}, 'l': [1]}
    changes = {'a': {'b': {'_delete_': True, 'd': 2}, 'x': {'_delete_': True, 'y': 1}}, 'l': [2]}
    merged = merge(options, changes, 'here')
    assert merged == {'a': {'b': {'d': 2}, 'x': {'_delete_': True, 'y': 1}}, 'l': [2]}
    merged['a']['b']['d'], merged['l'][0] = 3, 3
    assert options == {'a': {'b': {'c': 1}}, 'l': [1]} and changes['a']['b']['d'] == 2 and changes['l'] == [2]
    with pytest.raises(OptionsError, match=r'here\.a\._delete_: .*\(found 5\)'):
        merge(options, {'a': {'_delete_': 5}}, 'here')


@pytest.mark.parametrize(
    'options',
    [
        {'a0': 'xx', **{f'a{i + 1}': f'${{a{i}}}${{a{i}}}' for i in range(40)}},
        {'a0': [1], **{f'a{i + 1}': [f'${{a{i}}}'] * 2 for i in range(40)}},
        {f'a{i}': f'${{a{i + 1}}}' for i in range(2000)} | {'a2000': 1},
    ],
    ids=['text', 'lists', 'chain'],
)
def test_references_cannot_explode(options):
    with pytest.raises(OptionsError, match='references lead'):
        resolve(options)


# -------------------------------------------------------------------------------------------------- names and paths

NAMES = ['/tmp/x', '../x', 'a/b', 'a\\b', '.x', '..', '', ' a', 'a\0', 'a\nb', 'x' * 101, 5, None, ['a'], '${up}']


@pytest.mark.parametrize('name', NAMES, ids=repr)
def test_a_name_never_leads_out_of_its_folder(tmp_path, name):
    recipe = compose(RECIPE)
    set_name = {**recipe['datasets'], 'val': {**recipe['datasets']['val'], 'name': name}}
    for change in (
        {'name': name},
        {'datasets': set_name},
        {'val': {**recipe['val'], 'suffix': name}},
        {'stages': {name: {}} if isinstance(name, str) and name not in ('', '${up}') else 5},
    ):
        if name is None and 'val' in change:
            continue  # no suffix
        with pytest.raises(OptionsError, match='name|suffix|stages'):
            for stage in unroll({**recipe, 'up': '../x', **change}, tmp_path):
                stage.options.pop('up', None)
                check_options(stage.options)
    if name == '${up}':
        return  # a grid has no references
    grid = tmp_path / 'grid.yml'
    grid.write_text(dump({'name': name, 'recipe': str(RECIPE), 'rows': {'a': {}}}))
    with pytest.raises(OptionsError, match='name'):
        read_grid(grid)


def test_a_link_in_the_run_folder_does_not_lead_out(tmp_path):
    (tmp_path / 'precious').mkdir()
    for link in ('experiments/pisr_fsrcnn_x2', 'experiments/other/teacher'):
        path = tmp_path / link
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(tmp_path / 'precious')
    for name in ('pisr_fsrcnn_x2', 'other'):
        with pytest.raises(OptionsError, match='leads out of the run folder'):
            unroll({**compose(RECIPE), 'name': name}, tmp_path)
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere/experiments').symlink_to(tmp_path / 'disk')  # all runs on another disk
    assert unroll(compose(RECIPE), tmp_path / 'elsewhere')


@pytest.mark.parametrize(
    ('change', 'problem'),
    [
        ('train:dataroot_gt=~', 'train.dataroot_gt: missing'),
        ('train:gt_size=~', 'train.gt_size: missing'),
        ('val:dataroot_lq=~', 'val.dataroot_lq: missing'),
        ('train:store=memroy', "train.store: wrong value .found 'memroy'.. Expected 'lmdb' or 'memory' or 'device'"),
    ],
)
def test_a_set_has_the_keys_that_its_type_needs(change, problem):
    with pytest.raises(OptionsError, match=rf'datasets\.{problem}'):
        checked(f'datasets:{change}')


def test_two_test_sets_have_two_names():
    with pytest.raises(OptionsError, match=r"datasets\.val_2\.name: two test sets .*'Set5' in val too"):
        checked('datasets:val_2:name=Set5')


# -------------------------------------------------------------------------------------------------- ranges

WRONG = [
    'train=~',
    'train=5',
    'path=5',
    'path=[]',
    'datasets=5',
    'datasets:train=~',
    'datasets={val: 5}',
    'logger=~',
    'val=5',
    'scale=0',
    'scale=9',
    'scale=true',
    'scale=2.0',
    'manual_seed=-1',
    'manual_seed=4294967296',
    'num_gpu=-1',
    'num_gpu=true',
    'dist_params={backend: tcp}',
    'dist_params={port: 0}',
    'dist_params={host: a}',
    'model_type=[PISRModel]',
    'model_type=5',
    'plugins=os',
    '__x=1',
    'train:__x=1',
    'network_g:type=[FSRCNN]',
    'network_g:type={a: 1}',
    'network_g:d=1e9',
    'network_g:d=-1e9',
    'network_g:d=1.5',
    'network_t=5',
    'train:total_iter=0',
    'train:total_iter=1e12',
    'train:warmup_iter=-2',
    'train:ema_decay=1',
    'train:ema_decay=2',
    'train:ema_decay=-0.1',
    'train:grad_clip=-1',
    'train:grad_clip=0',
    'train:accumulate=0',
    'train:amp=fp8',
    'train:on_nan=ignore',
    'train:compile=1',
    'train:channels_last=yes please',
    'train:optim_g:lr=-1',
    'train:optim_g:betas=[]',
    'train:optim_g:betas=[0.9]',
    'train:optim_g:betas=[0.9, 1]',
    'train:optim_g:betas=[a, b]',
    'train:optim_g:weight_decay=-1',
    'train:scheduler:type=[x]',
    'train:scheduler:periods=[]',
    'train:scheduler:periods=~',
    'train:scheduler:periods=[0]',
    'train:scheduler:periods=[1000000, 5]',
    'train:scheduler:restart_weights=[0]',
    'train:scheduler:eta_min=-1',
    'train:scheduler={type: MultiStepLR}',
    'train:scheduler:milestones=[5]',
    'train:scheduler={type: MultiStepLR, milestones: [5], eta_min: 0.1}',
    'train:pixel_opt:loss_weight=heavy',
    'train:pixel_opt:loss_weight=true',
    'train:pixel_opt={loss_weight: 1}',
    'train:distill_opt={a-b: {loss: {type: FeatureMAELoss}}}',
    'train:distill_opt={a: {}}',
    'train:weight_transfer=[decoder]',
    'train:weight_transfer={decoder: 5}',
    'train:degradation:type=BlurNoise',
    'val:val_freq=0',
    'val:metrics:psnr:crop_border=-1',
    'val:metrics:psnr:crop_border=1.5',
    'val:metrics:psnr:better=more',
    'val:metrics={a/b: {type: calculate_psnr, crop_border: 2}}',
    'val:metrics:psnr:img=5',
    'val:protocol=[pisr]',
    'logger:print_freq=0',
    'logger:keep_checkpoints=-1',
    'datasets:train:gt_size=0',
    'datasets:train:batch_size_per_gpu=0',
    'datasets:train:batch_size_per_gpu=1e9',
    'datasets:train:num_worker_per_gpu=-1',
    'datasets:train:store=[lmdb]',
    'datasets:train:color=grey',
    'datasets:train:skip_small=1',
    'datasets:train:kernels=gaussian8',
    'datasets:train:dataroot_gt=5',
    'datasets:train:type=[PatchStoreDataset]',
    'datasets:val:filename_tmpl={',
    "datasets:val:filename_tmpl='{'",
    "datasets:val:filename_tmpl='x4'",
    "datasets:val:filename_tmpl='{}{}'",
    "datasets:val:filename_tmpl='{0.__class__}'",
    "datasets:val:filename_tmpl='{!r}{}'",
    'datasets:val:std=[0]',
    'datasets:val:io_backend=disk',
    'datasets:val={name: a, type: BlurredImageDataset, dataroot_gt: a, io_backend: {type: disk}, kernel: gaussian8}',
    'datasets:val={name: a, type: BlurredImageDataset, io_backend: {type: disk}}',
    'path:resume_state=a.state',
    'path:strict_load_g=1',
    'path:pretrain=a.pth',
    'path:pretrain_network_x=a.pth',
    'network_x={type: FSRCNN, upscale: 2}',
    'datasets:validation={name: a, type: PatchStoreDataset, dataroot_gt: a}',
    'stages:techer:train:total_iter=3',
    'stages:teacher=5',
    'stages=5',
    'stages={}',
    'stages:new={}',
]


@pytest.mark.parametrize('entry', WRONG)
def test_a_wrong_value_is_told_with_its_place(entry):
    with pytest.raises(OptionsError) as error:
        checked(entry)
    keys, _, _ = entry.partition('=')
    place = '.'.join(keys.split(':')[:2]) if not keys.startswith('stages') else keys.split(':')[0]
    place = place.replace('network_g', 'network_t.decoder')  # in the teacher, the first stage
    assert place in str(error.value).replace(':', '.') and len(str(error.value)) < 3000


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize(
    'keys', ['train.ema_decay', 'train.grad_clip', 'train.optim_g.lr', 'train.pixel_opt.loss_weight', 'network_g.d']
)
def test_numbers_are_finite(keys, value):
    options = unroll(compose(RECIPE))[-1].options
    node = options
    *parents, key = keys.split('.')
    for parent in parents:
        node = node[parent]
    node[key] = value
    with pytest.raises(OptionsError, match=keys):
        check_options(options)


@pytest.mark.parametrize(
    'entry',
    [
        'train:ema_decay=0',
        'train:ema_decay=0.999',
        'train:grad_clip=0.1',
        'train:optim_g:lr=0',
        'train:optim_g={type: SGD, lr: 0.1, momentum: 0.9}',
        'train:warmup_iter=-1',
        'train:amp=bf16',
        'val=~',
        'scale=8',
        "datasets:val:filename_tmpl='{}x2'",
        'path:resume_state=~',
        'network_g:d=1000',
        'datasets:train:prefetch_mode=cuda',
        'plugins=[]',
    ],
)
def test_the_ends_of_a_range_are_allowed(entry):
    assert len(checked(entry)) == 2


def test_messages_say_what_to_do():
    for entry, fragments in (
        ('path:resume_state=a', ['path.resume_state', "(found 'a')", '--auto_resume']),
        ('stages:studnt:train:total_iter=3', ["no stage 'studnt'", "Did you mean 'student'?"]),
        (
            'datasets:val={name: a, type: BlurredImageDataset, dataroot_gt: a, io_backend: {type: disk}, kernel: 1}',
            ['datasets.val.kernel: unknown key', "'kernels'"],
        ),
        ('train:grad_clip=-1', ['train.grad_clip: wrong value (found -1). Expected a number above 0.']),
    ):
        with pytest.raises(OptionsError) as error:
            checked(entry)
        assert all(fragment in str(error.value) for fragment in fragments), error.value


def test_without_val_no_images_to_validate_on_are_wanted(workspace, capsys):
    nowhere = 'datasets:val:dataroot_gt=datasets/nowhere'
    assert train(['-opt', str(workspace.recipe('baseline')), '--force_yml', nowhere]) == 2
    assert 'datasets/nowhere' in capsys.readouterr().err and not Path('experiments').exists()
    assert train(['-opt', str(workspace.recipe('baseline')), '--force_yml', nowhere, 'val=null']) == 0


# -------------------------------------------------------------------------------------------------- plugins


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder; modules imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [entry for entry in sys.path if entry])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], '__file__', None) and Path(sys.modules[name].__file__).parent == tmp_path:
            del sys.modules[name]


def test_the_current_folder_comes_last(folder):
    for name in ('lz4', 'sndhdr', 'mine'):
        Path(f'{name}.py').write_text(f'open("{name}_ran", "w")')
    Path('yaml.py').write_text('open("yaml_ran", "w")')
    plugins.import_plugins(['mine', 'yaml'], '--plugin')
    assert sys.path[-1] == str(folder) and Path('mine_ran').exists() and not Path('yaml_ran').exists()


def test_no_plugins_put_the_folder_nowhere(folder):
    before = list(sys.path)
    plugins.import_plugins([], '--plugin')
    assert sys.path == before


@pytest.mark.parametrize(
    'code', ['def (', 'raise RuntimeError("no")', 'raise SystemExit(0)', 'import nowhere_at_all', '1 / 0', '\0']
)
def test_a_plugin_that_fails_is_one_message(folder, capsys, code):
    Path('broken.py').write_text(code)
    Path('a.yml').write_text('plugins: [broken]')
    for argv, place in ((['--plugin', 'broken'], '--plugin broken'), ([], 'plugins broken')):
        assert train(['-opt', 'a.yml', *argv]) == 2
        assert capsys.readouterr().err.startswith(f'error: {place}: cannot import it (')


@pytest.mark.parametrize('found', ['os', '[5]', '[../x]', "['']", '[.x]', '{os: 1}', '[[os]]', '["os;x"]'])
def test_plugins_are_a_list_of_names(folder, capsys, found):
    Path('a.yml').write_text(f'plugins: {found}')
    assert train(['-opt', 'a.yml']) == 2
    assert 'error: plugins: wrong value' in capsys.readouterr().err


def test_a_recipe_names_its_plugins_also_within_a_grid(folder):
    Path('metric_of_mine.py').write_text(
        'from basicsr.utils.registry import METRIC_REGISTRY\n'
        'if "calculate_mine" not in METRIC_REGISTRY:\n'
        '    @METRIC_REGISTRY.register()\n    def calculate_mine(img, img2): return 0\n'
    )
    metric = {'val': {'metrics': {'mine': {'type': 'calculate_mine'}}}}
    Path('a.yml').write_text(dump({'_base_': str(RECIPE), 'plugins': ['metric_of_mine'], **metric}))
    Path('grid.yml').write_text(dump({'name': 'g', 'recipe': 'a.yml', 'rows': {'a': {}}}))
    grid = read_grid('grid.yml')
    plans.write_recipe(plans.make_plan(grid), grid, Path('recipe.yml'))
    recipe = read_recipe('recipe.yml')  # what each stage of the grid is trained from
    assert recipe['plugins'] == ['metric_of_mine']
    for stage in unroll(recipe):
        check_options(stage.options, is_train=True)


def test_installed_packages_bring_their_plugins_once(folder, monkeypatch):
    Path('installed.py').write_text('with open("ran", "a") as file: file.write("x")')
    found = [EntryPoint('mine', 'installed', plugins.GROUP)]
    monkeypatch.setattr(plugins, 'entry_points', lambda group: found if group == plugins.GROUP else [])
    monkeypatch.syspath_prepend(str(folder))
    plugins._import_installed.cache_clear()
    plugins.import_plugins(None, '')
    plugins.import_plugins(None, '')
    assert Path('ran').read_text() == 'x'
    found[0] = EntryPoint('mine', 'not_installed', plugins.GROUP)
    plugins._import_installed.cache_clear()
    with pytest.raises(OptionsError, match='entry point pisr_plugin.plugins: mine: cannot import it'):
        plugins.import_plugins(None, '')


# -------------------------------------------------------------------------------------------------- grids and weights


def grid_of(tmp_path, **changes) -> Path:
    path = tmp_path / 'grid.yml'
    path.write_text(dump({'name': 'g', 'recipe': str(RECIPE), 'rows': {'a': {}, 'b': {}}, **changes}))
    return path


@pytest.mark.parametrize(
    'changes, place',
    [
        ({'recipe': 5}, 'recipe'),
        ({'recipe': ['a.yml']}, 'recipe'),
        ({'title': {'a': 1}}, 'title'),
        ({'rows': 5}, 'rows'),
        ({'rows': ['a']}, 'rows'),
        ({'rows': {'a': 5}}, 'rows.a'),
        ({'rows': {'a': {'recipe': 5}}}, 'rows.a: recipe'),
        ({'rows': {'a': {'changes': 5}}}, 'rows.a.changes'),
        ({'rows': {'a': {'title': 5}}}, 'rows.a: title'),
        ({'rows': {'a': {'seeds': 5}}}, 'seeds'),
        ({'rows': {'a': {'changes': {'train': {'optim_g': {'lr': -1}}}}}}, 'rows.a: stages.teacher.train.optim_g.lr'),
        ({'seeds': [-1]}, 'seeds'),
        ({'seeds': [True]}, 'seeds'),
        ({'seeds': [[1]]}, 'seeds'),
        ({'against': ['a']}, 'against'),
        ({'published': [5]}, 'published'),
        ({'published': {'a': 5}}, 'published.a'),
        ({'published': {'a': {'Set5': 'high'}}}, 'published.a.Set5'),
        ({'published': {'a': {'Set5': [37.0, 0.9, 1]}}}, 'published.a.Set5'),
        ({'rows': {'../a': {}}}, 'rows'),
        ({'common': 5}, 'common'),
        ({'common': [5]}, 'common'),
        ({'common': 'nowhere.yml'}, 'nowhere.yml'),
        ({'common': {'train': 5}}, 'train'),
        ({'axes': 5}, 'axes'),
        ({'axes': {'a': 5}}, 'axes.a'),
        ({'axes': {'a': {'b': 5}}}, 'axes.a.b'),
        ({'axes': {f'x{i}': {f'v{j}': {} for j in range(10)} for i in range(12)}}, 'too many rows'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_grid_is_one_message(tmp_path, monkeypatch, capsys, changes, place):
    path = grid_of(tmp_path, **changes)
    monkeypatch.chdir(tmp_path)
    assert ablate(['-opt', str(path), '--dry-run']) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and place in error
    assert [p.name for p in tmp_path.iterdir()] == ['grid.yml']


def test_common_changes_may_lie_in_files(tmp_path):
    (tmp_path / 'a.yml').write_text('train: {total_iter: 7}\nscale: 3')
    (tmp_path / 'b.yml').write_text('_base_: a.yml\nscale: 4')
    for common, expected in (('a.yml', (7, 3)), (['a.yml', 'b.yml'], (7, 4))):
        recipe = read_grid(grid_of(tmp_path, common=common)).rows[0].recipes[0]
        assert (recipe['train']['total_iter'], recipe['scale']) == expected


def test_stages_whose_digests_begin_alike_stay_two(tmp_path):
    plan = plans.make_plan(read_grid(grid_of(tmp_path, rows={'a': {}}, seeds=[696, 1294])))
    seeds = {name: stage.options['manual_seed'] for name, stage in plan.stages.items()}
    assert sorted(seeds.values()) == [696, 696, 1294, 1294] and plan.asked == 4


def test_stages_are_told_apart_by_all_options_not_by_a_digest(tmp_path, monkeypatch):
    class Alike:
        def __init__(self, text):
            pass

        def hexdigest(self):
            return '0123456789abcdef'

    monkeypatch.setattr(plans.hashlib, 'sha256', Alike)
    plan = plans.make_plan(read_grid(grid_of(tmp_path, seeds=[0, 1, 2])))
    assert len(plan.stages) == 6 and plan.asked == 12  # rows a and b are equal


HOW = [
    ('datasets:train:num_worker_per_gpu=0', True),
    ('datasets:train:pin_memory=false', True),
    ('datasets:train:store=memory', True),
    ('datasets:train:prefetch_mode=cpu', True),
    ('datasets:val:name=other', True),
    ('train:compile=true', True),
    ('train:cuda_graph=true', True),
    ('train:channels_last=false', True),
    ('logger:print_freq=3', True),
    ('num_gpu=0', True),
    ('dist_params={backend: gloo}', True),
    ('plugins=[os]', True),
    ('find_unused_parameters=true', True),
    ('train:amp=bf16', False),
    ('train:amp_teacher=bf16', False),
    ('train:accumulate=2', False),
    ('train:grad_clip=1', False),
    ('train:ema_decay=0.9', False),
    ('manual_seed=3', False),
    ('datasets:train:batch_size_per_gpu=8', False),
    ('datasets:train:dataroot_gt=other', False),
    ('datasets:train:use_rot=false', False),
    ('scale=3', False),
]


@pytest.mark.parametrize('entry, same', HOW)
def test_a_finished_stage_stays_finished_when_only_the_way_changes(entry, same, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [_, before], [_, after] = checked(), checked(entry)
    assert (weight_options(before.options) == weight_options(after.options)) == same
    (before.folder / 'models').mkdir(parents=True)
    for file in (before.checkpoint, before.folder / 'result.json'):
        file.touch()
    (before.folder / 'options.yml').write_text(dump(before.options))
    if same:
        assert is_finished(after)
    else:
        with pytest.raises(OptionsError, match='finished with other options'):
            is_finished(after)


# -------------------------------------------------------------------------------------------------- what is shipped


def test_the_resolved_options_are_printed(capsys):
    assert train(['-opt', str(RECIPE), '--print-options', '--force_yml', 'train:total_iter=7']) == 0
    printed = capsys.readouterr().out
    stages = checked('train:total_iter=7')
    assert list(yaml.safe_load_all(printed)) == [stage.options for stage in stages]
    assert '# stage teacher' in printed and '# stage student' in printed
    assert train(['-opt', str(RECIPE), '--print-options', '--force_yml', 'train:total_iter=0']) == 2


def test_the_template_has_every_option():
    template = read_yaml(ROOT / 'options/template.yml')
    stage = stage_rule({'model_type': 'PISRModel'})
    tables = {
        '': {*stage.rules, '_base_', 'stages', 'network_g', 'network_t', 'network_d'},
        'dist_params': schema.DIST_PARAMS.rules,
        'path': {*schema.PATH, *(f'{key}_g' for key in ('pretrain_network', 'param_key', 'strict_load'))},
        'train': schema.TRAIN,
        'train.optim_g': schema.OPTIMIZER.rules,
        'train.scheduler': schema.SCHEDULER.rules,
        'train.distill_opt.body': schema.LINK.rules,
        'train.distill_opt.body.loss': schema.LINK.rules['loss'].extra,
        'val': schema.VAL,
        'val.metrics.psnr': stage.rules['val'].rules['metrics'].rule.extra,
        'logger': schema.LOGGER,
        'logger.wandb': schema.LOGGER['wandb'].rules,
    }
    lacking = []
    for path, keys in tables.items():
        node = template
        for key in filter(None, path.split('.')):
            node = node[key]
        lacking += [f'{path}.{key}' for key in keys if key not in node]
    data = {key for block in template['datasets'].values() for key in block}
    lacking += [f'datasets.{key}' for key in schema.DATASET_KEYS if key not in data]
    # not for recipes: a refused option, and what the run adds to each dataset
    assert sorted(lacking) == ['datasets.phase', 'datasets.scale', 'path.resume_state']
    for stage in unroll(read_recipe(ROOT / 'options/template.yml')):
        check_options(stage.options, stage.option_path, is_train=True)
