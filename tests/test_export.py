"""Exports: every network gives the same image in other runtimes, and a file that does not is refused."""

from __future__ import annotations

import json
import resource

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network

from pisr_plugin.cli.export import main
from pisr_plugin.export.check import samples
from pisr_plugin.export.formats import Exporter
from pisr_plugin.inference.card import Card, read_card, write_card
from pisr_plugin.inference.descriptor import load_model

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

SMALLER = {  # whose export takes long
    'KDSRStudent': {'num_block': 3},
    'EDSR': {'num_block': 2},
    'RCAN': {'num_group': 2, 'num_block': 2},
    'MSRResNet': {'num_block': 2},
    'RRDBNet': {'num_block': 1},
    'SwinIR': {'depths': [2], 'num_heads': [2], 'embed_dim': 12, 'window_size': 4, 'upsampler': 'pixelshuffle'},
}


def make_model(folder, network: str, channels: int = 3, scale: int = 4, **more) -> Card:
    """A network with random weights and its card."""
    name = 'scale' if network == 'RRDBNet' else 'upscale'
    counts = ('in_chans',) if network == 'SwinIR' else ('num_in_ch', 'num_out_ch')
    options = {'type': network, name: scale, **dict.fromkeys(counts, channels), **SMALLER.get(network, {}), **more}
    torch.manual_seed(0)
    card = Card(folder / f'{network.lower()}.pth', options, scale, 'y' if channels == 1 else 'rgb')
    torch.save({'params': build_network(dict(options)).state_dict()}, card.weights)
    write_card(card)
    return card


def shape(value) -> list:
    return [entry.dim_param or entry.dim_value for entry in value.type.tensor_type.shape.dim]


def operators(model) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.fixture
def photos(tmp_path):
    """Two photos of odd sizes."""
    folder, generator = tmp_path / 'photos', np.random.default_rng(0)
    folder.mkdir()
    for name, size in (('a', (150, 131)), ('b', (97, 213))):
        coarse = generator.integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
        cv2.imwrite(str(folder / f'{name}.png'), cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC))
    return folder


@pytest.mark.parametrize(
    'network, channels',
    [
        ('FSRCNN', 1),
        ('VDSR', 1),
        ('IDN', 1),
        ('CARN', 3),
        ('CARNM', 3),
        ('IMDN', 3),
        ('RFDN', 3),
        ('ERFDN', 3),
        ('KDSRStudent', 3),
        ('EDSR', 3),
        ('RCAN', 3),
        ('MSRResNet', 3),
        ('RRDBNet', 3),
        ('SwinIR', 3),
    ],
)
def test_every_network_gives_its_image_in_onnxruntime_at_any_size(tmp_path, network, channels):
    card = make_model(tmp_path, network, channels)
    exporter = Exporter(load_model(card.weights), card)
    [(path, found)] = exporter.export(['onnx'], tmp_path, samples(None, card))
    assert found.difference < 0.01 and abs(found.loss) < 0.001
    model = onnx.load(path)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ['lq', 'sr']
    window = exporter.model.window
    assert shape(model.graph.input[0])[:2] == [1, channels] and shape(model.graph.output[0])[:2] == [1, channels]
    assert all(isinstance(side, str) for side in shape(model.graph.input[0])[2:])
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert (told['scale'], told['color'], told['range']) == ('4', 'y' if channels == 1 else 'rgb', '[0, 1]')
    assert told['window'] == str(window) and json.loads(told['card'])['network'] == card.network


@pytest.mark.parametrize('network, count', [('FSRCNN', 1), ('VDSR', 2), ('IDN', 3)])
def test_transposed_convolutions_upscale(tmp_path, network, count):
    """Of FSRCNN and IDN as they are, and one for each side of MATLAB's bicubic."""
    card = make_model(tmp_path, network, 1)
    [(path, _)] = Exporter(load_model(card.weights), card).export(['onnx'], tmp_path, samples(None, card))
    assert operators(onnx.load(path)).count('ConvTranspose') == count


def test_the_command_writes_every_format_and_compares_it(tmp_path, photos, capsys):
    card = make_model(tmp_path, 'FSRCNN', 1, 2)
    out = tmp_path / 'out'
    formats = ['onnx', 'pt2', 'safetensors']
    words = [str(card.weights), '-o', str(out), '--photos', str(photos), '--name', 'small', '--format', *formats]
    assert main(words) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 3 and all('largest difference' in line and 'as fast as PyTorch' in line for line in told)
    assert {path.name for path in out.iterdir()} == {'small.onnx', 'small.pt2', 'small.safetensors', 'small.json'}
    written = read_card(out / 'small.safetensors')
    written.check_file()
    assert written.network == card.network and written.parameters == 12644
    lq = torch.rand(1, 1, 31, 45)
    expected = load_model(card.weights).net(lq)
    assert torch.equal(load_model(out / 'small.safetensors').net(lq), expected)
    extra = {'card': ''}
    program = torch.export.load(out / 'small.pt2', extra_files=extra)
    torch.testing.assert_close(program.module()(lq), expected, rtol=0, atol=1e-5)
    assert json.loads(extra['card'])['scale'] == 2


