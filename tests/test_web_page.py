"""The page that upscales in the browser gives the pixels of the package (headless Chromium, skipped without one)."""

from __future__ import annotations

import base64
import functools
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
import torch

from pisr_plugin.cli.export import main
from pisr_plugin.export import web
from pisr_plugin.inference.descriptor import load_model
from pisr_plugin.inference.predict import upscale_rgb
from pisr_plugin.utils.errors import InstallError
from pisr_plugin.utils.resize import imresize, imresize_uint8
from tests.test_export import make_model
from tests.test_report_page import CHROMIUM, browser  # noqa: F401  (a fixture)

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason='no Chromium found; install one or name it in CHROMIUM'),
    pytest.mark.skipif(shutil.which('npm') is None, reason='npm is not installed'),
]


@pytest.fixture(scope='module')
def runtime(tmp_path_factory):
    """onnxruntime-web, once for all tests."""
    try:
        return web._fetch_runtime(tmp_path_factory.mktemp('runtime'))
    except InstallError as error:
        if 'cannot fetch' not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope='module')
def site(tmp_path_factory, runtime):
    """The page with a network on Y, one on RGB, one with windows, and one that needs the whole image."""
    folder = tmp_path_factory.mktemp('models')
    cards = [
        make_model(folder, 'FSRCNN', 1, 2, start='bicubic'),
        make_model(folder, 'EDSR', 3, 3, num_feat=8),
        make_model(folder, 'SwinIR', 3, 2),
        make_model(folder, 'IMDN', 3, 2, num_feat=16, num_block=2),
    ]
    assert main([*(str(card.weights) for card in cards), '--web', str(folder / 'site'), '--ort', str(runtime)]) == 0
    return folder / 'site', {card.name: load_model(card.weights) for card in cards}


@pytest.fixture(scope='module')
def address(site):
    """A server for the page on this machine."""
    handler = functools.partial(Handler, directory=str(site[0]))
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


class Handler(SimpleHTTPRequestHandler):
    isolated = False

    def log_message(self, *args):
        pass

    def end_headers(self):
        if self.isolated:
            self.send_header('Cross-Origin-Opener-Policy', 'same-origin')
            self.send_header('Cross-Origin-Embedder-Policy', 'require-corp')
        super().end_headers()


@pytest.fixture
def opened(browser, address):  # noqa: F811
    """Opens the page; at the end nothing may have failed in the console, nor been asked of another server."""
    problems, contexts = [], []

    def open_page(width: int = 1200, **options):
        context = browser.new_context(viewport={'width': width, 'height': 800}, reduced_motion='reduce', **options)
        contexts.append(context)
        page = context.new_page()
        page.on('console', lambda message: problems.append(message.text))
        page.on('pageerror', lambda error: problems.append(str(error)))
        page.on('request', lambda request: outside(request.url, address) and problems.append(request.url))
        page.goto(address)
        page.wait_for_selector('html[data-ready]')
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def outside(url: str, address: str) -> bool:
    return not url.startswith((address, 'data:', 'blob:'))


