"""Each protocol compares what it says."""

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from basicsr.metrics import calculate_psnr, calculate_ssim

from pisr_plugin.evaluation.measure import ModelDescriptor, _eightfold, measure, measure_images
from pisr_plugin.evaluation.protocol import PROTOCOLS, protocol_of
from pisr_plugin.evaluation.test_images import read_images
from pisr_plugin.utils.errors import DataError, OptionsError
from pisr_plugin.utils.resize import imresize, imresize_uint8
from tests.conftest import make_images

METRICS = {
    'psnr': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True},
    'ssim': {'type': 'calculate_ssim', 'crop_border': 2, 'test_y_channel': True},
}


@pytest.fixture
def hr():
    return np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)


def luminance(rgb):
    return 16 + (rgb.astype(np.float64) @ [65.481, 128.553, 24.966]) / 255


def test_y_plane_degrades_the_rounded_plane_without_rounding(hr):
    lq = PROTOCOLS['y_plane'].degrade(hr, 2, 1)
    expected = imresize(torch.from_numpy(np.rint(luminance(hr)))[None], 0.5)[0].numpy() / 255
    np.testing.assert_allclose(lq[..., 0], expected, atol=1e-6)


@pytest.mark.parametrize('name', ['y_plane', 'pisr', 'rgb8', 'basicsr'])
def test_grey_images_are_their_own_plane_or_become_rgb(hr, name):
    """The code of PISR, FSRCNN and IDN takes a one-channel file as it is; that of the others makes it RGB first."""
    grey = hr[..., 0]
    truth = PROTOCOLS[name].compared(np.zeros((20, 24, 1)), grey)[1][..., 0]
    lq = PROTOCOLS[name].degrade(grey, 2, 1)[..., 0] * 255
    small = imresize_uint8(np.repeat(grey[..., None], 3, axis=2), 0.5)
    if name in ('y_plane', 'pisr'):
        assert np.array_equal(truth, grey)
    else:
        np.testing.assert_allclose(truth, luminance(np.repeat(grey[..., None], 3, axis=2)), atol=0.5)
    if name == 'pisr':
        np.testing.assert_allclose(lq, small[..., 0], atol=1e-4)
    elif name != 'y_plane':
        np.testing.assert_allclose(lq, luminance(small), atol=1e-3)


def test_a_given_grey_lr_image_is_the_one_that_is_made(tmp_path):
    """And the saved picture is grey, as bright as the file."""
    make_images(tmp_path, 1)
    for folder in ('HR', 'LR_bicubic/X2'):
        file = tmp_path / folder / '0.png'
        cv2.imwrite(str(file), cv2.imread(str(file), cv2.IMREAD_GRAYSCALE))
    hr = cv2.imread(str(tmp_path / 'HR/0.png'), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(tmp_path / 'LR_bicubic/X2/0.png'), imresize_uint8(np.repeat(hr[..., None], 3, axis=2), 0.5)[..., 0])
    sets = {'name': 'toy', 'dataroot_gt': str(tmp_path / 'HR')}
    given = {**sets, 'dataroot_lq': str(tmp_path / 'LR_bicubic/X2')}
    bicubic = ModelDescriptor('bicubic', None, 1, 2)
    results = [next(measure_images(bicubic, data, PROTOCOLS['pisr'], METRICS)) for data in (sets, given)]
    assert results[0].values == results[1].values
    picture = results[0].picture(2)
    assert np.array_equal(picture[..., 0], picture[..., 2])
    error = picture[2:-2, 2:-2, 0].astype(float) - hr[2:-2, 2:-2]
    assert 10 * np.log10(255**2 / np.mean(error**2)) == pytest.approx(results[0].values['psnr'], abs=0.01)


@pytest.mark.parametrize('name', ['rgb8', 'pisr', 'basicsr'])
def test_the_text_says_what_is_rounded_for_luminance_and_for_rgb(name):
    protocol = PROTOCOLS[name]
    assert 'RGB output rounded to 8 bit, its luminance not' in protocol.text(3)
    assert ('both luminances rounded' in protocol.text(1)) == (protocol.round_sr and protocol.round_gt)


