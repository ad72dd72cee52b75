"""KDSR's recipe for real photos, small: three stages as a real process, resumed and over two ranks."""

import json
import signal
from pathlib import Path

import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.archs.discriminator_arch import UNetDiscriminatorSN

from pisr_plugin.inference import checkpoint
from tests.conftest import ROOT, make_images
from tests.processes import TRAIN, outputs, start, start_ranks, wait_for_progress
from tests.runs import ENDS, assert_same, reports

SMALL = {'num_feat': 8, 'num_block': 1, 'num_estimator_block': 1}
PLUGIN = """
from tests import small_vgg
small_vgg.install()
"""
GAN = Path('experiments/run/gan')


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Arguments that train the recipe small on two photos, with what is to be changed."""
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / 'photos', 2, size=(80, 72))
    Path('list.txt').write_text('0.png\n1.png\n')
    Path('no_download.py').write_text(PLUGIN)
    recipe = {
        '_base_': str(ROOT / 'options/kdsr/kdsr_gan_x4.yml'),
        'name': 'run',
        'num_gpu': 0,
        'network_g': SMALL,
        'datasets': {
            'train': {
                'dataroot_gt': 'photos/HR',
                'meta_info': 'list.txt',
                'io_backend': {'type': 'disk'},
                'gt_size': 32,
                'batch_size_per_gpu': 2,
                'num_worker_per_gpu': 0,
            },
            'val': {'dataroot_gt': 'photos/HR', 'kernels': [1.8]},
        },
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 1, 'keep_checkpoints': 2, 'use_tb_logger': False},
        'val': {'val_freq': 2},
        'stages': {
            **{name: {'train': {'total_iter': 2, 'optim_g': {'lr': 1e-2}}} for name in ('teacher', 'student')},
            'gan': {'network_d': {'num_feat': 4}, 'train': {'total_iter': 4, 'ema_decay': 0.9}},
        },
    }
    Path('run.yml').write_text(yaml.safe_dump(recipe, sort_keys=False))

    def arguments(*changes):
        force = ('--force_yml', *changes) if changes else ()
        return ['-opt', 'run.yml', '--plugin', 'no_download', '--auto_resume', *force]

    return arguments


def finish(processes):
    told = outputs(processes, timeout=300)
    assert {process.returncode for process in processes} == {0}, told
    return told


def weights(file, key='params'):
    return checkpoint.load_file_safely(file)[key]


def test_three_stages_hand_over_averages_and_a_killed_gan_stage_ends_the_same(job):
    finish([start(TRAIN, *job(), cwd=Path.cwd())])
    logged = {stage: {key for line in reports(GAN.parent / stage) for key in line} for stage in ('teacher', 'gan')}
    losses = {'l_pix', 'l_distill_idr', 'l_percep', 'l_gan', 'l_d_real', 'l_d_fake', 'out_d_real', 'out_d_fake'}
    assert {key for key in logged['gan'] if key[:2] in ('l_', 'ou')} == losses
    assert {key for key in logged['teacher'] if key[:2] in ('l_', 'ou')} == {'l_pix'}
    assert 'psnr' in json.loads((GAN / 'result.json').read_text())['metrics']['Set5_gaussian8']

    student = build_network({'type': 'KDSRStudent', 'upscale': 4, **SMALL})
    student.load_state_dict(weights(GAN / 'models/net_g_latest.pth', 'params_ema'), strict=True)
    UNetDiscriminatorSN(3, 4).load_state_dict(weights(GAN / 'models/net_d_latest.pth'), strict=True)
    kept = {file.name for file in (GAN / 'models').glob('net_d_*')}
    assert {'net_d_3.pth', 'net_d_4.pth', 'net_d_latest.pth'} <= kept and 'net_d_1.pth' not in kept

    GAN.rename('unbroken')
    for wait in (0.0, 0.3):
        process = start(TRAIN, *job(), cwd=Path.cwd())
        wait_for_progress([process], GAN, wait)
        process.send_signal(signal.SIGKILL)
        (told,) = outputs([process])
        assert process.returncode in ENDS, told
    finish([start(TRAIN, *job(), cwd=Path.cwd())])
    assert reports(GAN) == reports(Path('unbroken'))
    for name in ('training_states/4.state', 'models/net_g_4.pth', 'models/net_d_4.pth', 'models/net_d_latest.pth'):
        assert_same(*(checkpoint.load_file_safely(folder / name) for folder in (GAN, Path('unbroken'))), name)


def test_a_stage_begins_with_the_averages_of_the_one_before(job):
    still = [f'stages:{name}:train:optim_g:lr=0' for name in ('student', 'gan')]
    finish([start(TRAIN, *job(*still, 'val:val_freq=9'), cwd=Path.cwd())])
    teacher = GAN.parent / 'teacher/models/net_t_latest.pth'
    averaged, last = weights(teacher, 'params_ema'), weights(teacher)
    student = weights(GAN.parent / 'student/models/net_g_latest.pth')
    moved = [key for key in averaged if key.startswith('G.') and not torch.equal(averaged[key], last[key])]
    assert moved and all(torch.equal(student[key], averaged[key]) for key in averaged if key.startswith('G.'))
    for key, value in weights(GAN / 'models/net_g_latest.pth').items():
        assert torch.equal(value, student[key])


def test_two_ranks_hold_the_same_discriminator(job):
    Path('spy.py').write_text(
        'import os, torch\n'
        'from pisr_plugin.models.pisr_model import PISRModel\n'
        'save = PISRModel.save\n'
        'def spied(self, epoch, current_iter):\n'
        '    save(self, epoch, current_iter)\n'
        '    if self.net_d:\n'
        '        nets = {"g": self.net.state_dict(), "d": self.get_bare_model(self.net_d).state_dict()}\n'
        '        torch.save({**nets, "lq": self.lq}, f"spy_{os.environ[\'RANK\']}.pth")\n'
        'PISRModel.save = spied\n'
    )
    finish(
        start_ranks(
            2,
            *job('stages:gan:train:accumulate=2', 'stages:gan:train:net_d_init_iters=1'),
            '--plugin',
            'spy',
            cwd=Path.cwd(),
        )
    )
    one, two = (torch.load(f'spy_{rank}.pth') for rank in range(2))
    assert not torch.equal(one['lq'], two['lq'])
    for name in 'gd':
        assert one[name] and all(torch.equal(one[name][key], two[name][key]) for key in one[name])
    initial = UNetDiscriminatorSN(3, 4).state_dict()
    assert one['d'].keys() == initial.keys()
