"""What tools/list.py prints is there, is explained, and can be used as it stands."""

import json
import operator
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from torch.nn import functional as F

from pisr_plugin.cli.list import main
from pisr_plugin.config.parse import parse
from pisr_plugin.config.schema import NETWORK
from pisr_plugin.distill.find_taps import table, trace
from pisr_plugin.distill.taps import TapReader

ROOT = Path(__file__).parents[1]
# what lies in ablation/ are grids
RECIPES = [path for path in sorted((ROOT / 'options').rglob('*.yml')) if path.parent.name != 'ablation']
SCHEMA = ROOT / 'options/schema.json'


def listed(capsys, *argv) -> list[str]:
    assert main([str(a) for a in argv]) == 0
    return capsys.readouterr().out.splitlines()


# -------------------------------------------------------------------------------------------------- registries


@pytest.mark.parametrize(
    'what, name, origin, text',
    [
        (
            'networks',
            'FSRCNN',
            'pisr_plugin',
            'Fast SR network: everything at LR size, then one transposed convolution.',
        ),
        ('networks', 'SRVGGNetCompact', 'basicsr', 'A compact VGG-style network structure for super-resolution.'),
        (
            'losses',
            'HintLoss',
            'pisr_plugin',
            'Half the mean squared difference of two features: FitNets: Hints for Thin Deep Nets (ICLR 2015), Eq. 3.',
        ),
        ('losses', 'L1Loss', 'basicsr', 'L1 (mean absolute error, MAE) loss.'),
        ('model_types', 'PISRModel', 'pisr_plugin', 'One stage: trains'),
        ('datasets', 'PairedImageDataset', 'basicsr', 'Paired image dataset for image restoration.'),
        ('metrics', 'calculate_psnr', 'basicsr', 'Calculate PSNR (Peak Signal-to-Noise Ratio).'),
    ],
)
def test_registered_objects_have_a_line_each(capsys, what, name, origin, text):
    lines = listed(capsys, what)
    assert sum(bool(re.match(rf'{name} +{origin} +{re.escape(text)}', line)) for line in lines) == 1


def test_every_recipe_and_grid_has_a_line(capsys):
    lines = listed(capsys, 'recipes')
    shown = [re.split(r'  +', line) for line in lines]
    assert any(row[:2] == ['demo/pisr_fsrcnn_x2', 'x2 PITeacher -> FSRCNN'] for row in shown)
    assert ['ablation/table1_x2', 'grid', 'PISR, Table 1 (FSRCNN, x2)'] in shown
    files = [path.relative_to(ROOT / 'options').with_suffix('') for path in (ROOT / 'options').rglob('*.yml')]
    assert [row[0] for row in shown] == sorted(str(file) for file in files if not re.search('(^|/)_', str(file)))