@pytest.fixture
def photo(tmp_path):
    """A photo of odd sides that needs several tiles, and its pixels."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (24, 31, 3), np.uint8)
    image = cv2.resize(coarse, (307, 241), interpolation=cv2.INTER_CUBIC)
    image = (image + generator.normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8)
    path = tmp_path / 'ein Foto.png'
    cv2.imencode('.png', image[..., ::-1])[1].tofile(path)
    return path, image


def ready(page) -> None:
    page.wait_for_selector('#save:enabled', timeout=60000)


def pixels(page, side: str) -> np.ndarray:
    """The picture of a side, (H, W, 3), uint8."""
    read = """(selector) => {
        const canvas = document.querySelector(selector);
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        let text = '';
        for (let i = 0; i < data.length; i += 8192) text += String.fromCharCode(...data.subarray(i, i + 8192));
        return [canvas.width, canvas.height, btoa(text)];
    }"""
    width, height, text = page.evaluate(read, f'.{"over" if side == "left" else "under"} canvas')
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)[..., :3]


def expected(model, image: np.ndarray) -> np.ndarray:
    rgb = torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255
    sr = upscale_rgb(model.net, rgb, on_y=model.channels == 1, window=model.window)[0]
    return (sr * 255).round().byte().permute(1, 2, 0).numpy()


def difference(found: np.ndarray, wanted: np.ndarray) -> int:
    assert found.shape == wanted.shape
    return int(np.abs(found.astype(int) - wanted).max())


def test_every_network_gives_the_pixels_of_the_package(opened, site, photo):
    page, (path, image) = opened(), photo
    page.set_input_files('#photo', path)
    for name, model in site[1].items():
        page.select_option('#right', name)
        ready(page)
        assert difference(pixels(page, 'right'), expected(model, image)) <= 1
        assert name in page.locator('#figures').inner_text() and 'WASM' in page.locator('#figures').inner_text()
        assert difference(pixels(page, 'left'), bicubic(image, model.scale)) <= 1


def test_threads_give_the_same_pixels(opened, site, photo, monkeypatch):
    monkeypatch.setattr(Handler, 'isolated', True)
    page, (path, image) = opened(), photo
    page.set_input_files('#photo', path)
    ready(page)
    assert difference(pixels(page, 'right'), expected(site[1]['fsrcnn'], image)) <= 1
    threads = min(page.evaluate('navigator.hardwareConcurrency'), 8)
    assert f'WASM, {threads} thread' in page.locator('#figures').inner_text()


def bicubic(image: np.ndarray, scale: int) -> np.ndarray:
    x = torch.from_numpy(image.copy()).permute(2, 0, 1).double() / 255
    return (imresize(x, scale).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def psnr_on_y(a: np.ndarray, b: np.ndarray, border: int) -> float:
    weights = np.array([65.481, 128.553, 24.966]) / 255
    error = ((a.astype(float) - b) @ weights)[border:-border, border:-border]
    return 10 * np.log10(255**2 / (error**2).mean())


def test_psnr_against_a_ground_truth_and_against_the_shrunken_photo(opened, site, photo):
    page, (path, image) = opened(), photo
    page.set_input_files('#photo', path)
    page.check('#shrink')
    ready(page)
    model, gt = site[1]['fsrcnn'], image[:240, :306]
    lq = imresize_uint8(gt, 0.5)
    sr = expected(model, lq)
    assert difference(pixels(page, 'right'), sr) <= 1
    measured = page.locator('#figures tbody td:nth-child(2)')
    value = measured.nth(1).inner_text()
    assert abs(float(value.split()[0]) - psnr_on_y(sr, gt, 2)) < 0.03
    small = path.with_name('small.png')
    cv2.imwrite(str(small), lq[..., ::-1])
    page.set_input_files('#photo', small)
    page.set_input_files('#truth', path)  # larger by less than the scale, as uncropped ground truths are
    ready(page)
    assert not page.is_checked('#shrink')
    assert measured.nth(1).inner_text() == value
    page.select_option('#left', 'truth')
    ready(page)
    assert measured.first.inner_text() == 'equal'
    page.set_input_files('#truth', small)
    ready(page)
    assert 'the ground truth has 153 × 120 pixels' in page.locator('#figures').inner_text()


def test_the_result_is_saved(opened, photo, site):
    page, (path, image) = opened(), photo
    page.set_input_files('#photo', path)
    ready(page)
    with page.expect_download() as download:
        page.click('#save')
    assert download.value.suggested_filename == 'ein Foto_fsrcnn.png'
    saved = cv2.imread(str(download.value.path()))[..., ::-1]
    assert difference(saved, expected(site[1]['fsrcnn'], image)) <= 1


@pytest.mark.parametrize('network, progress', [('edsr', '[value]:not([value="0"])'), ('imdn', ':not([value])')])
def test_a_long_computation_is_cancelled(opened, tmp_path, network, progress):
    """In tiles, and the whole image at once, which gives the worker no time to listen."""
    path = tmp_path / 'large.png'
    cv2.imwrite(str(path), np.full((1500, 2000, 3), 90, np.uint8))
    page = opened()
    page.select_option('#right', network)
    page.set_input_files('#photo', path)
    page.wait_for_selector(f'#progress{progress}', timeout=60000)
    page.click('#cancel')
    assert page.locator('#status').inner_text() == 'Cancelled.' and page.locator('#running').is_hidden()
    small = tmp_path / 'small.png'
    cv2.imwrite(str(small), np.full((20, 30, 3), 90, np.uint8))
    page.set_input_files('#photo', small)
    ready(page)
    assert pixels(page, 'right').shape[0] in (40, 60)


def test_a_file_that_is_no_image_is_told(opened, tmp_path):
    page, path = opened(), tmp_path / 'x.png'
    path.write_text('no image')
    page.set_input_files('#photo', path)
    page.get_by_text('cannot be read').wait_for()


def test_photos_are_pasted_and_dropped(opened, photo):
    page, (path, image) = opened(), photo
    send = """async ([type, text]) => {
        const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], 'pasted.png', { type: 'image/png' }));
        const options = { bubbles: true, cancelable: true, clipboardData: data, dataTransfer: data };
        const event = type === 'paste' ? new ClipboardEvent(type, options) : new DragEvent(type, options);
        document.querySelector('main').dispatchEvent(event);
    }"""
    for kind in ('paste', 'drop'):
        page.reload()
        page.wait_for_selector('html[data-ready]')
        page.evaluate(send, [kind, base64.b64encode(path.read_bytes()).decode()])
        ready(page)
        assert pixels(page, 'right').shape == (2 * image.shape[0], 2 * image.shape[1], 3)


def test_everything_is_done_by_keyboard(opened, photo):
    page, (path, _) = opened(), photo
    page.set_input_files('#photo', path)
    ready(page)
    page.locator('#theme').focus()
    reached = []
    for _ in range(20):
        page.keyboard.press('Tab')
        reached.append(page.evaluate('document.activeElement.id || document.activeElement.className'))
    for wanted in ('photo', 'truth', 'shrink', 'left', 'right', 'in', 'fit', 'save', 'stage'):
        assert any(wanted in one for one in reached), wanted
    stage = page.locator('.stage')
    stage.focus()
    whole = stage.screenshot()
    page.keyboard.press('+')
    page.keyboard.press('ArrowRight')
    assert stage.screenshot() != whole
    page.keyboard.press('0')
    assert stage.screenshot() == whole
    page.locator('.range input').focus()
    page.keyboard.press('ArrowRight')
    assert page.locator('.range input').input_value() == '51'
    assert page.evaluate('[...document.querySelectorAll("button, input, select")].every((e) => '
                         'e.labels?.length || e.ariaLabel || e.textContent.trim())')  # fmt: skip


@pytest.mark.parametrize('width', [320, 390])
def test_a_phone_does_not_scroll_sideways(opened, photo, width):
    page, (path, _) = opened(width, has_touch=True), photo
    page.set_input_files('#photo', path)
    ready(page)
    assert page.evaluate('document.documentElement.scrollWidth') <= width


def test_the_slider_is_the_reports(site):
    for name in web.SHARED:
        assert (site[0] / name).read_text() == (web.REPORT / name).read_text()


def test_another_folder_is_left_alone(tmp_path, capsys):
    card = make_model(tmp_path, 'FSRCNN', 1, 2)
    assert main([str(card.weights), '--web', str(tmp_path)]) == 2
    assert 'holds other files' in capsys.readouterr().err and card.weights.is_file()


@pytest.mark.parametrize('fault, told', [('missing', '--ort FOLDER'), ('other', 'another file'), ('fails', 'E404')])
def test_a_page_without_its_runtime_is_no_page(tmp_path, monkeypatch, capsys, fault, told):
    def run(command, **options):
        if fault == 'missing':
            raise FileNotFoundError
        if fault == 'fails':
            raise subprocess.CalledProcessError(1, command, stderr='npm error E404')
        (options['cwd'] / 'onnxruntime-web.tgz').write_bytes(b'other')

    monkeypatch.setattr(web.subprocess, 'run', run)
    card = make_model(tmp_path, 'FSRCNN', 1, 2)
    assert main([str(card.weights), '--web', str(tmp_path / 'page')]) == 2
    assert told in capsys.readouterr().err
    assert {path.suffix for path in tmp_path.iterdir()} == {'.pth', '.json'}
