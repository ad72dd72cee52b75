"""Parameters and Multi-Adds: what docs/networks.md says, and the laws of counting."""

import json
from pathlib import Path

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from pisr_plugin.cli.complexity import main
from pisr_plugin.evaluation.complexity import count
from pisr_plugin.inference.card import Card, write_card
from tests.conftest import ROOT

ROWS = [
    [cell.strip() for cell in line.strip('|\n').split('|')]
    for line in (ROOT / 'docs/networks.md').read_text().splitlines()
    if ' | x' in line
]


def options(cell):
    network, *arguments = cell.strip('`').split()
    values = (argument.split('=') for argument in arguments)
    return {
        'type': network,
        **{name: int(value) if value.isdigit() else {'true': True}.get(value, value) for name, value in values},
    }


@pytest.mark.parametrize('row', ROWS, ids=lambda row: f'{row[0]} {row[2]}')
def test_the_documented_figures_are_counted_and_agree_with_the_published(row):
    name, cell, scale, parameters, published, _, a, b, c, published_macs = row
    scale = int(scale[1:])
    found = count({**options(cell), 'upscale': scale}, scale, conventions='ABC')
    assert f'{found.parameters:,}' == parameters
    assert {key: f'{value / 1e9:.3f}' for key, value in found.macs.items()} == {'A': a, 'B': b, 'C': c}
    if published != '-' and not name.startswith('CARN'):  # published as multi-scale models
        unit, digits = {'K': (1e3, 0), 'M': (1e6, 2)}[published[-1]]
        assert f'{found.parameters / unit:,.{digits}f}{published[-1]}' == published
    if published_macs != '-':
        figure, convention = published_macs.split()
        assert f'{found.macs[convention.strip("()")] / 1e9:.1f}' == figure


def test_the_table_is_complete():
    assert len(ROWS) == 3 * 12 + 1 + 5


class Probe(nn.Module):
    """Every kind of operation once, on images of LR size."""

    def __init__(self, upscale: int):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.mix = nn.Conv2d(4, 4, 1, bias=False)
        self.linear = nn.Linear(4, 5, bias=False)
        self.act = nn.PReLU()
        self.up = nn.ConvTranspose2d(5, 3, 4, stride=upscale, padding=1)
        self.head = nn.Conv2d(3, 7, 1)

    def forward(self, x):
        x = self.mix(self.conv(x)).relu()
        pooled = nn.functional.adaptive_avg_pool2d(x, 1)
        x = self.act(self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)) * pooled.mean()
        return self.up(self.head(x[:, :3]).narrow(1, 0, 5))


@pytest.fixture(scope='module', autouse=True)
def probe():
    ARCH_REGISTRY.register(Probe)
    yield
    ARCH_REGISTRY._obj_map.pop('Probe')


def test_each_operation_costs_what_the_convention_says():
    """By hand, for 8 x 12 LR pixels: 4*4*3 output of the deconvolution is 16 x 24."""
    n, out = 8 * 12, 16 * 24
    macs = n * (3 * 4 * 9 + 4 * 4 + 4 * 5 + 3 * 7) + n * 5 * 3 * 16
    extra = (n * 4 + n * 7 + out * 3) + (n * 4 + n * 5) + (n * 4 + 4)  # biases, activations, averages
    found = count({'type': 'Probe', 'upscale': 2}, 2, (24, 16), 'ABC')
    assert found.macs == {'A': macs, 'B': macs + (out - n) * 5 * 3 * 16, 'C': macs + extra}


def test_an_lr_size_with_a_fraction_stands_for_its_area_but_is_rounded_down_in_c():
    probe = {'type': 'Probe', 'upscale': 3}
    whole = count(probe, 3, (1200, 720), 'AC').macs
    part = count(probe, 3, (1202, 720), 'AC').macs
    assert part['A'] == pytest.approx(whole['A'] * 1202 / 1200, rel=1e-4) and part['C'] == whole['C']