def test_a_plugin_of_the_user_is_listed_as_such(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(ARCH_REGISTRY, '_obj_map', dict(ARCH_REGISTRY._obj_map))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', sys.path[:])
    (tmp_path / 'nets_of_mine.py').write_text(
        'from basicsr.utils.registry import ARCH_REGISTRY\n@ARCH_REGISTRY.register()\nclass Mine:\n    """My net."""\n'
    )
    assert any(
        re.match(r'Mine +nets_of_mine +My net\.', line)
        for line in listed(capsys, 'networks', '--plugin', 'nets_of_mine')
    )


@pytest.mark.parametrize(
    'argv, patterns',
    [
        (
            ['networks', 'FSRCNN'],
            [
                r'upscale +int +required +Scale factor, 2 or more\.',
                r'per_channel_prelu +bool += False +One PReLU slope',
            ],
        ),
        (['networks', 'HRFSRCNN'], [r's +int += 12 +As for FSRCNN\.']),  # documented as 'd, s, m, ...'
        (
            ['networks', 'EDSR'],
            [
                r'num_feat +int += 64 +Channel number of intermediate features\. Default: 64\.',
                r'res_scale +float += 1 ',
            ],
        ),
        (['networks', 'SwinIR'], [r'img_size +int \| tuple\(int\) += 64 +Input image size']),
        (['losses', 'VIDLaplaceLoss'], [r'loss_weight +float += 1\.0 ']),
        (['datasets', 'PairedImageDataset'], [r'opt +dict +required', r'  gt_size +int +Cropped', r'  scale +bool']),
    ],
)
def test_arguments_are_explained(capsys, argv, patterns):
    text = '\n'.join(listed(capsys, *argv))
    for pattern in patterns:
        assert re.search(rf'^ +{pattern}', text, re.M), text


@pytest.mark.parametrize(
    'argv, fragments',
    [
        (['networks', 'FSRCN'], ["'FSRCN' is not registered", "Did you mean 'FSRCNN'?"]),
        (['taps'], ['--type NAME', '-opt RECIPE']),
        (['taps', '--type', 'EDS'], ["'EDS' is not registered", "'EDSR'"]),
        (['taps', '--type', 'EDSR', '--arg', 'num_fet=3'], ['--arg.num_fet', 'no such argument', "'num_feat'"]),
        (['taps', '--type', 'EDSR', '--arg', 'num_feat'], ["--arg 'num_feat'"]),
        (['taps', '--type', 'FSRCNN', '--size', '0', '9'], ['--size 0 9']),
        (['taps', '--type', 'ECBSR'], ['num_block: missing', 'act_type: missing']),
        (['taps', '--type', 'FSRCNN', '--arg', 'upscale=1'], ['FSRCNN cannot be built', 'found 1']),
        (
            ['taps', '--type', 'SwinIR', '--arg', 'depths=[1]', 'num_heads=[2]', 'embed_dim=8', '--size', '24', '24'],
            ['SwinIR cannot process lq 1x3x24x24', '--size'],
        ),
        (
            ['taps', '--type', 'SwinIR', '--arg', 'img_size=24', 'depths=[2]', 'num_heads=[2]', 'embed_dim=8'],
            ['SwinIR cannot be built', 'multiple of window_size, 7'],
        ),
        (['taps', '--type', 'TOFlow'], ['TOFlow cannot process lq 1x3x24x24']),
        (['schema', '-o', '/dev/null/x/schema.json'], ['/dev/null/x', 'cannot create']),
    ],
)
def test_mistakes_are_one_message(capsys, argv, fragments):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and all(fragment in error for fragment in fragments), error


# -------------------------------------------------------------------------------------------------- taps

LAST, ENTERS, SHUFFLE = (
    'last output at LR size',
    'last at LR size, enters the upsampling',
    'last features before the layer for the pixel shuffle',
)
RGB = {'num_in_ch': 3, 'num_out_ch': 3}
CASES = {  # arguments, candidates, default tap
    'EDSR': (RGB | {'num_feat': 8, 'num_block': 1}, {'conv_after_body': LAST, 'upsample@input': ENTERS}, None),
    'MSRResNet': ({'num_feat': 8, 'num_block': 1}, {'body': SHUFFLE, 'upconv1': ENTERS}, None),
    'RCAN': (
        RGB | {'num_feat': 8, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 2},
        {'conv_after_body': LAST, 'upsample@input': ENTERS},
        None,
    ),
    'RRDBNet': (RGB | {'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4}, {'conv_body': LAST}, None),
    'ECBSR': (
        RGB | {'num_block': 1, 'num_channel': 8, 'with_idt': False, 'act_type': 'prelu', 'scale': 2},
        {'backbone.1': SHUFFLE, 'backbone': LAST, 'upsampler@input': ENTERS},
        None,
    ),
    'SRVGGNetCompact': ({'num_feat': 8, 'num_conv': 1}, {'body.3': SHUFFLE, 'body.4': ENTERS}, None),
    'SwinIR': (
        {'embed_dim': 8, 'depths': [2], 'num_heads': [2], 'upscale': 4, 'upsampler': 'pixelshuffledirect'},
        {'conv_after_body': LAST, 'upsample@input': ENTERS},
        None,
    ),
    'SwinIR ': (
        {'embed_dim': 8, 'depths': [1], 'num_heads': [2], 'upscale': 4, 'upsampler': 'pixelshuffle', 'window_size': 8},
        {'conv_before_upsample': ENTERS},
        None,
    ),
    'FSRCNN': ({'upscale': 3}, {'expanding': ENTERS}, 'expanding'),
    'HRFSRCNN': ({'upscale': 2}, {'pooled': LAST}, 'pooled'),
    'VDSR': ({'upscale': 2, 'num_block': 1}, {}, 'residual_layer'),
    'IDN': ({'upscale': 4, 'num_block': 1}, {'down1': LAST, 'upsample@input': ENTERS}, 'upsample@input'),
    'CARN': ({'upscale': 4, 'num_feat': 8}, {'c3': ENTERS}, 'c3'),
    'CARNM': ({'upscale': 2, 'num_feat': 8}, {'c3': ENTERS}, 'c3'),
    'IMDN': ({'upscale': 4, 'num_feat': 16}, {'LR_conv': LAST, 'upsampler@input': ENTERS}, 'upsampler@input'),
    'RFDN': ({'upscale': 4, 'num_feat': 8}, {'LR_conv': LAST, 'upsampler@input': ENTERS}, 'upsampler@input'),
    'ERFDN': ({'upscale': 4, 'num_feat': 16}, {'LR_conv': LAST, 'upsampler@input': ENTERS}, 'upsampler@input'),
    'PITeacher': (
        {'upscale': 2, 'decoder': {'type': 'FSRCNN', 'upscale': 2}},
        {'decoder.expanding': ENTERS},
        'decoder.expanding',
    ),
    'PIEncoder': ({'upscale': 2, 'num_in_ch': 3}, {}, None),
    'Bicubic': ({'upscale': 2}, {}, None),
}


def taps_of(lines: list[str]) -> list[tuple[str, int, str, int, str]]:
    """Tap, calls, shape, parameters and notes of each line of a printed table."""
    rows = [re.fullmatch(r'>? +(\S+) +(\d+) +([\dx]+) +([\d,]+) *(.*)', line) for line in lines]
    return [(r[1], int(r[2]), r[3], int(r[4].replace(',', '')), r[5]) for r in rows if r]


@pytest.mark.parametrize('case', CASES)
def test_printed_taps_can_be_read_and_the_last_before_upsampling_are_marked(capsys, case):
    arguments, candidates, default = CASES[case]
    lines = listed(
        capsys,
        'taps',
        '--type',
        case.strip(),
        '--arg',
        *(f'{key}={json.dumps(value)}' for key, value in arguments.items()),
    )
    rows = taps_of(lines)
    assert {
        tap: notes.removesuffix('; default tap')
        for tap, *_, notes in rows
        if 'LR size' in notes or 'pixel shuffle' in notes
    } == candidates
    assert [tap for tap, *_, notes in rows if notes.endswith('default tap')] == [default] * (default is not None)
    assert ('No candidates' in lines[-1]) == (not candidates)

    window = {'img_size': 28} if case == 'SwinIR' else {}  # a multiple of window_size, 7
    net = build_network({'type': case.strip(), **arguments, **window}).eval()
    assert getattr(net, 'default_tap', None) == default
    image = torch.rand([int(n) for n in re.search(r'sees (lq|gt) ([\dx]+)', lines[0])[2].split('x')])
    with torch.no_grad():
        features = TapReader(net, [tap for tap, *_ in rows]).read(image)
    assert {tap: 'x'.join(map(str, feature.shape)) for tap, feature in features.items()} == {
        tap: shape for tap, _, shape, _, _ in rows
    }
    counts = [parameters for *_, parameters, _ in rows]
    assert counts == sorted(counts)
    total = int(re.search(r'([\d,]+) parameters', lines[0])[1].replace(',', ''))
    assert total == sum(p.numel() for p in net.parameters()) == (counts[-1] if counts else 0)


class Repeats(nn.Module):
    """A block called twice, a skip connection with an upsampling of its own, an upsampling by function."""

    def __init__(self):
        super().__init__()
        self.block = nn.Conv2d(2, 2, 1)
        self.up = nn.Sequential(nn.Conv2d(2, 8, 1), nn.PixelShuffle(2))
        self.skip = nn.Sequential(nn.Conv2d(2, 8, 1), nn.PixelShuffle(2))
        self.idle = nn.Identity()
        self.pair = nn.LSTM(1, 1)

    def forward(self, x):
        self.pair(x.reshape(-1, 1))
        return self.up(self.block(self.block(x))) + self.skip(x)


def test_calls_are_numbered_and_what_yields_no_tensor_or_never_runs_is_left_out():
    image = torch.rand(1, 2, 5, 6)
    rows = {row.tap: row for row in table(trace(Repeats(), [image]), [image], (5, 6))}
    assert list(rows) == ['block#1', 'block#2', 'up.0', 'up.1', 'up', 'skip.0', 'skip.1', 'skip']
    assert rows['block#1'].calls == 2
    lstm, block = 16, 6
    assert rows['block#1'].parameters == rows['block#2'].parameters == lstm + block
    assert [tap for tap, row in rows.items() if row.notes] == ['block#2']


def test_enlarging_by_a_function_is_found_by_the_sizes_around_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.tail = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.tail(F.interpolate(self.body(x), scale_factor=2))

    image = torch.rand(1, 2, 5, 6)
    assert [row.tap for row in table(trace(Net(), [image]), [image], (5, 6)) if row.notes] == ['body']


def test_a_dry_run_leaves_network_and_random_state_alone(capsys):
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)).train()
    net[0].eval()
    trace(net, [torch.rand(1, 2, 5, 5)])
    assert net.training and net[1].training and not net[0].training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())

    torch.manual_seed(3)
    state, python = torch.get_rng_state(), random.getstate()
    listed(capsys, 'taps', '--type', 'FSRCNN')
    assert torch.equal(state, torch.get_rng_state()) and python == random.getstate()


