"""Authors' files load as they are, the loader says what it made of them, and a file that does not fit is named."""

import logging

import pytest
import torch
from basicsr.archs import build_network
from safetensors.torch import save_file

from pisr_plugin.cli.test import main as evaluate
from pisr_plugin.inference import checkpoint
from pisr_plugin.inference.identify import VARIANTS, identify
from pisr_plugin.utils.errors import CheckpointError
from tests.conftest import ROOT


def net(network, channels=3, upscale=2, **options):
    colours = {'num_in_ch': channels, 'num_out_ch': channels}
    return build_network({'type': network, **colours, 'upscale': upscale, **options})


def prefixed(prefix, weights):
    return {f'{prefix}{key}': value for key, value in weights.items()}


def multi_scale_carn(network='CARN'):
    """A file with one body and the upsamplers of three scales, as the authors release it."""
    return {
        key.replace('.up.', f'.up{scale}.'): value
        for scale in (2, 3, 4)
        for key, value in net(network, upscale=scale).state_dict().items()
    }


@pytest.fixture
def log(caplog):
    logger = logging.getLogger('basicsr')
    propagate, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, 'basicsr'):
        yield caplog
    logger.propagate = propagate


def load(network, content, path):
    save_file(content, path) if path.suffix == '.safetensors' else torch.save(content, path)
    checkpoint.load_network(network, path)
    return network.state_dict()


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_file_of_data_parallel_loads_and_the_loader_tells(tmp_path, log, suffix):
    weights = net('IMDN').state_dict()
    loaded = load(net('IMDN'), prefixed('module.', weights), tmp_path / f'IMDN_x2{suffix}')
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())
    assert '92 tensors go by other names, e.g. module.' in log.text and 'left out' not in log.text


def test_a_multi_scale_file_gives_its_scale_and_the_loader_tells(tmp_path, log):
    weights = multi_scale_carn()
    loaded = load(net('CARN', upscale=3), weights, tmp_path / 'carn.pth')
    assert torch.equal(loaded['upsample.up.body.0.weight'], weights['upsample.up3.body.0.weight'])
    assert '2 tensors go by other names, e.g. upsample.up3.body.0.weight is upsample.up.body.0.weight' in log.text
    assert '6 tensors are left out, e.g. upsample.up2.body.0.weight' in log.text


def test_a_pisr_students_file_loads_without_its_estimator_and_the_loader_tells(tmp_path, log):
    weights = net('FSRCNN', 1).state_dict()
    content = prefixed('backbone.network.', weights) | {'vid_module_dict.expanding_mean.0.bias': torch.zeros(56)}
    loaded = load(net('FSRCNN', 1), {'state_dict': content, 'epoch': 3}, tmp_path / 'epoch_0999.pth')
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())
    assert f'{len(weights)} tensors go by other names, e.g. backbone.network.' in log.text
    assert '1 tensors are left out, e.g. vid_module_dict.expanding_mean.0.bias' in log.text


def test_own_files_need_no_words(tmp_path, log):
    load(net('RFDN'), {'params': net('RFDN').state_dict()}, tmp_path / 'net_g_latest.pth')
    assert 'net_g_latest' not in log.text


RGB = 'num_in_ch: 3, num_out_ch: 3'
MISTAKEN = {
    'another network': (
        prefixed('module.', net('IMDN', upscale=3).state_dict()),
        f'looks like {{type: IMDN, {RGB}, upscale: 3}}.',
    ),
    'any scale': (
        net('FSRCNN', 1, d=56, s=56).state_dict(),
        'looks like {type: FSRCNN, d: 56, s: 56, m: 4, num_in_ch: 1, num_out_ch: 1, upscale: 2 or 3 or 4}.',
    ),
    'multi-scale': (multi_scale_carn('CARNM'), f'looks like {{type: CARNM, {RGB}, upscale: 2 or 3 or 4}}.'),
    'challenge form': (net('ERFDN', upscale=4).state_dict(), f'looks like {{type: ERFDN, {RGB}, upscale: 4}}.'),
    'another scale': (net('RFDN', upscale=2).state_dict(), f'looks like {{type: RFDN, {RGB}, upscale: 2}}.'),
    'pisr student': (
        prefixed('backbone.network.', net('FSRCNN', 1).state_dict()),
        'looks like {type: FSRCNN, num_in_ch: 1',
    ),
    'pisr teacher': (
        prefixed('backbone.network.', net('FSRCNN', 1).state_dict() | {'encoder.0.0.bias': torch.ones(9)}),
        'holds an encoder too, as a PITeacher; its decoder looks like {type: FSRCNN, num_in_ch: 1',
    ),
    'our teacher': (
        prefixed('decoder.', net('IDN').state_dict()) | {'encoder.0.0.bias': torch.ones(56)},
        'as a PITeacher; its decoder looks like {type: IDN, num_in_ch: 3',
    ),
    'nearly': (net('IMDN', upscale=3, num_block=5).state_dict(), f'is most like {{type: IMDN, {RGB}'),
}


@pytest.mark.parametrize('name', MISTAKEN)
def test_a_file_that_does_not_fit_is_named(tmp_path, name):
    content, expected = MISTAKEN[name]
    network = net('RFDN', upscale=4)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load(network, content, tmp_path / f'file{".safetensors" if name == "multi-scale" else ".pth"}')
    assert 'belongs to another network than RFDN as configured' in str(error.value) and expected in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_nothing_is_named_where_nothing_is_near(tmp_path):
    with pytest.raises(CheckpointError) as error:
        load(net('RFDN'), net('MSRResNet', num_block=2, num_feat=8).state_dict(), tmp_path / 'file.pth')
    assert 'looks like' not in str(error.value) and 'most like' not in str(error.value)


@pytest.mark.parametrize('network', VARIANTS)
def test_every_network_is_recognised(network):
    for variant in VARIANTS[network]:
        found = identify(net(network, 3, 3, **variant).state_dict())
        assert found.startswith(f'looks like {{type: {network}, ')
        assert all(f'{key}: {value}' in found for key, value in variant.items()) and '3' in found.split('upscale: ')[1]


def test_a_released_file_is_tested_in_one_line(workspace, capsys):
    torch.save(multi_scale_carn('CARNM'), workspace.path / 'carn_m.pth')
    recipe = str(ROOT / 'options/released/carnm_x4.yml')
    images = ['--sets', 'Two=datasets/test/HR', '--force_yml', 'num_gpu=0', 'scale=2']
    assert evaluate(['-opt', recipe, '--weights', 'carn_m.pth', *images]) == 0
    assert '| carn_m |' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['IDN_x2.caffemodel', 'model_epoch_50.pth'])
def test_files_of_other_software_are_refused_with_what_to_do(tmp_path, name):
    torch.save({'model': net('VDSR', 1)}, tmp_path / name)  # a pickled module
    with pytest.raises(CheckpointError, match='save its weights under the names that docs/networks.md gives'):
        checkpoint.load_network(net('VDSR', 1), tmp_path / name)
