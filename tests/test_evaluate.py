"""Testing and drawing say what the files hold."""

import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network

from pisr_plugin.cli.picture import main as picture
from pisr_plugin.cli.test import main as run_test
from pisr_plugin.cli.train import main as train
from pisr_plugin.evaluation.measure import measure, measure_images
from pisr_plugin.report.images import largest_gain
from pisr_plugin.utils.resize import imresize


@pytest.fixture
def trained(workspace):
    recipe = str(workspace.recipe(train={'total_iter': 2}))
    assert train(['-opt', recipe]) == 0
    return recipe


def read_evaluation(folder='results/run'):
    return json.loads((Path(folder) / 'evaluation.json').read_text())


def luminance(path):
    """BT.601 luminance of an image file, in 0..255 and unrounded."""
    bgr = cv2.imread(str(path)).astype(np.float64)
    return 16 + (bgr @ [24.966, 128.553, 65.481]) / 255


def psnr(a, b, border=2):
    error = np.round(np.clip(a, 0, 255)) - np.round(b)
    return 10 * np.log10(255**2 / np.mean(error[border:-border, border:-border] ** 2))


def test_bicubic_and_every_stage_stand_in_one_table(trained, capsys):
    assert run_test(['-opt', trained]) == 0
    printed = capsys.readouterr().out
    assert [line.split('|')[1].strip() for line in printed.splitlines() if line.startswith('|')][2:] == [
        'bicubic',
        'teacher',
        'student',
    ]
    assert '2 pixels left out' in printed and 'protocol basicsr' in printed
    rows = {row['name']: row for row in read_evaluation()['rows']}

    pairs = [
        (luminance(f'datasets/test/LR_bicubic/X2/{i}.png'), luminance(f'datasets/test/HR/{i}.png')) for i in range(2)
    ]
    bicubic = [psnr(imresize(torch.from_numpy(lq)[None] / 255, 2)[0].numpy() * 255, gt) for lq, gt in pairs]
    assert rows['bicubic']['sets']['test']['mean']['psnr'] == pytest.approx(np.mean(bicubic), abs=0.01)

    net = build_network({'type': 'FSRCNN', 'd': 8, 's': 4, 'm': 1, 'upscale': 2})
    net.load_state_dict(torch.load('experiments/run/student/models/net_g_latest.pth', weights_only=True)['params'])
    with torch.no_grad():
        student = [
            psnr(net(torch.from_numpy(lq).float()[None, None] / 255)[0, 0].numpy() * 255, gt) for lq, gt in pairs
        ]
    assert rows['student']['sets']['test']['mean']['psnr'] == pytest.approx(np.mean(student), abs=0.01)


def test_a_model_is_measured_by_its_name_or_folder(trained, capsys):
    sets = ['--sets', 'test=datasets/test/HR']
    assert run_test(['-opt', trained, '--stage', 'student', *sets]) == 0
    expected = read_evaluation()['rows'][1]['sets']['test']['mean']
    assert run_test(['--model', 'experiments/run', *sets]) == 0
    record = json.loads(Path('results/net_g_latest/evaluation.json').read_text())
    assert record['rows'][1]['sets']['test']['mean'] == expected
    assert run_test(['--model', 'fsrcnn_x2', *sets]) == 0
    assert '| fsrcnn_x2 | 12,644 |' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'fragment'),
    [
        ([], 'Expected -opt RECIPE, or --model MODEL with --sets'),
        (['--model', 'fsrcnn_x2'], 'Expected --sets NAME=FOLDER'),
        (['--model', 'fsrcnn_x2', '--sets', 'toy=.', '-opt', 'run.yml', '--stage', 'a'], 'found -opt, --stage'),
        (['--model', 'fsrcn_x2', '--sets', 'toy=.'], "Did you mean 'fsrcnn_x2'?"),
    ],
)
def test_mistakes_in_naming_what_to_test(workspace, capsys, arguments, fragment):
    assert run_test(arguments) == 2
    assert fragment in capsys.readouterr().err


def test_bicubic_alone_needs_hr_files_alone(workspace, capsys):
    recipe = str(workspace.recipe('baseline'))
    rows = {}
    for protocol in ('y_plane', 'rgb8'):
        run = ['-opt', recipe, '--bicubic', '--sets', 'toy=datasets/test/HR', '--protocol', protocol]
        assert run_test(run) == 0
        assert f'protocol {protocol}' in capsys.readouterr().out
        record = read_evaluation()
        assert [row['role'] for row in record['rows']] == ['bicubic'] and record['protocol']['name'] == protocol
        rows[protocol] = record['rows'][0]['sets']['toy']['mean']['psnr']
    assert 0 < abs(rows['y_plane'] - rows['rgb8']) < 1
    assert run_test([*run[:3], '--sets', 'toy']) == 2
    assert 'Expected a name and a folder of HR images' in capsys.readouterr().err


