"""What networks' representations tell apart, on degradations that are known."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pisr_plugin.archs.kdsr_arch import KDSRStudent, KDSRTeacher
from pisr_plugin.cli.representation import main
from pisr_plugin.data.datasets.blurred_image_dataset import BlurredImageDataset
from pisr_plugin.diagnostics.representation import nearest_centroid_accuracy, principal, representations
from pisr_plugin.inference import checkpoint

SIZE = {'num_feat': 4, 'num_block': 1, 'num_estimator_block': 1, 'upscale': 4}
WIDTHS = [1.0, 2.0, 4.0]


@pytest.fixture
def runs(tmp_path):
    """A teacher's and a student's folder as training leaves them, and images for them."""
    rng = np.random.default_rng(0)
    (tmp_path / 'HR').mkdir()
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (48, 56, 3), dtype=np.uint8)).save(tmp_path / 'HR' / f'{number}.png')
    torch.manual_seed(0)
    for label, stage, cls in (('t', 'teacher', KDSRTeacher), ('g', 'student', KDSRStudent)):
        options = {
            'scale': 4,
            f'network_{label}': {'type': cls.__name__, **SIZE},
            'datasets': {
                'val': {
                    'name': 'blurred',
                    'type': 'BlurredImageDataset',
                    'dataroot_gt': str(tmp_path / 'HR'),
                    'io_backend': {'type': 'disk'},
                    'kernels': WIDTHS,
                    'noise': [0, 10],
                }
            },
        }
        (tmp_path / stage / 'models').mkdir(parents=True)
        (tmp_path / stage / 'options.yml').write_text(yaml.safe_dump(options))
        state = {'params': cls(**SIZE).state_dict()}
        checkpoint.save_atomic(state, str(tmp_path / stage / 'models' / f'net_{label}_latest.pth'))
    return tmp_path


def dataset_of(folder):
    options = yaml.safe_load((folder / 'teacher/options.yml').read_text())
    return BlurredImageDataset({**options['datasets']['val'], 'scale': 4, 'phase': 'val'})


def test_representations_are_what_the_estimator_gives(runs):
    dataset = dataset_of(runs)
    net = KDSRTeacher(**SIZE).eval()
    found = representations(net, 'E.mlp', dataset, 6)
    assert found.shape == (3, 6, 16)
    sample = dataset[2 * 6 + 3]  # the third image, the second width, noisy
    assert sample['lq_path'] == '2_iso2_noise10.png'
    hr = torch.nn.functional.pixel_unshuffle(sample['gt'][None], 4)
    with torch.no_grad():
        seen = torch.cat([sample['lq'][None], hr], 1)
        expected = net.E.mlp(net.E.E(seen).flatten(1))[0]
    torch.testing.assert_close(found[2, 3], expected)


def test_a_map_is_averaged_over_its_positions(runs):
    dataset = dataset_of(runs)
    net = KDSRStudent(**SIZE).eval()
    with torch.no_grad():
        expected = net.G.head(net.G.sub_mean(dataset[0]['lq'][None])).mean((2, 3))[0]
    torch.testing.assert_close(representations(net, 'G.head', dataset, 6)[0, 0], expected)


def test_told_apart():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 8, generator=generator)
    noise = torch.randn(12, 5, 8, generator=generator)
    assert nearest_centroid_accuracy(centres + 0.01 * noise) == 1
    assert nearest_centroid_accuracy(noise) < 0.5
    # An image's own representation does not vote for itself: these two only ever tell the opposite of each other.
    assert nearest_centroid_accuracy(torch.tensor([[[1.0], [-1.0]], [[-1.0], [1.0]]])) == 0


def test_principal_components_keep_the_largest_distances():
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(4, 5, 2, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(7, 2, generator=generator, dtype=torch.float64)).Q
    found = principal(plane @ basis.T + 3)
    assert found.shape == (4, 5, 2)
    torch.testing.assert_close(torch.pdist(found.flatten(0, 1)), torch.pdist(plane.flatten(0, 1)))
    assert found[..., 0].var() >= found[..., 1].var()


def test_table_and_picture(runs, capsys):
    picture = runs / 'out' / 'r.png'
    assert main([f'seen={runs / "teacher"}', str(runs / 'student'), '-o', str(picture)]) == 0
    printed = capsys.readouterr().out
    assert '3 images, 6 degradations' in printed and 'KL from seen' in printed
    rows = {line.split('|')[1].strip(): line.split('|')[3].strip() for line in printed.splitlines() if '|' in line}
    assert float(rows['seen']) == 0 and float(rows['student']) > 0
    with Image.open(picture) as image:
        assert image.width > image.height > 300
        assert len(image.convert('RGB').getcolors(1 << 20)) > 50


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        ({'runs': ['nowhere']}, 'nowhere/options.yml: No such file'),
        ({'--tap': 'E.nothing'}, 'E.nothing'),
        ({'--hr': 'empty'}, 'empty'),
    ],
)
def test_mistakes(runs, monkeypatch, capsys, change, told):
    monkeypatch.chdir(runs)
    (runs / 'empty').mkdir()
    change = {'runs': ['teacher'], **change}
    flags = [text for key, value in change.items() if key != 'runs' for text in (key, value)]
    assert main([*change['runs'], *flags, '-o', 'r.png']) == 2
    assert told in capsys.readouterr().err
    assert not (runs / 'r.png').exists()