def test_openvino_gives_the_same_image(tmp_path, photos):
    openvino = pytest.importorskip('openvino')
    card = make_model(tmp_path, 'FSRCNN', 1, 2)
    for flag in ([], ['--fp16'], ['--int8-weights', '--max-loss', '99']):
        words = [str(card.weights), '-o', str(tmp_path / 'out'), '--photos', str(photos), '--format', 'openvino', *flag]
        assert main(words) == 0
    out = tmp_path / 'out'
    names = {'fsrcnn', 'fsrcnn_fp16', 'fsrcnn_int8_weights'}
    assert {path.name for path in out.iterdir()} == {f'{name}{end}' for name in names for end in ('.xml', '.bin')}
    assert (out / 'fsrcnn_fp16.bin').stat().st_size < 0.6 * (out / 'fsrcnn.bin').stat().st_size
    assert openvino.Core().read_model(out / 'fsrcnn.xml').get_rt_info(['pisr', 'scale']).astype(str) == '2'


@pytest.mark.parametrize('name', ['onnx', 'pt2', 'safetensors', 'openvino'])
def test_on_a_full_disk_one_line_says_so_and_no_file_is_left(name, tmp_path, photos, capsys):
    if name == 'openvino':
        pytest.importorskip('openvino')
    card = make_model(tmp_path, 'EDSR', num_feat=32)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        code = main([str(card.weights), '-o', str(tmp_path / 'out'), '--photos', str(photos), '--format', name])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and line.startswith('error: ') and 'unexpected' not in line and str(tmp_path / 'out') in line
    assert not list((tmp_path / 'out').iterdir())


def test_smaller_weights(tmp_path, photos):
    """In half of the space, and in a quarter; input and output stay float32."""
    card = make_model(tmp_path, 'EDSR', num_feat=32)
    sizes = {}
    for flag in ('', '--fp16', '--int8-weights', '--int8'):
        words = [str(card.weights), '-o', str(tmp_path / 'out'), '--photos', str(photos)]
        more = ['--calibration', str(photos)] if flag == '--int8' else []
        assert main([*words, *filter(None, [flag]), *more]) == 0
        path = tmp_path / 'out' / f'edsr{flag.replace("--", "_").replace("-", "_")}.onnx'
        model = onnx.load(path)
        sizes[flag] = path.stat().st_size
        assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {1}
    assert sizes['--fp16'] < 0.6 * sizes[''] and sizes['--int8-weights'] < 0.4 * sizes['']
    assert 'QuantizeLinear' in operators(model)
    assert len(list((tmp_path / 'out').iterdir())) == 4


@pytest.mark.parametrize(
    'words, told',
    [
        (['--tolerance', '0'], 'gives another image than PyTorch'),
        (['--max-loss', '-1'], 'loses too much quality'),
        (['--int8'], '--int8 and --calibration belong together'),
        (['--fp16', '--calibration', 'photos'], '--int8 and --calibration belong together'),
        (['--ort', 'runtime'], 'belongs to --web'),
        (['--fp16', '--int8-weights', '--format', 'pt2'], 'not allowed with argument'),
        (['--int8-weights', '--format', 'pt2', 'onnx'], 'pt2 has no such precision'),
        (['--opset', '99'], 'in this version'),
        (['--photos', 'nowhere'], 'no such folder'),
        (['--name', 'a/b'], '--name: not a name'),
        (['--format', 'safetensors', '-o', '{folder}'], 'is the card of fsrcnn.pth'),
    ],
)
def test_a_mistake_is_one_message_and_no_file(tmp_path, words, told, capsys):
    card, out = make_model(tmp_path, 'FSRCNN', 1, 2), tmp_path / 'out'
    try:
        code = main([str(card.weights), '-o', str(out), *(word.format(folder=tmp_path) for word in words)])
    except SystemExit as error:  # of argparse
        code = error.code
    assert code == 2 and told in capsys.readouterr().err
    assert not out.exists() or not list(out.iterdir())


def test_a_file_that_gives_nan_is_refused(tmp_path, capsys):
    card = make_model(tmp_path, 'FSRCNN', 1, 2)
    content = torch.load(card.weights)
    content['params']['last_layer.0.0.weight'] *= 1e6  # beyond float16
    torch.save(content, card.weights)
    assert main([str(card.weights), '-o', str(tmp_path / 'out'), '--fp16']) == 2
    assert 'no file is kept' in capsys.readouterr().err and not list((tmp_path / 'out').iterdir())


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('pisr_plugin.cli.common.find_spec', lambda name: None)
    assert main(['fsrcnn_x2', '--format', 'onnx']) == 2
    assert "pip install 'pisr-plugin[onnx]'" in capsys.readouterr().err