def test_the_border_that_is_named_is_that_of_each_metric(workspace, capsys):
    recipe = str(workspace.recipe('baseline'))
    assert run_test(['-opt', recipe, '--bicubic', '--force_yml', 'val:metrics:ssim:crop_border=5']) == 0
    assert 'psnr / ssim at x2' in (printed := capsys.readouterr().out) and '; 2 / 5 pixels left out' in printed
    assert read_evaluation()['protocol']['borders'] == {'psnr': 2, 'ssim': 5}


def test_a_named_checkpoint_is_tested_instead(trained, capsys):
    net = build_network({'type': 'FSRCNN', 'd': 8, 's': 4, 'm': 1, 'upscale': 2})
    torch.save(net.state_dict(), 'plain.pth')
    assert run_test(['-opt', trained, '--stage', 'student']) == 0
    assert run_test(['-opt', trained, '--stage', 'student', '--force_yml', 'path:pretrain_network_g=plain.pth']) == 0
    tables = capsys.readouterr().out.split('| student |')
    assert len(tables) == 3 and tables[1].splitlines()[0] != tables[2].splitlines()[0]


def test_compiled_figures_are_the_same(trained, monkeypatch):
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='eager'))
    metrics = []
    for flags in ([], ['--compile']):
        assert run_test(['-opt', trained, '--stage', 'student', *flags]) == 0
        metrics.append([row['sets'] for row in read_evaluation()['rows']])
    assert metrics[0] == metrics[1]


def test_saved_images_are_the_reconstructions(trained):
    assert run_test(['-opt', trained, '--stage', 'student', '--save_img']) == 0
    rows = {row['name']: row for row in read_evaluation()['rows']}
    for name in ('bicubic', 'student'):
        for values in rows[name]['sets']['test']['images'].values():
            saved = cv2.imread(str(Path('results/run') / values['picture']))
            assert saved.shape == (48, 60, 3) and saved.std() > 5
    gt = read_evaluation()['ground_truth']['test']
    assert np.array_equal(cv2.imread(str(Path('results/run') / gt['0'])), cv2.imread('datasets/test/HR/0.png'))


def contents(folder) -> dict:
    return {path: path.read_bytes() for path in Path(folder).rglob('*') if path.is_file()}


@pytest.mark.parametrize(
    'arguments, fragments',
    [
        (['--sets', '{cwd}/datasets/test/HR={cwd}/datasets/test/HR'], ['--sets', 'not a name']),
        (['--sets', '../up=datasets/test/HR'], ['--sets ../up', "'../up'"]),
        (['--force_yml', 'datasets:val:name=a/b'], ['datasets.val.name', "'a/b'"]),
        (['--sets', 'a=datasets/test/HR', 'a=datasets/train/HR'], ['--sets a=datasets/train/HR', 'another set']),
        (['--weights', '../x={cwd}/some.pth'], ['--weights', "'../x'"]),
        (['--weights', 'x={cwd}/some.pth', 'x={cwd}/some.pth'], ['--weights', 'another row']),
    ],
)
def test_names_become_folders_only_when_checked(workspace, capsys, arguments, fragments):
    """A set named by its own absolute path let --save_img write over its photos."""
    Path('some.pth').touch()
    before = contents('.')
    arguments = [argument.format(cwd=workspace.path) for argument in arguments]
    recipe = str(workspace.recipe('baseline'))
    more = [] if '--weights' in arguments else ['--bicubic']
    assert run_test(['-opt', recipe, *more, '--save_img', *arguments]) == 2
    error = capsys.readouterr().err
    assert all(fragment in error for fragment in fragments), error
    assert contents('.') == {**before, Path('run.yml'): Path('run.yml').read_bytes()}


def test_a_failed_test_leaves_earlier_results_and_a_good_one_archives_them(workspace, capsys):
    recipe = str(workspace.recipe('baseline'))
    run = ['-opt', recipe, '--bicubic', '--save_img']
    assert run_test(run) == 0
    before = contents('results')
    capsys.readouterr()
    Path('datasets/small').mkdir()
    cv2.imwrite('datasets/small/0.png', np.zeros((14, 14, 3), np.uint8))
    assert run_test([*run, '--sets', 'test=datasets/test/HR', 'small=datasets/small']) == 2
    assert 'small/0: ssim cannot be computed' in capsys.readouterr().err
    assert contents('results') == before
    assert run_test([*run, '--protocol', 'rgb8']) == 0
    (archived,) = Path('results').glob('run_archived_*')
    assert f'moved to {archived.absolute()}' in capsys.readouterr().out
    assert sorted(contents(archived).values()) == sorted(before.values())
    assert read_evaluation()['protocol']['name'] == 'rgb8'
    assert sorted(path.name for path in Path('results').iterdir()) == ['run', archived.name]


