"""Every recipe in options/ builds, and every network is distilled by a recipe alone."""

import json
from pathlib import Path

import pytest
import torch
from basicsr.models import build_model

from pisr_plugin.cli.train import main as train
from pisr_plugin.config.compose import compose
from pisr_plugin.config.runtime import runtime_options
from pisr_plugin.config.schema import check_options
from pisr_plugin.config.stages import unroll
from pisr_plugin.utils.logging import quiet
from tests import small_vgg
from tests.conftest import ROOT

RECIPES = sorted(
    path.relative_to(ROOT / 'options')
    for path in ROOT.glob('options/**/*.yml')
    if not any(part.startswith('_') or part == 'ablation' for part in path.relative_to(ROOT / 'options').parts)
)
TEACHER, STUDENT = Path('experiments/run/teacher'), Path('experiments/run/student')


@pytest.mark.parametrize('recipe', RECIPES, ids=str)
def test_every_recipe_composes_and_builds_its_networks_and_links(recipe, monkeypatch):
    small_vgg.install(monkeypatch)
    stages = unroll(compose(ROOT / 'options' / recipe))
    name = stages[0].folder.parent.name if stages[0].name else stages[0].folder.name
    assert name == recipe.stem or name == f'{recipe.parent}_{recipe.stem}'
    for stage in stages:
        check_options(stage.options, stage.name)
        stage.options['path'] = {}  # checkpoints of stages that were not trained
        stage.options['datasets']['train']['gt_size'] = 8 * stage.options['scale']
        _shrink(stage.options)
        opt = runtime_options(stage, stage.folder, is_train=True)
        opt['num_gpu'] = 0
        with quiet():
            model = build_model(opt)  # proves taps, shapes, losses and gradients too
        assert model.label == stage.network[-1]
        assert len(model.links) == len(stage.options['train'].get('distill_opt') or {})
    alone = recipe.stem.startswith(('baseline', 'taught')) or recipe.parent.name in ('idn', 'released')
    assert (model.teacher is None) == alone  # of the last stage


def _shrink(options: dict) -> None:
    """Makes KDSR's networks and discriminator quick to build; sizes are tested with the networks."""
    for key in ('network_g', 'network_t'):
        if options.get(key, {}).get('type', '').startswith('KDSR'):
            options[key].update(num_feat=16, num_block=1, num_estimator_block=1)
    if 'network_d' in options:
        options['network_d']['num_feat'] = 8


def test_a_recipe_differs_from_its_baseline_by_the_teacher_alone():
    for path in RECIPES:
        if path.name.startswith('pisr_') and path.parent == Path('.'):
            student = unroll(compose(ROOT / 'options' / path))[-1].options
            alone = unroll(compose(ROOT / 'options' / path.name.replace('pisr_', 'baseline_')))[-1].options
            assert alone.pop('name') == student.pop('name').replace('pisr_', 'baseline_')
            del student['network_t'], student['path'], alone['path']
            del student['train']['distill_opt'], student['train']['weight_transfer']
            assert student == alone, path