@pytest.mark.parametrize(
    'metric, size', [('calculate_ssim', 14), ('calculate_psnr', 4), ('calculate_ssim', 4), ('calculate_ifc', 40)]
)
def test_an_image_too_small_for_a_metric_is_named(tmp_path, metric, size):
    """BasicSR's SSIM of an image below 11 pixels is NaN, and so was the mean of the set."""
    make_images(tmp_path, 1, size=(size, size))
    sets = {'name': 'toy', 'dataroot_gt': str(tmp_path / 'HR')}
    with pytest.raises(DataError, match=f'toy/0: some cannot be computed .found an image of {size}x{size} pixels'):
        measure(ModelDescriptor('bicubic', None, 3, 2), sets, PROTOCOLS['rgb8'], {'some': {'type': metric}})


@pytest.mark.parametrize('name', ['rgb8', 'pisr', 'basicsr', 'rgb'])
def test_the_others_degrade_the_8_bit_rgb_image(hr, name):
    small = imresize_uint8(hr, 0.5).astype(np.float32) / 255
    np.testing.assert_allclose(PROTOCOLS[name].degrade(hr, 2, 3), small, atol=1e-7)
    np.testing.assert_allclose(PROTOCOLS[name].degrade(hr, 2, 1)[..., 0], luminance(small * 255) / 255, atol=1e-6)


@pytest.mark.parametrize(
    'name, rounds_sr, rounds_gt',
    [('y_plane', True, True), ('rgb8', False, False), ('pisr', True, False), ('basicsr', True, True)],
)
def test_luminance_is_rounded_where_the_protocol_says(hr, name, rounds_sr, rounds_gt):
    sr = np.full((20, 24, 1), 100.3 / 255)
    found, truth = PROTOCOLS[name].compared(sr, hr)
    assert found[0, 0, 0] == pytest.approx(100 if rounds_sr else 100.3)
    expected = np.rint(luminance(hr)) if rounds_gt else luminance(hr)
    np.testing.assert_allclose(truth[..., 0], expected)


@pytest.mark.parametrize('name', ['rgb8', 'pisr', 'basicsr'])
def test_rgb_output_is_rounded_and_its_luminance_never(hr, name):
    sr = np.random.default_rng(1).random((20, 24, 3))
    found, truth = PROTOCOLS[name].compared(sr, hr)
    np.testing.assert_allclose(found[..., 0], luminance(np.rint(sr * 255)))
    np.testing.assert_allclose(truth[..., 0], luminance(hr))


def test_rgb_compares_channels(hr):
    sr = np.random.default_rng(1).random((20, 24, 3))
    found, truth = PROTOCOLS['rgb'].compared(sr, hr)
    assert np.array_equal(found, np.rint(sr * 255)) and np.array_equal(truth, hr)
    with pytest.raises(OptionsError, match='compares RGB'):
        PROTOCOLS['rgb'].compared(sr[..., :1], hr)


def test_an_rgb_network_cannot_be_tested_on_a_plane(hr):
    with pytest.raises(OptionsError, match='y_plane.*Possible: rgb8, pisr, basicsr, rgb'):
        PROTOCOLS['y_plane'].degrade(hr, 2, 3)


def test_the_default_is_what_basicsr_measures():
    y, rgb = {'val': {'color': 'y'}}, {'val': {'color': 'rgb'}}
    assert protocol_of({'datasets': y, 'val': {'metrics': {'psnr': {}}}}).name == 'basicsr'
    assert protocol_of({'datasets': rgb, 'val': {'metrics': METRICS}}).name == 'basicsr'
    assert protocol_of({'datasets': rgb, 'val': {'metrics': {'psnr': {}}}}).name == 'rgb'
    assert protocol_of({'datasets': y, 'val': {'protocol': 'pisr', 'metrics': METRICS}}).name == 'pisr'
    with pytest.raises(OptionsError, match=r"protocol: unknown \(found 'pisrr'\). Did you mean 'pisr'"):
        protocol_of({'datasets': y, 'val': {'metrics': METRICS}}, 'pisrr')


