"""Small images and recipes for tests that train."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from pisr_plugin.cli.report import NEEDED
from pisr_plugin.utils.resize import imresize_uint8

ROOT = Path(__file__).parents[1]
# These import the packages of the extra `report`. The other tests run without them, as on a machine with a GPU.
_OF_REPORTS = ('test_report.py', 'test_report_page.py', 'test_fuzz_results.py')
collect_ignore = list(_OF_REPORTS) if any(importlib.util.find_spec(name) is None for name in NEEDED) else []


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests with the mark ``gpu`` where there is none."""
    if item.get_closest_marker('gpu') and not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')


def make_images(folder: Path, count: int, scale: int = 2, size: tuple[int, int] = (48, 60)) -> None:
    """Writes smooth coloured textures to ``folder/HR`` and their bicubic LR to ``folder/LR_bicubic/X<scale>``."""
    random = np.random.default_rng(count)
    for name in ('HR', f'LR_bicubic/X{scale}'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        texture = random.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        hr = cv2.resize(texture, size[::-1], interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / 'HR' / f'{i}.png'), hr)
        cv2.imwrite(str(folder / f'LR_bicubic/X{scale}' / f'{i}.png'), imresize_uint8(hr, 1 / scale))


class Workspace:
    """A folder to train in: ``datasets/train``, ``datasets/test`` and recipes.

    Attributes:
        path: The folder, which is the current one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        make_images(path / 'datasets/train', 4)
        make_images(path / 'datasets/test', 2)

    def recipe(self, base: str = 'pisr', name: str = 'run', **changes) -> Path:
        """Writes a recipe of two short stages for FSRCNN on Y over ``options/_base_``."""

        def data(folder: str, **more) -> dict:
            return {
                'name': folder,
                'type': 'PairedImageDataset',
                'dataroot_gt': f'datasets/{folder}/HR',
                'dataroot_lq': f'datasets/{folder}/LR_bicubic/X${{scale}}',
                'io_backend': {'type': 'disk'},
                'color': 'y',
                **more,
            }

        recipe = {
            '_base_': str(ROOT / f'options/_base_/{base}.yml'),
            'name': name,
            'scale': 2,
            'num_gpu': 0,
            'network_g': {'type': 'FSRCNN', 'd': 8, 's': 4, 'm': 1, 'upscale': '${scale}'},
            'datasets': {
                'train': data(
                    'train',
                    gt_size=32,
                    use_hflip=True,
                    use_rot=True,
                    num_worker_per_gpu=0,
                    batch_size_per_gpu=2,
                    dataset_enlarge_ratio=5,
                ),
                'val': data('test'),
            },
            'train': {'total_iter': 4},
            'val': {'val_freq': 2},
            'logger': {'print_freq': 1, 'save_checkpoint_freq': 2, 'use_tb_logger': False},
            **changes,
        }
        file = self.path / f'{name}.yml'
        file.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return file


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path)


@pytest.fixture(scope='module')
def one_thread():
    """On images this small a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def batch() -> dict:
    """Two HR/LR pairs of one channel at x2, as a data loader gives them."""
    generator = torch.Generator().manual_seed(1)
    return {
        'lq': torch.rand(2, 1, 8, 8, generator=generator),
        'gt': torch.rand(2, 1, 16, 16, generator=generator),
        'lq_path': ['a', 'b'],
    }