def test_the_record_says_in_which_precision_it_was_measured(workspace, monkeypatch):
    """PyTorch allows TF32 for convolutions by default; the test asks for fp32 unless told otherwise."""
    seen = []
    monkeypatch.setattr('pisr_plugin.engine.test.measure', lambda *a, **k: seen.append(allowed()) or measure(*a, **k))

    def allowed():
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before = allowed()
    run = ['-opt', str(workspace.recipe('baseline')), '--bicubic']
    assert run_test(run) == 0 and run_test([*run, '--tf32']) == 0
    assert seen == [(False, False), (True, True)] and allowed() == before
    assert read_evaluation()['environment']['precision'] == 'fp32'  # on a CPU, whatever is allowed
    monkeypatch.setattr(
        'pisr_plugin.models.validation.measure_images',
        lambda *a, **k: seen.append(allowed()) or measure_images(*a, **k),
    )
    assert train(['-opt', str(workspace.recipe('baseline'))]) == 0
    assert seen[2:] == [(False, False)] * 2 and allowed() == before
    assert ' threads in fp32' in next(Path('experiments/run').rglob('*.log')).read_text()


def test_an_rgb_network_is_labelled_by_what_is_done(workspace, capsys):
    """Protocol basicsr rounds the luminance of luminance networks only."""
    net = {'type': 'FSRCNN', 'd': 8, 's': 4, 'm': 1, 'upscale': 2, 'num_in_ch': 3, 'num_out_ch': 3}
    torch.save(build_network(net).state_dict(), 'rgb.pth')
    recipe = str(workspace.recipe('baseline', network_g=net))
    run = ['-opt', recipe, '--protocol', 'basicsr', '--weights', 'rgb.pth', '--force_yml']
    assert run_test([*run, 'datasets:train:color=rgb', 'datasets:val:color=rgb']) == 0
    printed = capsys.readouterr().out
    assert 'both luminances rounded' not in printed and 'its luminance not' in printed
    assert 'its luminance not' in read_evaluation()['protocol']['text']


@pytest.mark.parametrize(
    'arguments, fragments',
    [
        (['--stage', 'studnt'], ["Did you mean 'student'"]),
        (
            ['--force_yml', 'path:pretrain_network_g=nowhere.pth', '--stage', 'student'],
            ['nothing to test', 'nowhere.pth'],
        ),
        (['--force_yml', 'val:metrics:psnr:type=psnr'], ['val.metrics.psnr.type', 'calculate_psnr']),
        (['--force_yml', 'val:metrics=~'], ['val.metrics', 'no metric']),
        (['--force_yml', 'network_g:upscale=1'], ['FSRCNN cannot be built', 'found 1']),
        (['--force_yml', 'datasets:val:dataroot_lq=nowhere'], ['datasets.val.dataroot_lq', 'nowhere']),
    ],
)
def test_mistakes_in_testing(workspace, capsys, arguments, fragments):
    assert train(['-opt', str(workspace.recipe('baseline', train={'total_iter': 1}))]) == 0
    capsys.readouterr()
    assert run_test(['-opt', 'run.yml', *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and all(fragment in error for fragment in fragments), error


def test_the_picture_is_drawn_or_says_why_not(trained, capsys):
    assert picture(['-opt', trained, '--crop', '4', '6', '20', '-o', 'out/a.png']) == 0
    assert cv2.imread('out/a.png').std() > 10
    assert picture(['-opt', trained, '--image', '1', '-o', 'out/a.svg']) == 0
    assert run_test(['-opt', trained]) == 0
    drawn = Path('out/a.svg').read_text()
    assert 'protocol basicsr' in drawn
    for row in read_evaluation()['rows']:
        values = row['sets']['test']['images']['1']
        assert (f'{values["psnr"]:.2f} / {values["ssim"]:.4f}' in drawn) == (row['role'] != 'teacher')
    for arguments, fragment in (
        (['--crop', '50', '0', '20'], 'found an image of 60x48'),
        (['--image', '7'], '--image 7'),
        (['--stage', 'teacher'], 'no student to draw'),
        (['--dataset', 'vall'], "Did you mean 'val'"),
    ):
        assert picture(['-opt', trained, *arguments]) == 2
        assert fragment in capsys.readouterr().err


def test_the_picture_of_a_network_with_window_attention_has_any_size(workspace):
    swinir = {'type': 'SwinIR', 'upscale': 2, 'window_size': 7, 'img_size': 14, 'embed_dim': 4, 'in_chans': 1}
    swinir |= {'depths': [1], 'num_heads': [1], 'upsampler': 'pixelshuffledirect'}
    recipe = str(workspace.recipe('baseline', network_g=swinir, train={'total_iter': 1}))
    net = build_network(swinir)
    torch.save(net.state_dict(), 'swinir.pth')
    file = ['--force_yml', 'path:pretrain_network_g=swinir.pth', '-o', 'a.png']
    assert picture(['-opt', recipe, *file]) == 0  # 24x30 pixels are no whole windows


def test_the_crop_lies_where_the_gain_is():
    truth = np.zeros((64, 64, 3), np.uint8)
    before = truth.copy()
    before[40:56, 8:24] = 255
    x, y, size = largest_gain(before, truth, truth, size=16)
    assert (x, y, size) == (8, 40, 16)