def test_a_recipe_shows_its_student_and_its_teacher(capsys):
    argv = ['taps', '-opt', ROOT / 'options/demo/pisr_fsrcnn_x2.yml', '--size', '8', '10']
    lines = listed(capsys, *argv)
    student, teacher = lines.index('network_g:'), lines.index('network_t:')
    assert 'lq 1x1x8x10' in lines[student + 1] and 'gt 1x1x16x20' in lines[teacher + 1]
    assert [tap for tap, *_, notes in taps_of(lines) if 'default tap' in notes] == ['expanding', 'decoder.expanding']
    assert listed(capsys, *argv, '--stage', 'teacher')[0] == 'network_t:'


# -------------------------------------------------------------------------------------------------- schema

TYPES = {
    'object': dict,
    'array': list,
    'string': str,
    'boolean': bool,
    'integer': int,
    'number': (int, float),
    'null': type(None),
}


def faults(schema, value, root, place='') -> list[str]:
    """What is wrong with ``value``, by those keywords of JSON schema that ours uses; an unknown keyword is an error."""
    if isinstance(schema, bool):
        return [] if schema else [f'{place}: not allowed']
    found = []
    for keyword, rule in schema.items():
        match keyword:
            case '$schema' | '$defs' | 'title' | 'description' | 'default' | 'examples' | 'then' | 'else':
                ok = True
            case '$ref':
                target = root
                for key in rule.removeprefix('#/').split('/'):
                    target = target[key]
                found += faults(target, value, root, place)
                continue
            case 'if':
                branch = 'else' if faults(rule, value, root) else 'then'
                found += faults(schema.get(branch, True), value, root, place)
                continue
            case 'allOf':
                found += [fault for part in rule for fault in faults(part, value, root, place)]
                continue
            case 'anyOf':
                ok = any(not faults(part, value, root) for part in rule)
            case 'not':
                ok = bool(faults(rule, value, root))
            case 'type':
                ok = any(
                    isinstance(value, TYPES[t]) and (t == 'boolean' or not isinstance(value, bool))
                    for t in ([rule] if isinstance(rule, str) else rule)
                )
            case 'enum' | 'const':
                ok = value in (rule if keyword == 'enum' else [rule])
            case 'pattern':
                ok = not isinstance(value, str) or re.search(rule, value)
            case 'minimum' | 'maximum' | 'exclusiveMinimum' | 'exclusiveMaximum':
                compare = {'m': (operator.ge, operator.le), 'e': (operator.gt, operator.lt)}[keyword[0]]
                ok = not isinstance(value, (int, float)) or compare['max' in keyword.lower()](value, rule)
            case 'minItems' | 'maxItems':
                compare = operator.ge if keyword == 'minItems' else operator.le
                ok = not isinstance(value, list) or compare(len(value), rule)
            case 'required':
                ok = not isinstance(value, dict) or set(rule) <= set(value)
            case 'items':
                found += [
                    f
                    for i, x in enumerate(value if isinstance(value, list) else [])
                    for f in faults(rule, x, root, f'{place}.{i}')
                ]
                continue
            case 'propertyNames':
                ok = not isinstance(value, dict) or not any(faults(rule, key, root) for key in value)
            case 'properties' | 'patternProperties' | 'additionalProperties':
                for key, item in (value if isinstance(value, dict) else {}).items():
                    named = schema.get('properties', {}).get(key)
                    matching = [s for p, s in schema.get('patternProperties', {}).items() if re.search(p, key)]
                    rules = {
                        'properties': [] if named is None else [named],
                        'patternProperties': matching,
                        'additionalProperties': [rule] if named is None and not matching else [],
                    }[keyword]
                    found += [f for r in rules for f in faults(r, item, root, f'{place}.{key}')]
                continue
            case _:
                raise AssertionError(f'the check does not know {keyword}')
        if not ok:
            found.append(f'{place}: {value!r} against {keyword} {rule}')
    return found


