"""Tools that are built on spandrel load this package's students."""

import numpy as np
import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY

from pisr_plugin import load_model
from pisr_plugin.inference.card import Card, write_card
from pisr_plugin.inference.identify import VARIANTS
from pisr_plugin.utils.errors import CheckpointError

spandrel = pytest.importorskip('spandrel')


@pytest.fixture(autouse=True)
def installed(monkeypatch, tmp_path):
    from pisr_plugin.inference.spandrel_registry import install

    install()
    install()  # a second time does nothing
    monkeypatch.setenv('PISR_MODELS', str(tmp_path))


def save(path, network: str, **options) -> None:
    torch.manual_seed(0)
    torch.save({'params': ARCH_REGISTRY.get(network)(**options).state_dict()}, path)


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)


def spandrel_pixels(model) -> np.ndarray:
    sr = model(torch.from_numpy(pixels()).permute(2, 0, 1)[None] / 255)
    return (sr[0] * 255).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize('network', [name for name in VARIANTS if name not in ('FSRCNN', 'VDSR', 'IDN', 'KDSRTeacher')])
def test_a_student_is_told_by_its_tensors(network, tmp_path):
    save(tmp_path / 'net.pth', network, upscale=4)
    model = spandrel.ModelLoader().load_from_file(tmp_path / 'net.pth')
    assert (model.scale, model.input_channels, model.tags) == (4, 3, [network])
    assert np.abs(spandrel_pixels(model).astype(int) - load_model(tmp_path / 'net.pth').upscale(pixels())).max() <= 1


def test_a_luminance_student_of_a_known_name_gives_colours(tmp_path):
    save(tmp_path / 'net.pth', 'FSRCNN', upscale=3)
    with pytest.raises(CheckpointError, match='FSRCNN has the same tensors at several scales. .* PISR_MODELS'):
        spandrel.ModelLoader().load_from_file(tmp_path / 'net.pth')
    write_card(Card(tmp_path / 'net.pth', {'type': 'FSRCNN', 'upscale': 3}, 3, 'y'))
    model = spandrel.ModelLoader().load_from_file(tmp_path / 'net.pth')
    assert model.scale == 3 and model.tiling == spandrel.ModelTiling.SUPPORTED
    assert np.abs(spandrel_pixels(model).astype(int) - load_model('net').upscale(pixels())).max() <= 1


def test_a_teacher_is_no_student(tmp_path):
    save(tmp_path / 'net.pth', 'KDSRTeacher', upscale=4)
    with pytest.raises(spandrel.UnsupportedModelError):
        spandrel.ModelLoader().load_from_file(tmp_path / 'net.pth')
