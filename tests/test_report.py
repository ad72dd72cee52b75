"""The report's parts: reading, choosing, computing, and what is said when something is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from bokeh.resources import Resources
from matplotlib.text import Text

from pisr_plugin.cli.report import main
from pisr_plugin.data.storage.image_files import read_rgb
from pisr_plugin.evaluation.results import read_evaluation
from pisr_plugin.inference import checkpoint
from pisr_plugin.report import plotting, published
from pisr_plugin.report.images import choose
from pisr_plugin.report.page import large_text, render, signed_text
from pisr_plugin.report.palette import PAPER
from pisr_plugin.report.section import gather
from pisr_plugin.report.sections.compact_feature import CompactFeature, spectrum
from pisr_plugin.report.sections.cost import NetworkPoint, trade_off
from pisr_plugin.report.sections.curves import MOST_POINTS, all_curves, read_log
from pisr_plugin.report.sections.how import command, commands
from pisr_plugin.report.sections.training_cost import TrainedPoint, over_time
from pisr_plugin.utils.errors import DataError, OptionsError
from tests.report_sample import EVIL, TEACHER, make_results


@pytest.fixture(scope='module')
def results(tmp_path_factory) -> Path:
    return make_results(tmp_path_factory.mktemp('report'))


@pytest.fixture
def own_results(results, tmp_path) -> Path:
    """A copy of the results that a test may damage."""
    shutil.copytree(results.parents[1], tmp_path, dirs_exist_ok=True)
    return tmp_path / 'results/sample'


def change(folder: Path, edit) -> None:
    path = folder / 'evaluation.json'
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_reads_the_folder_or_the_file(results):
    assert read_evaluation(results).rows == read_evaluation(results / 'evaluation.json').rows
    assert read_evaluation(results).sets == ['Set5', 'Set14']


@pytest.mark.parametrize(
    ('edit', 'message'),
    [
        (lambda c: c.update(kind='table'), "kind: unknown .found 'table'.. Expected 'evaluation'"),
        (lambda c: c.update(version=9), r'version: unknown \(found 9\). Expected 1'),
        (lambda c: c.update(rows=[]), 'rows: empty'),
        (
            lambda c: c.update(against='best'),
            r"against: no such row \(found 'best'\). Expected one of 'bicubic, ",
        ),
        (lambda c: c['metrics'].update(psnr='up'), r"metrics.psnr: unknown \(found 'up'\). Expected higher or lower"),
        (lambda c: c['rows'][1].pop('sets'), r'rows\[1\].sets: wrong type \(found None\). Expected a mapping'),
        (
            lambda c: c['rows'][1]['sets']['Set5']['mean'].update(psnr='high'),
            r'rows\[1\].sets.Set5.mean.psnr: not a finite number',
        ),
        (lambda c: c['rows'][1].update(name='bicubic'), 'two rows have the same name'),
        (lambda c: c['rows'][1]['sets']['Set5']['mean'].update(psnr=float('nan')), r'mean.psnr: not a finite number'),
        (
            lambda c: c['rows'][1]['sets']['Set5']['images']['baby'].update(picture='../../x.png'),
            'outside of the folder',
        ),
        (lambda c: c['rows'][2]['runs'][0].update(folder='/etc'), 'an absolute path'),
        (lambda c: c.update(scale=0), 'scale: out of range'),
        (lambda c: c['rows'][1].update(title='a\0b'), 'control characters'),
        (lambda c: c['rows'][1].update(parameters=10**30), 'too large'),
        (lambda c: c['rows'][1].update(parameters=-1), 'negative'),
    ],
)
def test_says_where_a_file_is_wrong(own_results, edit, message):
    change(own_results, edit)
    with pytest.raises(DataError, match=message):
        read_evaluation(own_results)


def test_a_missing_or_broken_file_is_one_message(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert 'evaluation.json: No such file' in capsys.readouterr().err
    (tmp_path / 'evaluation.json').write_text('{')
    assert main([str(tmp_path)]) == 2
    assert 'is not JSON' in capsys.readouterr().err


def test_infinite_psnr_is_left_out(own_results):
    change(own_results, lambda c: c['rows'][0]['sets']['Set5']['images']['baby'].update(psnr=float('inf')))
    image = read_evaluation(own_results).rows[0].sets['Set5'].images['baby']
    assert set(image.values) == {'ssim'} and image.picture


def test_images_come_from_all_sets_in_turn_and_compare_reference_with_best(results):
    shown = choose(read_evaluation(results), 2)
    assert [entry.set for entry in shown] == ['Set5', 'Set14']
    assert (shown[0].before, shown[0].after) == ('baseline', 'laplace')
    assert list(shown[0].pictures) == ['', 'bicubic', 'baseline', 'laplace', 'teacher']


def test_the_crop_lies_where_the_gain_is(own_results):
    evaluation = read_evaluation(own_results)
    truth = read_rgb(evaluation.ground_truth['Set5']['baby'])
    path = evaluation.row('laplace').sets['Set5'].images['baby'].picture
    better = read_rgb(evaluation.row('baseline').sets['Set5'].images['baby'].picture).copy()
    better[40:88, 60:108] = truth[40:88, 60:108]
    cv2.imwrite(str(path), better[..., ::-1])
    (shown,) = choose(evaluation, 1, ['baby'])
    x, y, size = shown.crop
    assert size == 48 and abs(x - 60) <= 6 and abs(y - 40) <= 6


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--images', 'babe'], "Did you mean 'baby'?"),
        (['--crop', '100', '0', '96'], 'outside of'),
    ],
)
def test_what_cannot_be_shown_is_refused(results, tmp_path, capsys, flags, message):
    assert main([str(results), '-o', str(tmp_path / 'x.html'), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'x.html').exists()


def test_pictures_of_another_size_are_refused(own_results):
    cv2.imwrite(str(own_results / 'pictures/laplace/Set5/baby.png'), np.zeros((50, 50, 3), np.uint8))
    with pytest.raises(DataError, match='baby: the pictures differ in size'):
        choose(read_evaluation(own_results), 1, ['Set5/baby'])


def test_large_images_are_cut_around_the_crop(results, monkeypatch):
    monkeypatch.setattr('pisr_plugin.report.images.LARGEST', 64)
    whole = read_evaluation(results)
    (shown,) = choose(whole, 1, ['bird'], crop=(70, 40, 30))
    x, y, size = shown.crop
    assert shown.cut and shown.pictures[''].shape == (64, 64, 3)
    crop = shown.pictures[''][y : y + size, x : x + size]
    assert np.array_equal(crop, shown.truth[40:70, 70:100])


def test_a_log_survives_a_kill_and_a_resume(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    lines = [{'iter': 1, 'l_pix': 3.0}, {'iter': 2, 'l_pix': 2.0}, {'iter': 2, 'l_pix': 1.0, 'lr': 0.1}]
    lines.append({'iter': 2, 'dataset': 'Set5', 'psnr': 30.0})
    path.write_text('\n'.join(map(json.dumps, lines)) + '\n{"iter": 3, "l_')
    assert read_log(path) == ({'l_pix': ([1, 2], [3.0, 1.0])}, {'Set5 psnr': ([2], [30.0])})


def test_long_curves_keep_their_mean(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text(''.join(json.dumps({'iter': i + 1, 'l_pix': float(i)}) + '\n' for i in range(3 * MOST_POINTS)))
    iterations, values = read_log(path)[0]['l_pix']
    assert len(values) == MOST_POINTS and iterations[-1] == 3 * MOST_POINTS
    assert np.mean(values) == pytest.approx((3 * MOST_POINTS - 1) / 2)


def test_seeds_of_a_grid_have_stages_of_their_own(own_results):
    folder = own_results.parents[1] / 'experiments'
    shutil.copytree(folder / 'laplace/student', folder / 'laplace/again')

    def edit(content):
        teacher, student = content['rows'][2]['runs']
        student['stage'] = 'student_0a1b2c'
        again = {**student, 'seed': 1, 'stage': 'student_3d4e5f', 'folder': student['folder'][:-7] + 'again'}
        content['rows'][2]['runs'] = [teacher, student, again]

    change(own_results, edit)
    curves = all_curves(read_evaluation(own_results))[:3]
    assert [curve.early for curve in curves] == [True, False, False]
    assert [curve.label.removeprefix(EVIL) for curve in curves] == [', teacher, seed 0', ', seed 0', ', seed 1']


def test_published_figures_in_several_metrics_count_with_their_first(own_results):
    change(own_results, lambda c: c['rows'][2].update(published={'Set5': [37.33, 0.9587]}))
    assert read_evaluation(own_results).row('laplace').published_values('Set5')[0] == 37.33


def test_a_package_that_is_missing_is_named(results, monkeypatch, capsys):
    monkeypatch.setattr('pisr_plugin.cli.report.NEEDED', ('json', 'no_such_package'))
    assert main([str(results)]) == 2
    assert 'pip install no_such_package' in capsys.readouterr().err


def test_a_run_that_rows_share_is_drawn_once(own_results):
    change(own_results, lambda c: c['rows'][1].update(runs=c['rows'][2]['runs']))
    curves = all_curves(read_evaluation(own_results))
    assert len(curves) == 3 and [curve.early for curve in curves] == [True, False, False]


def test_a_wave_peaks_at_its_frequency_whatever_the_pixel_pitch():
    columns = np.arange(128)
    for pitch, cycles in ((1.0, 0.25), (0.5, 0.125)):
        plane = np.tile(np.sin(2 * np.pi * cycles * columns), (64, 1))
        frequencies, magnitudes = spectrum(CompactFeature('lr', '', plane, plane, pitch))
        assert frequencies[magnitudes.argmax()] == pytest.approx(0.25, abs=0.01)


def test_views_are_those_of_the_trained_teachers(results):
    content = gather(read_evaluation(results), images=['baby'])
    features, maps = content.sections['compact_feature'].features, content.sections['scale_map'].maps
    assert [feature.kind for feature in features] == ['lr', 'imitation', 'free', 'hr']
    net = build_network(TEACHER)
    checkpoint.load_network(net, results.parents[1] / 'experiments/laplace/teacher/models/net_t_latest.pth')
    lr, compact, _, hr = features
    with torch.no_grad():
        expected = net.encoder(torch.from_numpy(hr.plane)[None, None])[0, 0].numpy()
    assert np.allclose(compact.plane, expected, atol=1e-6) and compact.plane.shape == lr.plane.shape
    assert [entry.values.shape for entry in maps] == [lr.plane.shape]
    assert maps[0].title == EVIL and maps[0].values.min() > 0


def test_what_is_missing_is_left_out_with_a_sentence(own_results, capsys):
    shutil.rmtree(own_results / 'pictures')
    shutil.rmtree(own_results.parents[1] / 'experiments')
    change(own_results, lambda c: [row.update(multi_adds=None) for row in c['rows']])
    assert main([str(own_results)]) == 0
    page = (own_results / 'report.html').read_text()
    for sentence in (
        'No pictures were saved',
        'None of the runs left a log',
        'No student has PSNR',
        'no picture to show it on',
        'pictures that the results name do not exist',
    ):
        assert sentence in page
    assert 'Bokeh' not in page
    assert 'Left out: No pictures' in capsys.readouterr().out


@pytest.mark.parametrize('damage', ['net_e_latest.pth', 'net_g_latest.pth'])
def test_a_damaged_checkpoint_costs_one_part_only(own_results, damage):
    path = own_results.parents[1] / 'experiments/laplace/student/models' / damage
    path.write_bytes(b'nothing')
    content = gather(read_evaluation(own_results), 1)
    assert damage in content.notes['scale_map']
    assert {'compact_feature', 'curves'} <= content.sections.keys()


def test_the_page_is_whole_and_escaped(results, tmp_path):
    page = render(gather(read_evaluation(results), 1))
    library = Resources(mode='inline', components=['bokeh']).js_raw[0]
    assert page.count(library) == 1
    page = page.replace(library, '')  # names addresses, which the browser test sees that nobody asks
    assert EVIL not in page and '<b>"Laplace"' not in page
    assert page.count('<script') == 2 and 'alert(1)</script>' not in page
    for fragment in ('src="http', 'href="http', '@import', str(results.parents[1])):
        assert fragment not in page
    assert page.count('id="') == len(set(part.split('"')[0] for part in page.split('id="')[1:]))


def test_figures_for_papers_are_repeatable(results, tmp_path, capsys):
    for name in ('a', 'b'):
        flags = ['-o', str(tmp_path / 'x.html'), '--figures', str(tmp_path / name), '--count', '1']
        assert main([str(results), *flags]) == 0
    names = sorted(path.name for path in (tmp_path / 'a').iterdir())
    stems = ['fig3_compact', 'fig4_trade_off', 'fig5_Set5_bird', 'scale_map', 'training_cost']
    assert sorted({name.rpartition('.')[0] for name in names}) in (stems, [s.replace('bird', 'baby') for s in stems])
    for name in names:
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()


def test_names_in_the_trade_off_do_not_cover_each_other():
    own = [NetworkPoint(f'row {i}', 13e3, 6e9, 37.2 + i / 50, i) for i in range(4)]
    figure = trade_off(own, published.points(2), 'Set5', PAPER)
    texts = figure.axes[0].texts
    assert len(texts) == len(own) + len(published.points(2))
    figure.draw_without_rendering()
    boxes = [plotting.Text.get_window_extent(text) for text in texts]
    covering = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.shrunk(0.9, 0.9).overlaps(b)]
    assert covering == []


def test_of_many_networks_of_equal_cost_the_best_and_the_worst_are_named():
    own = [NetworkPoint(f'row {i}', 13e3, 6e9, 37.2 + i / 50, i) for i in range(6)]
    own.append(NetworkPoint('larger', 99e3, 9e9, 37.25, 6))
    figure = trade_off(own, [], 'Set5', PAPER)
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ['larger', 'row 0', 'row 5']


def test_published_points_are_those_of_the_table():
    point = next(point for point in published.points(3) if point.name == 'FSRCNN (PISR)')
    assert (point.parameters, point.multi_adds, point.psnr['Urban100']) == (13e3, 5e9, 26.67)
    assert published.points(8) == []


def test_commands_are_quoted_and_told_once(results):
    told = dict(commands(read_evaluation(results)))
    assert told[EVIL] == [
        "pisr-train -opt options/pisr_fsrcnn_x2.yml --force_yml name=x 'train:distill_opt={a: {b: c}}'"
    ]


def test_a_recipe_of_the_package_is_told_by_its_name(own_results):
    run = read_evaluation(own_results).row('laplace').runs[0]
    (run.folder / 'options.yml').write_text(
        '# pisr_plugin 0.1.0, fast/pisr_fsrcnn_x2 name=x\n# stage teacher\nscale: 2\n'
    )
    assert command(run) == 'pisr-train -opt fast/pisr_fsrcnn_x2 --force_yml name=x'


def test_without_a_header_the_resolved_options_are_named(own_results, monkeypatch):
    monkeypatch.chdir(own_results.parents[1])
    run = read_evaluation(own_results).row('laplace').runs[0]
    (run.folder / 'options.yml').write_text('scale: 2\n')
    assert command(run) == 'pisr-train -opt experiments/laplace/teacher/options.yml'


def test_numbers_read_as_in_papers():
    assert [large_text(value) for value in (None, 12, 2.87e9, 17974.3e9)] == ['', '12', '2.87 G', '18 T']
    assert signed_text(-0.104, 'psnr') == '\N{MINUS SIGN}0.10' and signed_text(0.00012, 'ssim') == '+0.0001'


def test_wrong_images_raise_the_plugins_error(results):
    with pytest.raises(OptionsError, match='no pictures of it were saved'):
        choose(read_evaluation(results), 1, ['nowhere'])


def test_a_chart_of_one_cost_is_left_out(own_results):
    """One dot compares nothing; Set14 at x2 alone would still have the published networks."""
    change(own_results, lambda c: c.update(scale=8))
    assert 'nothing to compare' in gather(read_evaluation(own_results)).notes['cost']


def test_training_time_is_drawn_with_and_without_a_teacher(own_results):
    change(own_results, lambda c: [row.update(training_seconds=None) for row in c['rows']])
    assert 'known training time' in gather(read_evaluation(own_results)).notes['training_cost']
    change(own_results, lambda c: [row.update(training_seconds=90.0 * i) for i, row in enumerate(c['rows'])])
    report = gather(read_evaluation(own_results))
    section = report.sections['training_cost']
    students = [row for row in report.evaluation.rows if row.role == 'student']
    assert [(p.name, p.seconds) for p in section.points] == [(row.title, row.training_seconds) for row in students]
    assert {p.name for p in section.points if p.taught} == {row.title for row in students if row.name == 'laplace'}
    (axis,) = section.figures()['training_cost'].axes
    lines = {line.get_color(): line.get_xdata().tolist() for line in axis.lines if len(line.get_xdata())}
    assert sorted(x for xs in lines.values() for x in xs) == sorted(p.seconds for p in section.points)
    assert 'CPU seconds of the iterations' in render(report)


def test_of_many_rows_the_chart_names_those_with_several_seeds():
    points = [TrainedPoint(f'row {i}', 2.0**i, 36 + i / 10, 0.01, 3 if i < 4 else 1, i > 6) for i in range(1, 10)]
    for count, named in ((9, 3), (8, 8)):
        (axis,) = over_time(points[:count], 'Set5', PAPER).axes
        assert {text.get_text() for text in axis.texts} == {f'row {i}' for i in range(1, named + 1)}


def test_names_in_the_chart_do_not_cover_the_curve():
    points = [TrainedPoint(f'a row {i}', 2.0**i, 36 + i / 1000, 0.0001, 3, False) for i in range(1, 7)]
    (axis,) = (figure := over_time(points, 'Set5', PAPER)).axes
    corners = axis.transData.transform([(p.seconds, p.psnr) for p in points])
    curve = np.concatenate([np.linspace(*ends, 50) for ends in zip(corners, corners[1:])])
    for text in axis.texts:
        box = Text.get_window_extent(text, figure.canvas.get_renderer())
        assert not any(box.contains(x, y) for x, y in curve)


def test_the_headline_names_rows_below_bicubic(own_results):
    assert 'Below bicubic' not in render(gather(read_evaluation(own_results), 0))
    change(own_results, lambda c: c['rows'][1]['sets']['Set14']['mean'].update(psnr=29.5))
    page = render(gather(read_evaluation(own_results), 0))
    headline = page[page.index('<h1>') : page.index('id="results"')]
    below = headline[headline.index('Below bicubic') :]
    assert 'PSNR' in below and 'Baseline on Set14 (\N{MINUS SIGN}0.50)' in below and 'Set5' not in below


def test_a_lower_metric_counts_the_other_way(own_results):
    def edit(content):
        content['metrics'] = {'ssim': 'lower'}
        content['rows'][1]['sets']['Set5']['mean']['ssim'] = 0.95

    change(own_results, edit)
    evaluation = read_evaluation(own_results)
    summary = gather(evaluation, 0).sections['summary']
    assert ('baseline', 'Set5') in [(row.name, name) for row, name, _ in summary.below]
    assert dict(summary.best())['Set14'].name == 'baseline'