@pytest.fixture
def sets(tmp_path):
    make_images(tmp_path, 3)
    return {'name': 'toy', 'dataroot_gt': str(tmp_path / 'HR'), 'dataroot_lq': str(tmp_path / 'LR_bicubic/X2')}


def test_bicubic_of_8_bit_rgb_is_rounded_between_rows_and_columns(sets):
    result = measure(ModelDescriptor('bicubic', None, 3, 2), sets, PROTOCOLS['rgb8'], METRICS)
    for sample in read_images(sets):
        sr = imresize_uint8(sample.lq, 2)
        pair = [np.ascontiguousarray(image[..., ::-1]) for image in (sr, sample.gt)]
        values = result.images[sample.name]
        assert values['psnr'] == pytest.approx(calculate_psnr(*pair, 2, test_y_channel=True), abs=1e-5)
        assert values['ssim'] == pytest.approx(calculate_ssim(*pair, 2, test_y_channel=True), abs=1e-6)
    assert result.mean['psnr'] == pytest.approx(np.mean([values['psnr'] for values in result.images.values()]))


def test_each_metric_leaves_out_the_border_that_it_names_else_the_scale(sets):
    psnr = {'type': 'calculate_psnr'}
    metrics = {'none': {**psnr, 'crop_border': 0}, 'wide': {**psnr, 'crop_border': 9}, 'unsaid': psnr}
    result = measure(ModelDescriptor('bicubic', None, 3, 2), sets, PROTOCOLS['rgb'], metrics)
    for sample in read_images(sets):
        sr = imresize_uint8(sample.lq, 2)
        expected = [calculate_psnr(sr, sample.gt, border) for border in (0, 9, 2)]
        assert list(result.images[sample.name].values()) == pytest.approx(expected) and len(set(expected)) == 3


def test_lr_made_of_hr_is_the_lr_that_was_given(sets):
    given = measure(ModelDescriptor('bicubic', None, 3, 2), sets, PROTOCOLS['rgb8'], METRICS)
    made = measure(ModelDescriptor('bicubic', None, 3, 2), {**sets, 'dataroot_lq': None}, PROTOCOLS['rgb8'], METRICS)
    assert given.images == made.images


def test_ranks_share_the_images(sets):
    candidate = ModelDescriptor('bicubic', None, 1, 2)
    whole = measure(candidate, sets, PROTOCOLS['pisr'], METRICS).images
    parts = [measure(candidate, sets, PROTOCOLS['pisr'], METRICS, share=(rank, 2)).images for rank in range(2)]
    assert {**parts[0], **parts[1]} == whole and not parts[0].keys() & parts[1].keys()


def test_self_ensemble_averages_what_the_symmetries_give(sets):
    net = build_network({'type': 'FSRCNN', 'd': 8, 's': 4, 'm': 1, 'upscale': 2}).eval()
    candidate = ModelDescriptor('net', net, 1, 2)
    results = []
    for turns in (0, 1):  # a turned photo gets the turned reconstruction, which a plain network does not give
        rows = []
        for sample in read_images(sets):
            lq = PROTOCOLS['rgb8'].degrade(np.ascontiguousarray(np.rot90(sample.gt, turns)), 2, 1)
            x = torch.from_numpy(np.ascontiguousarray(lq.transpose(2, 0, 1)))[None]
            with torch.no_grad():
                rows.append(np.rot90(_eightfold(candidate, [x])[0, 0].numpy(), -turns))
        results.append(rows)
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_two_images_of_one_name_are_refused(tmp_path):
    """The values of the second took the place of the first's."""
    make_images(tmp_path, 1)
    (tmp_path / 'HR/0.bmp').write_bytes(cv2.imencode('.bmp', cv2.imread(str(tmp_path / 'HR/0.png')))[1].tobytes())
    with pytest.raises(DataError, match="toy: two images have one name .found '0' twice"):
        measure(
            ModelDescriptor('bicubic', None, 3, 2),
            {'name': 'toy', 'dataroot_gt': str(tmp_path / 'HR')},
            PROTOCOLS['rgb8'],
            METRICS,
        )


def test_a_set_without_ground_truth_is_refused():
    with pytest.raises(DataError, match='toy: dataroot_gt is missing'):
        next(read_images({'name': 'toy'}))
