"""Photos go in, larger photos come out, and nothing of the user's is overwritten."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network

from pisr_plugin.cli.upscale import main as upscale
from pisr_plugin.data.storage.image_files import read_rgb
from pisr_plugin.inference.predict import upscale_rgb


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder with a photo of 20x26 and one of 13x11, and checkpoints of networks on Y and on RGB."""
    monkeypatch.chdir(tmp_path)
    Path('photos').mkdir()
    for name, size in (('a.png', (20, 26, 3)), ('b.jpg', (13, 11, 3))):
        cv2.imwrite(f'photos/{name}', np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))
    torch.manual_seed(0)
    for type_ in ('FSRCNN', 'RFDN'):
        torch.save({'params': build_network({'type': type_, 'upscale': 2}).state_dict()}, f'{type_}.pth')
    return tmp_path


def of_type(network: str, *arguments: str) -> list[str]:
    return ['--type', network, '--arg', 'upscale=2', *arguments, '--weights', f'{network}.pth']


@pytest.mark.parametrize('network, on_y', [('FSRCNN', True), ('RFDN', False)])
def test_files_and_folders_are_upscaled(photos, network, on_y, capsys):
    assert upscale(['photos', *of_type(network), '-o', 'out']) == 0
    assert sorted(path.name for path in Path('out').iterdir()) == ['a.png', 'b.png']
    assert 'b.png: 11x13 to 22x26' in capsys.readouterr().out
    net = build_network({'type': network, 'upscale': 2})
    net.load_state_dict(torch.load(f'{network}.pth', weights_only=True)['params'])
    rgb = torch.from_numpy(read_rgb(Path('photos/a.png')).copy()).permute(2, 0, 1) / 255
    expected = (upscale_rgb(net, rgb, on_y) * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.abs(read_rgb(Path('out/a.png')).astype(int) - expected).max() <= 1


def test_strips_give_the_same_photo(photos):
    assert upscale(['photos/a.png', *of_type('FSRCNN'), '-o', 'whole']) == 0
    assert upscale(['photos/a.png', *of_type('FSRCNN'), '-o', 'strips', '--strips', '7']) == 0
    whole, strips = (read_rgb(Path(folder, 'a.png')).astype(int) for folder in ('whole', 'strips'))
    assert np.abs(whole - strips).max() <= 1


def test_the_recipe_says_which_network(workspace, capsys):
    recipe = str(workspace.recipe('baseline'))
    photo = 'datasets/test/LR_bicubic/X2/0.png'
    assert upscale([photo, '-opt', recipe, '-o', 'out']) == 2
    assert 'net_g_latest.pth does not exist. Train first' in capsys.readouterr().err
    torch.save(build_network({'type': 'FSRCNN', 'd': 8, 's': 4, 'm': 1, 'upscale': 2}).state_dict(), 'net.pth')
    assert upscale([photo, '-opt', recipe, '--weights', 'net.pth', '-o', 'out']) == 0
    assert read_rgb(Path('out/0.png')).shape == (48, 60, 3)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['photos', *of_type('FSRCNN'), '-o', 'photos'], 'photos/a.png would take the place of a photo'),
        (['photos', 'photos/a.png', *of_type('FSRCNN'), '-o', 'out'], 'both would become out/a.png'),
        (['c.png', *of_type('FSRCNN'), '-o', 'out'], 'c.png: no such file'),
        (['FSRCNN.pth', *of_type('FSRCNN'), '-o', 'out'], 'FSRCNN.pth: not an image'),
        (['photos', *of_type('FSRCNN', 'm=3'), '-o', 'out'], 'another network than FSRCNN'),
        (['photos', *of_type('FSRCN'), '-o', 'out'], "Did you mean 'FSRCNN'"),
        (['photos', *of_type('RFDN'), '-o', 'out', '--strips', '8'], 'strips: .*RFDN'),
        (['photos', *of_type('FSRCNN'), '-o', 'out', '--strips', '0'], '--strips 0'),
        (['photos', '-o', 'out'], 'give either a recipe'),
        (['photos', '--type', 'FSRCNN', '--arg', 'upscale=2', '-o', 'out'], 'name its checkpoint'),
    ],
)
def test_mistakes_are_said_before_anything_is_written(photos, capsys, arguments, message):
    before = {path: path.stat().st_mtime_ns for path in photos.rglob('*') if path.is_file()}
    assert upscale(arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert {path: path.stat().st_mtime_ns for path in photos.rglob('*') if path.is_file()} == before