def test_a_cost_that_is_not_linear_is_counted_at_full_size():
    """A stride halves odd sides upwards, so only the size itself tells."""
    found = count({'type': 'ERFDN', 'upscale': 4}, 4, (212, 140)).macs['A']
    counted = 0

    def add(module, args, out):
        nonlocal counted
        counted += module.weight.numel() * out.shape[-2:].numel()

    net = ARCH_REGISTRY.get('ERFDN')(upscale=4)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
    with torch.no_grad():
        net(torch.zeros(1, 3, 35, 53))
    assert found == counted


def test_window_attention_and_teachers_are_counted():
    swinir = {
        'type': 'SwinIR',
        'upscale': 2,
        'window_size': 8,
        'embed_dim': 8,
        'depths': [1],
        'num_heads': [2],
        'upsampler': 'pixelshuffledirect',
    }
    a, b = (count(swinir, 2, size).macs['A'] for size in ((64, 64), (128, 128)))
    assert b == 4 * a > 0
    student = {'type': 'FSRCNN', 'upscale': 2}
    teacher = count({'type': 'PITeacher', 'upscale': 2, 'decoder': student}, 2)
    hr = 1280 * 720
    encoder = hr * 25 * 56 + hr // 4 * (25 * 56 * 56 + 9 * 56 * 12 + 9 * 12)
    assert teacher.macs['A'] == encoder + count(student, 2).macs['A'] and teacher.parameters == 98_728


def test_recipes_are_listed_and_saved(tmp_path, capsys):
    recipes = [str(ROOT / f'options/{kind}_fsrcnn_x3.yml') for kind in ('pisr', 'baseline')]
    assert main(['-opt', *recipes, '--convention', 'A', 'B', '--json', str(tmp_path / 'made/sizes.json')]) == 0
    table = capsys.readouterr().out
    assert '| pisr_fsrcnn_x3 | FSRCNN | x3 | 12,644 | 1.276 | 4.992 |' in table
    assert '| baseline_fsrcnn_x3 | FSRCNN | x3 | 12,644 | 1.276 | 4.992 |' in table
    assert 'transposed convolution once per input position' in table and '1280x720' in table  # the conventions, stated
    saved = json.loads(Path(tmp_path / 'made/sizes.json').read_text())
    lr, hr, deconv = 102_400, 1280 * 720, 56 * 81
    assert saved['size'] == [1280, 720]
    assert saved['networks'][0]['macs'] == {'A': 12_464 * lr, 'B': (12_464 - deconv) * lr + deconv * hr}


def test_a_trained_model_is_counted_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('PISR_MODELS', str(tmp_path))
    torch.save(ARCH_REGISTRY.get('FSRCNN')(upscale=3).state_dict(), tmp_path / 'mine.pth')
    write_card(Card(tmp_path / 'mine.pth', {'type': 'FSRCNN', 'upscale': 3}, 3, 'y'))
    assert main(['--model', 'mine']) == 0
    assert '| mine | FSRCNN | x3 | 12,644 | 1.276 |' in capsys.readouterr().out


@pytest.mark.parametrize(
    'arguments, fragment',
    [
        ([], 'nothing to count'),
        (['--type', 'FSRCN'], "Did you mean 'FSRCNN'?"),
        (['--type', 'FSRCNN', '--arg', 'upscal=2'], "Did you mean 'upscale'?"),
        (['--type', 'FSRCNN', '--arg', 'upscale=1'], 'found 1'),
        (['--type', 'FSRCNN', '--arg', 'upscale'], 'write keys'),
        (['--type', 'ERFDN', '--arg', 'upscale=3'], 'multiples of its scale 3'),
        (['--type', 'FSRCNN', '--arg', 'upscale=2', '--size', '720p'], '--size 720p'),
        (['-opt', 'nowhere.yml'], 'does not exist'),
    ],
)
def test_mistakes_are_one_message(arguments, fragment, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and fragment in error and 'Traceback' not in error
