"""The models that ship are what their cards say."""

from pathlib import Path

import pytest

from benchmarks import zoo
from pisr_plugin import load_model
from pisr_plugin.data.prepare.demo import HELD_OUT, photo_folder
from pisr_plugin.evaluation.measure import measure
from pisr_plugin.evaluation.protocol import PROTOCOLS
from pisr_plugin.inference.card import read_card
from pisr_plugin.inference.find_model import SHIPPED, find_model

NAMES = sorted(path.stem for path in SHIPPED.glob('*.json'))


def test_every_file_has_a_card_and_is_small():
    assert NAMES == ['fsrcnn_x2', 'fsrcnn_x3', 'fsrcnn_x4', 'rfdn_s_x2', 'rfdn_s_x4']
    assert sorted(path.stem for path in SHIPPED.glob('*.safetensors')) == NAMES
    assert all(path.stat().st_size < 2**20 for path in SHIPPED.iterdir())


@pytest.mark.parametrize('name', NAMES)
def test_a_shipped_model_measures_what_its_card_says(name, tmp_path):
    """On two photos that scikit-image contains; the figures of the other sets were measured by the same command."""
    card = find_model(name)
    model = load_model(name)
    assert model.parameters == card.parameters and (model.scale, model.channels) == (card.scale, card.channels)
    for photo in HELD_OUT:
        Path(tmp_path, photo).write_bytes((photo_folder() / photo).read_bytes())
    options = {'crop_border': card.scale, 'test_y_channel': True}
    metrics = {metric: {'type': f'calculate_{metric}', **options} for metric in ('psnr', 'ssim')}
    dataset = {'name': 'heldout', 'type': 'PairedImageDataset', 'dataroot_gt': str(tmp_path), 'scale': card.scale}
    dataset |= {'phase': 'val', **({'color': 'y'} if card.color == 'y' else {})}
    found = measure(model, dataset, PROTOCOLS['basicsr'], metrics).mean
    assert found == pytest.approx(card.measured['basicsr']['heldout'], abs=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_a_card_says_where_the_model_comes_from(name):
    card = read_card(SHIPPED / f'{name}.json')
    assert {'Set5', 'Set14', 'B100'} <= set(card.measured['basicsr']) and card.measured['pisr']
    assert {'recipe', 'data', 'iterations', 'cpu_seconds', 'commit'} <= set(card.trained)
    assert {'weights', 'data'} <= set(card.licence)


def test_the_page_of_models_has_the_figures_of_their_cards():
    assert zoo.table() in zoo.PAGE.read_text()