RGB = {'num_in_ch': 3, 'num_out_ch': 3, 'upscale': '${scale}'}
Y = {'num_in_ch': 1, 'num_out_ch': 1, 'upscale': '${scale}'}
NETWORKS = {  # network, tap of the link `body` (None: declared), tap of the link `early`
    'FSRCNN': ({**Y, 'd': 8, 's': 4, 'm': 1}, None, 'feature_extraction'),
    'VDSR': ({**Y, 'num_feat': 8, 'num_block': 2}, None, 'residual_layer.0'),
    'IDN': ({**RGB, 'num_feat': 16, 'num_block': 1, 'upsampler': 'deconv_centred'}, None, 'conv2'),
    'CARN': ({**RGB, 'num_feat': 8}, None, 'b1.c2'),
    'CARNM': ({**RGB, 'num_feat': 8}, None, 'c1'),
    'IMDN': ({**RGB, 'num_feat': 16, 'num_block': 2}, None, 'IMDB1'),
    'RFDN': ({**RGB, 'num_feat': 8, 'num_block': 2}, None, 'B1'),
    'ERFDN': ({**RGB, 'num_feat': 8, 'num_block': 2}, None, 'B1.esa'),
    'EDSR': ({**RGB, 'num_feat': 8, 'num_block': 2}, 'conv_after_body', 'body.0'),
    'MSRResNet': ({**RGB, 'num_feat': 8, 'num_block': 2}, 'body.1', 'upconv1@input'),
    'RCAN': ({**RGB, 'num_feat': 8, 'num_group': 1, 'num_block': 2, 'squeeze_factor': 2}, 'conv_after_body', 'body.0'),
    'RRDBNet': (
        {'num_in_ch': 3, 'num_out_ch': 3, 'scale': 2, 'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4},
        'conv_up1@input',
        'conv_body',
    ),
    'ECBSR': (
        {
            'num_in_ch': 3,
            'num_out_ch': 3,
            'scale': 2,
            'num_block': 2,
            'num_channel': 8,
            'with_idt': True,
            'act_type': 'prelu',
        },
        'backbone.2',
        'backbone.0',
    ),
    'SRVGGNetCompact': ({**RGB, 'num_feat': 8, 'num_conv': 2}, 'body.4', 'body.1'),
    'SwinIR': (
        {
            'in_chans': 3,
            'upscale': 2,
            'img_size': 16,
            'window_size': 8,
            'embed_dim': 8,
            'depths': [2],
            'num_heads': [2],
            'mlp_ratio': 2,
            'upsampler': 'pixelshuffledirect',
        },
        'conv_after_body',
        'conv_first',
    ),
}


@pytest.mark.parametrize('network', NETWORKS)
def test_pisr_distils_any_network_by_yaml_alone(workspace, network):
    arguments, body, early = NETWORKS[network]
    color = 'y' if arguments.get('num_in_ch') == 1 else 'rgb'
    links = {
        'body': {'student': body} if body else {},
        'early': {
            'student': early,
            'estimator': {'type': 'Adapter'},
            'loss': {'type': 'FeatureMAELoss', 'loss_weight': 0.1},
        },
    }
    recipe = workspace.recipe(
        network_g={'type': network, **arguments}, train={'total_iter': 2, 'distill_opt': links}, val={'val_freq': 2}
    )
    still = ['stages:student:train:optim_g:lr=0', 'train:scheduler:eta_min=0']
    data = [f'datasets:{phase}:color={color}' for phase in ('train', 'val')]
    assert train(['-opt', str(recipe), '--force_yml', *data]) == 0

    first = json.loads((STUDENT / 'metrics.jsonl').read_text().splitlines()[0])
    assert {'l_pix', 'l_distill_body', 'l_distill_early'} <= set(first)
    teacher, student, estimators = (
        torch.load(path, weights_only=True)['params']
        for path in (
            TEACHER / 'models/net_t_latest.pth',
            STUDENT / 'models/net_g_latest.pth',
            STUDENT / 'models/net_e_latest.pth',
        )
    )
    assert {key.split('.')[0] for key in estimators} == {'body', 'early'}
    assert {f'decoder.{key}' for key in student} == {key for key in teacher if key.startswith('decoder.')}
    moved = [key for key in student if not torch.equal(student[key], teacher[f'decoder.{key}'])]
    assert moved  # the student has learned ...
    assert (
        train(
            [
                '-opt',
                str(recipe),
                '--stage',
                'student',
                '--force_yml',
                'name=still',
                *data,
                *still,
                f'path:pretrain_network_t={TEACHER}/models/net_t_latest.pth',
            ]
        )
        == 0
    )
    still_student = torch.load('experiments/still/student/models/net_g_latest.pth', weights_only=True)['params']
    assert all(torch.equal(value, teacher[f'decoder.{key}']) for key, value in still_student.items())  # ... from there


KD = {
    'network_g': {'type': 'RFDN', **RGB, 'num_feat': 8, 'num_block': 2},
    'network_t': {'type': 'EDSR', **RGB, 'num_feat': 12, 'num_block': 2, 'img_range': 1.0},
    'train': {
        'total_iter': 2,
        'distill_opt': {
            'body': {'teacher': 'upsample@input', 'estimator': {'type': 'Adapter'}, 'loss': {'type': 'FeatureMAELoss'}}
        },
    },
    'stages': {
        'teacher': {'network_g': None, 'train': {'distill_opt': None}},
        'student': {'path': {'pretrain_network_t': 'stage:teacher'}},
    },
}


def test_a_conventional_teacher_sees_lr_and_may_come_from_elsewhere(workspace):
    recipe = str(workspace.recipe('schedule', **KD))
    data = [f'datasets:{phase}:color=rgb' for phase in ('train', 'val')]
    assert train(['-opt', recipe, '--force_yml', *data]) == 0
    losses = [
        {key for key in json.loads((folder / 'metrics.jsonl').read_text().splitlines()[0]) if key[:2] == 'l_'}
        for folder in (TEACHER, STUDENT)
    ]
    assert losses == [{'l_pix'}, {'l_pix', 'l_distill_body'}]
    elsewhere = (TEACHER / 'models/net_t_latest.pth').rename('edsr.pth')
    assert (
        train(
            [
                '-opt',
                recipe,
                '--stage',
                'student',
                '--force_yml',
                *data,
                'name=other',
                f'path:pretrain_network_t={elsewhere}',
            ]
        )
        == 0
    )
    assert (
        torch.load('experiments/other/student/models/net_g_latest.pth', weights_only=True)['params'].keys()
        == torch.load(STUDENT / 'models/net_g_latest.pth', weights_only=True)['params'].keys()
    )


@pytest.mark.parametrize('teacher', [False, True])
def test_window_attention_is_tested_on_images_of_any_size(teacher):
    network = {'network_g': {'type': 'SwinIR', **NETWORKS['SwinIR'][0]}}
    if teacher:
        network = {'network_t': {'type': 'PITeacher', 'upscale': 2, 'decoder': network['network_g']}}
    with quiet():
        model = build_model(
            {
                'model_type': 'PISRModel',
                'num_gpu': 0,
                'is_train': False,
                'dist': False,
                'scale': 2,
                'path': {},
                **network,
            }
        )
    image = torch.rand(1, 3, 32, 32)
    for height, width in ((16, 16), (13, 15)):
        model.feed_data({'lq': image[..., :height, :width], 'gt': image[..., : 2 * height, : 2 * width]})
        model.test()
        assert model.output.shape == (1, 3, 2 * height, 2 * width)
    model.feed_data({'lq': image[..., :16, :16], 'gt': image})
    model.test()
    with torch.no_grad():
        plain = model.net.eval()(image if teacher else image[..., :16, :16])
    assert torch.equal(model.output, plain.sr if teacher else plain)  # whole windows are left alone
