"""Each workaround in a process of its own, once where it is needed and once where it is not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# hides modules from `import`, as if they were not installed
HIDE = """
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def __init__(self, *names):
        self.names = names
    def find_spec(self, fullname, path=None, target=None):
        if any(fullname == name or fullname.startswith(name + '.') for name in self.names):
            raise ModuleNotFoundError(f'No module named {fullname!r}', name=fullname)
def hide(*names):
    for name in [name for name in sys.modules if name in names or name.startswith(tuple(n + '.' for n in names))]:
        del sys.modules[name]
    sys.meta_path.insert(0, Hide(*names))
"""

# gives compat alone, without what `import pisr_plugin` does
COMPAT_ALONE = f"""
import sys, types
package = types.ModuleType('pisr_plugin')
package.__path__ = [{str(ROOT / 'pisr_plugin')!r}]
sys.modules['pisr_plugin'] = package
from pisr_plugin import compat
"""


def python(code: str, cwd: Path, *args: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter that finds this checkout, and packages in ``path`` before the installed ones."""
    search = [str(entry) for entry in (path, ROOT) if entry]
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(search), 'OMP_NUM_THREADS': '1'}
    script = cwd / 'script.py'  # a file, not -c: spawned workers import it again
    script.write_text(code)
    return subprocess.run(
        [sys.executable, '-W', 'always', str(script), *args],
        cwd=cwd, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def run(code: str, cwd: Path, *args: str, path: Path | None = None) -> str:
    """Like :func:`python`, for code that must succeed; returns what it printed."""
    done = python(code, cwd, *args, path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


# --- the import


def test_import_is_silent_and_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    done = python(
        """
import random, warnings
import cv2, lmdb, numpy as np, scipy.ndimage, scipy.special, scipy.stats, skimage, torch
import torch.utils.data

def state():
    return (random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist(),
            torch.get_num_threads(), torch.get_default_dtype(), torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic, torch.are_deterministic_algorithms_enabled(),
            torch.is_grad_enabled(), torch.multiprocessing.get_start_method(allow_none=True))

before = state()
import pisr_plugin
assert state() == before
assert not torch.cuda.is_initialized()
warnings.warn('deprecations are shown as before', DeprecationWarning)
import basicsr
pisr_plugin.compat.apply()  # a second time
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY
assert 'EDSR' in ARCH_REGISTRY and 'SRModel' in MODEL_REGISTRY and 'PairedImageDataset' in DATASET_REGISTRY
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ''
    assert 'deprecations are shown as before' in done.stderr
    assert 'basicsr' not in done.stderr and 'pisr_plugin' not in done.stderr, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ['script.py']


@pytest.mark.parametrize('package', ['torchvision', 'basicsr'])
def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path: Path, package: str) -> None:
    done = python(HIDE + f'hide({package!r})\nimport pisr_plugin', tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f'pisr_plugin.utils.errors.InstallError: pisr_plugin needs {package}')
    assert 'pip install' in last


def test_a_package_that_a_dependency_misses_is_not_reported_as_the_dependency(tmp_path: Path) -> None:
    done = python(HIDE + "hide('cv2')\nimport pisr_plugin", tmp_path)
    assert done.stderr.strip().splitlines()[-1] == "ModuleNotFoundError: No module named 'cv2'"


# --- torchvision of another build


def fake_torchvision(folder: Path, body: str) -> Path:
    package = folder / 'packages' / 'torchvision'
    package.mkdir(parents=True)
    (package / '__init__.py').write_text('from . import operators\n')
    (package / 'operators.py').write_text(body)
    return package.parent


DESCRIBE = """
import torch
for name in ('nms', 'qnms'):
    torch.library.register_fake(f'torchvision::{name}')(lambda dets, scores, iou_threshold: dets)
"""


def test_operators_that_torchvision_cannot_load_are_declared(tmp_path: Path) -> None:
    packages = fake_torchvision(tmp_path, DESCRIBE)
    assert 'operator torchvision::nms does not exist' in python('import torchvision', tmp_path, path=packages).stderr
    out = run(
        COMPAT_ALONE
        + """
import gc, torch
compat.import_torchvision()
gc.collect()
import torchvision.operators
print(torch.ops.torchvision.nms.default._schema, torch.ops.torchvision.qnms.default._schema)
""",
        tmp_path,
        path=packages,
    )
    assert 'torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor' in out
    assert 'torchvision::qnms(Tensor dets' in out


def test_a_working_torchvision_is_imported_once_and_declares_its_own_operators(tmp_path: Path) -> None:
    packages = fake_torchvision(tmp_path, "print('imported')")
    code = "import torch\ncompat.import_torchvision()\nprint(hasattr(torch.ops.torchvision, 'nms'))"
    assert run(COMPAT_ALONE + code, tmp_path, path=packages).split() == ['imported', 'False']


def test_another_failure_of_torchvision_is_not_hidden(tmp_path: Path) -> None:
    packages = fake_torchvision(tmp_path, "raise RuntimeError('something else')")
    done = python(COMPAT_ALONE + 'compat.import_torchvision()', tmp_path, path=packages)
    assert done.stderr.strip().endswith('RuntimeError: something else')


# --- modules that are gone


def test_functional_tensor_is_there_and_weighs_colours_as_before(tmp_path: Path) -> None:
    run(
        """
import pisr_plugin, torch
from basicsr.data import degradations
from torchvision.transforms.functional_tensor import rgb_to_grayscale
image = torch.rand(2, 3, 5, 4)
weights = torch.tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)
torch.testing.assert_close(rgb_to_grayscale(image), (image * weights).sum(1, keepdim=True))
assert degradations.rgb_to_grayscale is rgb_to_grayscale
""",
        tmp_path,
    )


def test_functional_tensor_that_is_there_is_kept(tmp_path: Path) -> None:
    run(
        COMPAT_ALONE
        + """
compat.import_torchvision()
name = 'torchvision.transforms.functional_tensor'
own = sys.modules[name] = types.ModuleType(name)
own.rgb_to_grayscale = lambda image: image
compat.apply()
from basicsr.data import degradations
assert sys.modules[name] is own and degradations.rgb_to_grayscale is own.rgb_to_grayscale
""",
        tmp_path,
    )


def test_without_distutils_and_setuptools_versions_still_compare(tmp_path: Path) -> None:
    run(
        HIDE
        + """
import torch
hide('distutils', 'setuptools')
import pisr_plugin
from basicsr.archs.arch_util import LooseVersion
assert LooseVersion('0.28.0+cu130') >= LooseVersion('0.9.0') and LooseVersion('0.9.0') < LooseVersion('0.10.0a0')
assert 'distutils' not in sys.modules and 'distutils.version' not in sys.modules
""",
        tmp_path,
    )


@pytest.mark.skipif(importlib.util.find_spec('distutils') is None, reason='neither Python nor setuptools has it')
def test_distutils_that_is_there_is_used(tmp_path: Path) -> None:
    run(
        """
import pisr_plugin
from distutils.version import LooseVersion
from basicsr.archs import arch_util
assert arch_util.LooseVersion is LooseVersion
""",
        tmp_path,
    )


def test_scipy_filters_are_replaced_only_where_they_are_gone(tmp_path: Path) -> None:
    check = """
import pisr_plugin, sys
import numpy as np, scipy.ndimage
from basicsr.data.data_util import generate_gaussian_kernel
from basicsr.metrics import niqe
assert niqe.convolve is scipy.ndimage.convolve
np.testing.assert_allclose(generate_gaussian_kernel(13, 1.6).sum(), 1)
print((sys.modules['scipy.ndimage.filters'].__doc__ or '').startswith('Added by pisr_plugin'))
"""
    remove = "import scipy.ndimage\ndel scipy.ndimage.filters\nhide('scipy.ndimage.filters')"
    assert run(HIDE + remove + check, tmp_path) == 'True'
    scipy_has_them = "import importlib.util\nprint(importlib.util.find_spec('scipy.ndimage.filters') is None)"
    assert run(check, tmp_path) == run(scipy_has_them, tmp_path)


# --- resuming

RESUME = """
import pisr_plugin, basicsr, torch
from basicsr import train
from basicsr.utils import misc

def options(**path):
    return {'name': 'run', 'num_gpu': 0, 'auto_resume': False, 'network_g': {}, 'network_t': {},
            'path': {'models': 'models', 'resume_state': '4.state', 'param_key_g': 'params_ema',
                     'param_key_t': 'params_ema', 'pretrain_network_t': 'teacher.pth', **path}}
"""


def test_resuming_leaves_the_key_of_an_ignored_network(tmp_path: Path) -> None:
    run(
        RESUME
        + """
for check_resume in (misc.check_resume, train.check_resume, basicsr.check_resume, basicsr.utils.check_resume):
    opt = options(ignore_resume_networks=['network_t'])
    check_resume(opt, 4)
    assert opt['path']['param_key_t'] == 'params_ema' and opt['path']['pretrain_network_t'] == 'teacher.pth'
    assert opt['path']['param_key_g'] == 'params' and opt['path']['pretrain_network_g'] == 'models/net_g_4.pth'
    opt = options()  # as BasicSR has it
    check_resume(opt, 4)
    assert opt['path']['param_key_t'] == 'params' and opt['path']['pretrain_network_t'] == 'models/net_t_4.pth'
""",
        tmp_path,
    )


def test_a_state_resumes_without_cuda(tmp_path: Path) -> None:
    run(
        RESUME
        + """
from pathlib import Path
states = Path('experiments/run/training_states')
assert train.load_resume_state({**options(), 'auto_resume': True}) is None
states.mkdir(parents=True)
assert train.load_resume_state({**options(), 'auto_resume': True}) is None
for iteration in (4, 8, 16):
    torch.save({'iter': iteration, 'epoch': 0, 'optimizers': [], 'schedulers': []}, states / f'{iteration}.state')
for load in (train.load_resume_state, basicsr.load_resume_state):
    opt = {**options(), 'auto_resume': True}
    assert load(opt)['iter'] == 16
    assert opt['path']['pretrain_network_g'] == 'models/net_g_16.pth'
assert train.load_resume_state(options(resume_state=str(states / '8.state')))['iter'] == 8
assert train.load_resume_state(options(resume_state=None)) is None
assert not torch.cuda.is_initialized()
""",
        tmp_path,
    )


def test_a_state_that_carries_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    done = python(
        RESUME
        + """
class Code:
    def __reduce__(self):
        return open, ('ran', 'w')

torch.save({'iter': 4, 'optimizers': Code()}, '4.state')
train.load_resume_state(options())
""",
        tmp_path,
    )
    assert 'pisr_plugin.utils.errors.CheckpointError: 4.state: cannot be read as a training state' in done.stderr
    assert not (tmp_path / 'ran').exists()


TRAIN = """
import pisr_plugin
from basicsr.train import train_pipeline

if __name__ == '__main__':
    train_pipeline('.')
"""

OPTIONS = """
name: run
model_type: SRModel
scale: 2
num_gpu: 0
manual_seed: 0
datasets:
  train:
    name: photos
    type: PairedImageDataset
    dataroot_gt: gt.lmdb
    dataroot_lq: lq.lmdb
    io_backend: {type: lmdb}
    gt_size: 16
    use_hflip: true
    use_rot: true
    num_worker_per_gpu: 2
    batch_size_per_gpu: 2
    dataset_enlarge_ratio: 4
  val:
    name: the_same_photos
    type: PairedImageDataset
    dataroot_gt: gt.lmdb
    dataroot_lq: lq.lmdb
    io_backend: {type: lmdb}
network_g: {type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 4, num_block: 1, upscale: 2}
path: {}
train:
  ema_decay: 0.9
  optim_g: {type: Adam, lr: !!float 1e-4}
  scheduler: {type: MultiStepLR, milestones: [3], gamma: 0.5}
  total_iter: 4
  pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}
val:
  val_freq: 2
  save_img: false
  metrics: {psnr: {type: calculate_psnr, crop_border: 2}}
logger: {print_freq: 1, save_checkpoint_freq: 2, use_tb_logger: false}
dist_params: {backend: gloo}
"""

MAKE_LMDB = """
import cv2, lmdb, numpy as np, os
def make_lmdb(name, size, count=4):
    env = lmdb.open(name, map_size=1 << 24)
    with env.begin(write=True) as transaction:
        for i in range(count):
            png = cv2.imencode('.png', np.random.default_rng(i).integers(0, 256, (size, size, 3), np.uint8))[1]
            transaction.put(f'{i}'.encode(), png.tobytes())
    env.close()
    with open(os.path.join(name, 'meta_info.txt'), 'w') as meta:
        meta.writelines(f'{i}.png ({size},{size},3) 1\\n' for i in range(count))
"""


def test_stock_training_validates_on_the_same_lmdb_and_resumes_on_cpu(tmp_path: Path) -> None:
    run(MAKE_LMDB + "make_lmdb('gt.lmdb', 32); make_lmdb('lq.lmdb', 16)", tmp_path)
    (tmp_path / 'run.yml').write_text(OPTIONS)
    run(TRAIN, tmp_path, '-opt', 'run.yml')
    (tmp_path / 'longer.yml').write_text(OPTIONS.replace('total_iter: 4', 'total_iter: 6'))
    run(TRAIN, tmp_path, '-opt', 'longer.yml', '--auto_resume')
    log = ''.join(file.read_text() for file in sorted((tmp_path / 'experiments' / 'run').glob('train_run_*.log')))
    assert 'Resuming training from epoch: 0, iter: 4.' in log
    assert (tmp_path / 'experiments/run/models/net_g_6.pth').is_file()
    assert '# psnr:' in log and 'the_same_photos' in log


# --- LMDB

LMDB = (
    MAKE_LMDB
    + """
import pisr_plugin, sys, torch
from basicsr.utils import FileClient
from pisr_plugin.data.storage.lmdb_env import open_lmdb
"""
)


def test_the_backend_reads_what_basicsr_reads(tmp_path: Path) -> None:
    run(
        LMDB
        + """
make_lmdb('a.lmdb', 8), make_lmdb('b.lmdb', 12)
with open_lmdb('a.lmdb').begin() as transaction:
    a = transaction.get(b'1')
with open_lmdb('b.lmdb').begin() as transaction:
    b = transaction.get(b'1')
both = FileClient('lmdb', db_paths=['a.lmdb', 'b.lmdb'], client_keys=['lq', 'gt'])
one = FileClient('lmdb', db_paths='a.lmdb', readonly=True, lock=False, readahead=False)
assert both.get('1', 'lq') == a and both.get('1', 'gt') == b and one.get('1') == a and one.get('absent') is None
assert a != b and isinstance(a, bytes)
try:
    one.get_text('1')
except NotImplementedError:
    pass
else:
    raise AssertionError
for wrong in (lambda: one.get('1', 'gt'), lambda: FileClient('lmdb', db_paths=['a.lmdb'], client_keys=['x', 'y'])):
    try:
        wrong()
    except pisr_plugin.utils.errors.DataError as error:
        assert 'io_backend' in str(error)
    else:
        raise AssertionError
""",
        tmp_path,
    )


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_workers_read_after_the_parent_has_read_and_the_parent_reads_on(tmp_path: Path, method: str) -> None:
    run(
        LMDB
        + """
from basicsr.data.paired_image_dataset import PairedImageDataset

def sums(dataset, workers):
    context = sys.argv[1] if workers else None
    loader = torch.utils.data.DataLoader(dataset, 1, num_workers=workers, multiprocessing_context=context)
    return [float(batch['gt'].sum() + batch['lq'].sum()) for batch in loader]

if __name__ == '__main__':
    make_lmdb('gt.lmdb', 32), make_lmdb('lq.lmdb', 16)
    opt = {'type': 'PairedImageDataset', 'dataroot_gt': 'gt.lmdb', 'dataroot_lq': 'lq.lmdb', 'phase': 'val',
           'io_backend': {'type': 'lmdb'}, 'scale': 2}
    import copy
    dataset, other = PairedImageDataset(copy.deepcopy(opt)), PairedImageDataset(copy.deepcopy(opt))
    here = sums(dataset, 0)
    assert sums(other, 0) == here  # two datasets, one file, one process
    assert sums(dataset, 2) == here  # and its workers
    assert sums(dataset, 0) == here  # and the parent after its workers have come and gone
""",
        tmp_path,
        method,
    )
