"""A weights file says by its card which network it holds; models are found by name, file and run folder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network

from pisr_plugin import load_model
from pisr_plugin.cli.list import main as list_
from pisr_plugin.cli.test import main as measure
from pisr_plugin.cli.train import main as train
from pisr_plugin.cli.upscale import main as upscale
from pisr_plugin.data.storage.image_files import write_png
from pisr_plugin.inference.card import Card, card_file, checksum, read_card, write_card
from pisr_plugin.inference.find_model import find_model
from pisr_plugin.utils.errors import CheckpointError, DataError

FSRCNN = {'type': 'FSRCNN', 'num_in_ch': 1, 'num_out_ch': 1, 'upscale': 2}
STUDENT = Path('experiments/run/student/models/net_g_latest.pth')


def save(folder, name='mine', options=FSRCNN, card=True, **fields):
    """Writes random weights of a network, with a card unless told otherwise."""
    torch.manual_seed(0)
    path = Path(folder, f'{name}.pth')
    torch.save({'params': build_network(dict(options)).state_dict()}, path)
    if card:
        color = 'y' if options['num_in_ch'] == 1 else 'rgb'
        write_card(Card(path, options, options['upscale'], color, sha256=checksum(path), **fields))
    return path


def test_a_finished_stage_leaves_a_card_and_a_test_adds_its_figures(workspace, capsys):
    recipe = str(workspace.recipe('baseline', train={'total_iter': 4, 'ema_decay': 0.5}))
    assert train(['-opt', recipe]) == 0
    card = read_card(STUDENT)
    assert card.network == {'type': 'FSRCNN', 'd': 8, 's': 4, 'm': 1, 'upscale': 2}
    assert (card.scale, card.color, card.param_key, card.measured) == (2, 'y', 'params_ema', {})
    assert card.trained['recipe'] == 'run' and card.trained['iterations'] == 4 and card.trained['cpu_seconds'] > 0
    assert measure(['-opt', recipe]) == 0
    (figures,) = read_card(STUDENT).measured['basicsr'].values()
    assert f'{figures["psnr"]:.2f} / {figures["ssim"]:.4f}' in capsys.readouterr().out
    for name in (STUDENT, 'experiments/run', 'experiments/run/student'):
        assert find_model(name).weights.samefile(STUDENT)
    expected = torch.load(STUDENT, weights_only=True)['params_ema']
    assert all(
        torch.equal(value, expected[key]) for key, value in load_model('experiments/run').net.state_dict().items()
    )


def test_models_have_names(tmp_path, monkeypatch, capsys):
    save(tmp_path, measured={'basicsr': {'Set5': {'psnr': 36.5, 'ssim': 0.95}}}, parameters=12644)
    monkeypatch.setenv('PISR_MODELS', str(tmp_path))
    assert list_(['models']) == 0
    assert 'mine' in (out := capsys.readouterr().out) and '12,644' in out and '36.50 dB on Set5 (basicsr)' in out
    assert list_(['models', 'mine']) == 0
    assert 'type: FSRCNN' in capsys.readouterr().out
    model = load_model('mine')
    assert (model.name, model.scale, model.channels) == ('mine', 2, 1)
    assert list_(['models', 'mime']) == 2
    assert "Did you mean 'mine'?" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r'a model for x2 \(found --scale 3\)'):
        find_model('mine', scale=3)


def test_a_card_must_fit_its_file(tmp_path, monkeypatch):
    path = save(tmp_path)
    other = save(tmp_path, 'other', {**FSRCNN, 'd': 8}, card=False)
    assert find_model(path).scale == 2
    shutil.copy(other, path)
    with pytest.raises(CheckpointError, match='is not the file that .*mine.json describes'):
        find_model(path)
    path.unlink()
    with pytest.raises(CheckpointError, match='mine.pth does not exist'):
        find_model(card_file(path))


def test_weights_of_another_scale_are_refused_where_a_card_tells(tmp_path, monkeypatch, capsys):
    """The tensors of FSRCNN are the same at every scale."""
    monkeypatch.chdir(tmp_path)
    save('.')
    write_png(Path('photo.png'), torch.zeros(8, 8, 3, dtype=torch.uint8).numpy())
    arguments = ['photo.png', '--type', 'FSRCNN', '--arg', 'upscale=3', '--weights', 'mine.pth', '-o', 'out']
    assert upscale(arguments) == 2
    assert 'another scale than its card says (found 3). Expected 2' in capsys.readouterr().err
    assert not Path('out').exists()


def test_a_file_without_a_card_is_recognised(tmp_path):
    rfdn = save(tmp_path, 'rfdn', {'type': 'RFDN', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 4}, card=False)
    assert load_model(rfdn).scale == 4
    fsrcnn = save(tmp_path, card=False)
    with pytest.raises(CheckpointError, match=r'same tensors at several scales. Say which one: --scale 2'):
        find_model(fsrcnn)
    assert load_model(fsrcnn, scale=3).scale == 3
    unknown = save(tmp_path, 'unknown', {**FSRCNN, 'd': 9}, card=False)
    with pytest.raises(CheckpointError, match='not those of a network that can be recognised'):
        find_model(unknown, scale=2)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'scale': '2'}, "scale: wrong value .found '2'.. Expected a whole number from 1 to 8"),
        ({'scale': 3}, 'scale: differs from that of the network .found 3 and 2.'),
        ({'weights': '../mine.pth'}, 'weights: wrong value'),
        ({'weights': 'mine.exe'}, 'weights: wrong value'),
        ({'network': {'type': 'FSRCN'}}, "no such network .found 'FSRCN'.. Did you mean 'FSRCNN'"),
        ({'network': []}, 'network: wrong value'),
        ({'measured': {'basicsr': {'Set5': {'psnr': 'high'}}}}, 'measured: wrong value'),
        ({'measured': {'basicsr': 3}}, 'measured: wrong value'),
        ({'measured': {'basicsr': {'Set5': {'psnr': 10**400}}}}, 'measured: wrong value'),
        ({'parameters': 2**60}, 'parameters: wrong value'),
        ({'measure': {}}, "measure: no such key. Did you mean 'measured'"),
        ({'trained': {'data': {'a': 1}}}, 'trained: wrong value'),
        ({'sha256': 'abc'}, 'sha256: wrong value'),
        ({'color': 'Y'}, "color: wrong value .found 'Y'.. Expected y or rgb"),
        ({'version': 2}, 'version: unknown .found 2.'),
        ({'kind': 'evaluation'}, "kind: unknown .found 'evaluation'.. Expected 'model card'"),
    ],
)
def test_a_damaged_card_is_named(tmp_path, changes, message):
    path = card_file(save(tmp_path))
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(DataError, match=message):
        find_model(path)


@pytest.mark.parametrize('text', ['', '[', '[1]', '{"kind": "model card", "version": 1}', '[' * 10**5, '\x00'])
def test_a_file_that_is_no_card_is_named(tmp_path, text):
    path = Path(tmp_path, 'mine.json')
    path.write_text(text)
    with pytest.raises(DataError, match=r'mine\.json'):
        read_card(path)


def test_cards_are_read_as_written(tmp_path):
    card = read_card(save(tmp_path, trained={'data': 'photos', 'patches': [32, 48]}, licence={'weights': 'Apache-2.0'}))
    write_card(replace(card, parameters=5))
    assert read_card(card.weights) == replace(card, parameters=5)
