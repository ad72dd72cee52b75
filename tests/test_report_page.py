"""The report in a browser, opened from disk: headless Chromium, skipped where there is none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pisr_plugin.cli.report import main
from tests.report_sample import EVIL, make_results

sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
CHROMIUM = os.environ.get('CHROMIUM') or next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium found; install one or name it in CHROMIUM')
# Without a sandbox, which root and containers cannot have; without calls home.
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update']


@pytest.fixture(scope='module')
def report(tmp_path_factory) -> Path:
    folder = make_results(tmp_path_factory.mktemp('page'))
    assert main([str(folder), '--count', '2']) == 0
    return folder / 'report.html'


@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, report):
    """Opens the page; at the end nothing may have failed in the console and nothing been asked of a network."""
    problems, contexts = [], []

    def open_page(width: int = 1200, **options):
        viewport = {'width': width, 'height': 800}
        contexts.append(browser.new_context(viewport=viewport, reduced_motion='reduce', **options))
        page = contexts[-1].new_page()
        page.on('console', lambda message: problems.append(message.text))
        page.on('pageerror', lambda error: problems.append(str(error)))
        page.on('request', lambda request: request.url.startswith('http') and problems.append(request.url))
        page.goto(report.as_uri())
        page.wait_for_selector('#viewer-crops[data-drawn]')
        drawn(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def drawn(page, term: str = 'l_pix'):
    """The plot of a term once its curves are those that are chosen."""
    page.wait_for_selector(f'[data-term={term}] .plot[aria-busy=false]')
    return page.locator(f'[data-term={term}] .plot')


def pixels(page, selector: str) -> bytes:
    return page.locator(selector).first.screenshot()


def test_the_slider_moves_and_changes_the_picture(opened):
    page = opened()
    slider = page.locator('#viewer-compare input[type=range]')
    stage = '#viewer-compare .stage'
    before = pixels(page, stage)
    slider.fill('10')
    assert pixels(page, stage) != before
    box = page.locator(stage).bounding_box()
    page.mouse.click(box['x'] + 0.75 * box['width'], box['y'] + box['height'] - 5)
    assert abs(int(slider.input_value()) - 75) <= 1
    slider.focus()
    page.keyboard.press('ArrowRight')
    assert abs(int(slider.input_value()) - 76) <= 1


def test_any_two_pictures_of_any_image_can_be_compared(opened):
    page = opened()
    over = page.locator('#viewer-compare .over')
    assert over.get_attribute('alt').endswith('Baseline')
    page.select_option('#viewer-before', label='ground truth')
    assert over.get_attribute('alt').endswith('ground truth')
    page.select_option('#viewer-image', index=1)
    assert over.get_attribute('alt') == 'Set14 · zebra, ground truth'  # the choice stays
    assert page.locator('#viewer-after option').count() == 5
    assert page.evaluate('[...document.querySelectorAll(".stage img")].every((i) => i.complete && i.naturalWidth)')


def test_the_crop_moves_by_keyboard_and_mouse(opened):
    page = opened()
    frame = page.locator('.frame')
    first = page.evaluate('document.querySelector(".crops canvas").toDataURL()')
    frame.focus()
    left = frame.evaluate('(e) => parseFloat(e.style.left)')
    key = 'ArrowLeft' if left > 20 else 'ArrowRight'
    page.keyboard.press(key)
    assert (frame.evaluate('(e) => parseFloat(e.style.left)') < left) == (key == 'ArrowLeft')
    assert page.evaluate('document.querySelector(".crops canvas").toDataURL()') != first
    box = frame.bounding_box()
    page.mouse.move(box['x'] + 20, box['y'] + 20)
    page.mouse.down()
    page.mouse.move(0, 0)
    page.mouse.up()
    assert frame.evaluate('(e) => [e.style.left, e.style.top]') == ['0%', '0%']


def column(page, table: str, index: int) -> list[str]:
    cells = page.locator(f'{table} tbody tr > :nth-child({index})')
    return [cell.get_attribute('data-value') for cell in cells.all()]


def test_tables_sort_both_ways_by_mouse_and_keyboard(opened):
    page = opened()
    table = '.metric-panel[data-metric=psnr] table'
    head = page.locator(f'{table} thead th').nth(1)
    assert head.get_attribute('aria-sort') is None
    head.locator('button').click()
    assert head.get_attribute('aria-sort') == 'descending'  # the best first
    assert [float(value) for value in column(page, table, 2)] == [30.75, 30.5, 30.4, 30.0]
    head.locator('button').focus()
    page.keyboard.press('Enter')
    assert head.get_attribute('aria-sort') == 'ascending'
    assert [float(value) for value in column(page, table, 2)] == [30.0, 30.4, 30.5, 30.75]
    for _ in range(2):  # rows without a value stay last either way
        page.locator(f'{table} thead button', has_text='Parameters').click()
        assert column(page, table, 5)[-1] == ''
    page.locator(f'{table} thead button', has_text='Row').click()
    assert column(page, table, 1)[1:] == ['Baseline', 'Bicubic', 'Teacher']


def test_metrics_switch_and_every_image_has_its_figures(opened):
    page = opened()
    page.get_by_role('button', name='SSIM').click()
    assert page.locator('.metric-panel[data-metric=ssim]').is_visible()
    assert not page.locator('.metric-panel[data-metric=psnr]').is_visible()
    assert page.locator('#images-panel tbody tr').count() == 2
    page.select_option('#images-set', 'Set14')
    page.select_option('#images-metric', 'ssim')
    assert page.locator('#images-panel tbody tr').inner_text().split() == [
        'zebra', '0.9000', '0.9050', '0.9075', '0.9040'
    ]  # fmt: skip


def test_titles_show_as_they_are_written(opened):
    page = opened()
    assert page.locator('h1').inner_text() == 'A sample of <results>'
    assert page.locator('tbody th', has_text='Laplace').first.get_attribute('data-value') == EVIL
    assert EVIL in page.locator('#viewer-crops').inner_text()


def test_the_theme_follows_the_system_and_the_button(opened):
    page = opened(color_scheme='dark')
    background = 'getComputedStyle(document.body).backgroundColor'
    dark = page.evaluate(background)
    curves = drawn(page).screenshot()
    button = page.locator('#theme')
    button.click()
    assert button.inner_text() == 'Theme: light' and page.evaluate(background) != dark
    assert drawn(page).screenshot() != curves
    page.emulate_media(color_scheme='light')
    page.keyboard.press('Enter')
    assert button.inner_text() == 'Theme: dark' and page.evaluate(background) == dark
    page.reload()
    assert page.evaluate(background) == dark  # remembered


def test_curves_are_chosen_and_read_by_keyboard(opened):
    page = opened()
    plot = drawn(page)
    runs, terms = page.locator('#curve-runs input'), page.locator('.plot-box[data-kind=losses] .chips input')
    assert (runs.count(), terms.count()) == (3, 2)
    assert plot.get_attribute('data-series') == '2'
    terms.last.focus()
    page.keyboard.press('Space')
    assert plot.is_visible() and not page.locator('[data-term=l_distill_body]').is_visible()
    runs.last.uncheck(force=True)
    assert drawn(page).get_attribute('data-series') == '1'
    plot.focus()
    page.keyboard.press('End')
    readout = page.locator('[data-term=l_pix] .readout')
    assert readout.inner_text().startswith('iteration 200')
    page.keyboard.press('Home')
    assert readout.inner_text().startswith('iteration 20\n')
    for run in runs.all():
        run.uncheck(force=True)
    assert 'Choose a run' in plot.inner_text()


def test_every_term_has_its_own_scale(opened):
    """On one log axis a weak term looks flat, and one that is not above 0 is missing."""
    page = opened()
    captions = [
        drawn(page, term).locator('..').locator('figcaption').inner_text() for term in ('l_pix', 'l_distill_body')
    ]
    assert captions[0].endswith('0.05000 → 0.005000') and captions[1].endswith('-2.00e-4 → -0.002000, linear scale')


def test_error_maps_take_the_place_of_the_pictures(opened):
    page = opened()
    picture = page.locator('#viewer-compare .over')
    before = picture.get_attribute('src')
    page.locator('#viewer-errors').check()
    page.wait_for_selector('#viewer-crops[data-drawn=errors]')
    assert picture.get_attribute('src') != before and picture.get_attribute('alt').endswith('error map')
    values = """(name) => {
        const canvas = document.querySelector(`#viewer-crops canvas[data-name="${name}"]`);
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        const sum = data.filter((_, i) => i % 4 === 0).reduce((a, b) => a + b, 0);
        return [sum, data[0] === data[1] && data[1] === data[2]];
    }"""
    truth, bicubic, better = (page.evaluate(values, name) for name in ('', 'bicubic', 'laplace'))
    assert truth == [0, True] and bicubic[0] > 1.5 * better[0] > 0 and bicubic[1]
    page.locator('#viewer-errors').uncheck()
    page.wait_for_selector('#viewer-crops[data-drawn=pictures]')
    assert picture.get_attribute('src') == before


def test_roles_are_those_that_elements_may_have(opened):
    """A figure with a caption has no other role, and a list holds list items."""
    page = opened()
    assert page.locator('figure[role]').count() == 0
    assert page.evaluate(
        '[...document.querySelectorAll("ul")].every((l) => [...l.children].every((c) => c.tagName === "LI"))'
    )
    assert page.locator('#viewer-crops > li > figure').count() == 5


def test_curves_are_read_and_enlarged_by_mouse(opened):
    page = opened()
    plot = drawn(page)
    readout = page.locator('[data-term=l_pix] .readout')
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box['x'] + 0.5 * box['width'], box['y'] + 100)
    page.wait_for_function('(e) => e.textContent.startsWith("iteration")', arg=readout.element_handle())
    assert '0.0' in readout.inner_text()
    page.mouse.move(0, 0)
    page.wait_for_function('(e) => e.textContent === ""', arg=readout.element_handle())
    whole = plot.screenshot()
    page.mouse.move(box['x'] + 0.4 * box['width'], box['y'] + 40)
    page.mouse.down()
    page.mouse.move(box['x'] + 0.8 * box['width'], box['y'] + 200, steps=4)
    page.mouse.up()
    page.mouse.move(0, 0)
    page.wait_for_timeout(300)
    assert plot.screenshot() != whole
    plot.press('Escape')
    page.locator('#theme').focus()
    page.wait_for_timeout(300)
    assert plot.screenshot() == whole


def test_curves_are_read_by_touch_and_let_the_page_scroll(opened):
    page = opened(width=390, has_touch=True, is_mobile=True)
    drawn(page).tap()
    readout = page.locator('[data-term=l_pix] .readout')
    page.wait_for_function('(e) => e.textContent.startsWith("iteration")', arg=readout.element_handle())
    on_top = """(host) => {
        const box = host.getBoundingClientRect();
        const at = [box.x + box.width / 2, box.y + 100];
        let top = document.elementFromPoint(...at);
        while (top.shadowRoot?.elementFromPoint(...at)) top = top.shadowRoot.elementFromPoint(...at);
        return [top.className, getComputedStyle(top).touchAction];
    }"""
    name, action = drawn(page).evaluate(on_top)
    assert 'bk-' in name and action == 'auto'  # dragging there moves the page


@pytest.mark.parametrize('width', [320, 390, 768])
def test_narrow_screens_do_not_scroll_sideways(opened, width):
    page = opened(width=width, has_touch=True)
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    page.locator('details').last.locator('summary').click()
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    shown, hidden = ('narrow', 'wide') if width < 760 else ('wide', 'narrow')
    charts = page.locator('.chart:has(.narrow)').all()
    assert len(charts) == 2
    for chart in charts:
        assert chart.locator(f'.{shown}').is_visible() and not chart.locator(f'.{hidden}').is_visible()


def test_everything_is_reached_by_tab(opened):
    page = opened()
    reached = set()
    for _ in range(80):
        page.keyboard.press('Tab')
        reached.add(page.evaluate('(document.activeElement.id || document.activeElement.className || "").toString()'))
    for wanted in ('theme', 'viewer-image', 'viewer-before', 'viewer-after', 'frame', 'plot', 'images-set'):
        assert wanted in reached
    assert page.evaluate('[...document.querySelectorAll("button, input, select, img")].every((e) => '
                         'e.tagName === "IMG" ? e.alt : e.labels?.length || e.textContent.trim())')  # fmt: skip