@pytest.fixture(scope='module')
def schema() -> dict:
    return json.loads(SCHEMA.read_text())


def test_schema_is_up_to_date(tmp_path):
    # In a process of its own: what other tests register must not get in.
    subprocess.run(
        [sys.executable, ROOT / 'tools/list.py', 'schema', '-o', tmp_path / 'schema.json'],
        check=True,
        env={'PYTHONPATH': str(ROOT), 'PATH': ''},
    )
    assert (tmp_path / 'schema.json').read_text() == SCHEMA.read_text(), (
        'Write it anew: python tools/list.py schema -o options/schema.json'
    )


@pytest.mark.parametrize('recipe', RECIPES, ids=lambda path: str(path.relative_to(ROOT / 'options')))
def test_recipes_point_to_the_schema_and_follow_it(schema, recipe):
    first, _, rest = recipe.read_text().partition('\n')
    target = re.fullmatch(r'# yaml-language-server: \$schema=(\S+)', first)
    assert target and (recipe.parent / target[1]).resolve() == SCHEMA
    assert faults(schema, parse(rest, str(recipe)), schema) == []


@pytest.mark.parametrize(
    'recipe, key',
    [
        ({'scal': 2}, 'scal'),
        ({'scale': 'two'}, 'scale'),
        ({'network_g': {'type': 'FSRCN'}}, 'network_g.type'),
        ({'network_g': {'type': 'FSRCNN', 'dd': 3}}, 'network_g.dd'),
        ({'network_g': {'type': 'FSRCNN', 'd': 1.5}}, 'network_g.d'),
        ({'network_t': {'type': 'PITeacher', 'decoder': {'type': 'FSRCNN', 'x': 1}}}, 'network_t.decoder.x'),
        ({'stages': {'teacher': {'train': {'pixel_op': {}}}}}, 'stages.teacher.train.pixel_op'),
        ({'train': {'total_iter': 0}}, 'train.total_iter'),
        ({'train': {'distill_opt': {'body': {'loss': {'type': 'VIDLaplace'}}}}}, 'train.distill_opt.body.loss.type'),
        (
            {'train': {'distill_opt': {'body': {'estimator': {'type': 'EDSR'}}}}},
            'train.distill_opt.body.estimator.type',
        ),
        ({'train': {'distill_opt': {'bo-dy': {}}}}, 'train.distill_opt'),
        ({'datasets': {'train': {'type': 'PairedImageDataset', 'gtsize': 1}}}, 'datasets.train.gtsize'),
        ({'val': {'metrics': {'psnr': {'type': 'calculate_psnr', 'better': 'more'}}}}, 'val.metrics.psnr.better'),
    ],
)
def test_schema_refuses_mistakes_where_they_are(schema, recipe, key):
    found = faults(schema, recipe, schema)
    assert found and all(fault.startswith(f'.{key}:') for fault in found), found


@pytest.mark.parametrize(
    'recipe',
    [
        {'_base_': ['a.yml', 'b.yml'], 'name': 'x', 'network_t': '${network_g}', 'scale': '${s}'},
        {'network_g': {'_delete_': True, 'type': 'FSRCNN', 'd': '${a.b}', 's': None}, 'train': {'pixel_opt': None}},
        {'stages': {'a': {'path': {'pretrain_network_t': 'stage:b'}, 'network_g': None}, 'b': {}}, 'num_gpu': 'auto'},
        {'model_type': 'SRModel', 'train': {'other': 1}, 'stages': {'a': {'train': {'other': 1}}}},
        {'network_g': {'type': 'EDSR', 'res_scale': 0.1}},
        {'train': {'distill_opt': {'body': {'loss': {'type': 'L1Loss', 'to_iter': 9}}}}},
        {'datasets': {'train': {'type': 'FFHQDataset', 'something': 1}, 'val_2': {'color': 'y'}}},
    ],
)
def test_schema_allows_what_a_recipe_may_say(schema, recipe):
    assert faults(schema, recipe, schema) == []


def test_schema_is_a_valid_one_and_the_check_here_agrees_with_jsonschema(schema):
    jsonschema = pytest.importorskip('jsonschema')
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for recipe in RECIPES:
        assert list(validator.iter_errors(parse(recipe.read_text(), str(recipe)))) == []
    assert not validator.is_valid({'scal': 2}) and not validator.is_valid({'network_g': {'type': 'FSRCN'}})


@pytest.mark.parametrize('value, accepted', [(0.1, True), (2, True), ('much', False)])
def test_the_type_of_an_unannotated_argument_comes_from_its_docstring(value, accepted):
    problems = []
    NETWORK.check({'type': 'EDSR', **RGB, 'res_scale': value}, 'network_g', problems)
    assert (not problems) == accepted
