"""Makes BasicSR 1.4.2, its newest release, importable and trainable on today's packages.

One function per workaround. Each says which versions need it and leaves all others as they are. Nothing is changed
on disk, and nothing but modules that are missing, and functions of BasicSR, is changed in the process.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pickle
import re
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import CheckpointError, InstallError

# torch.library forgets the schemas of a Library that is collected
_torchvision_schemas: list[Any] = []


@functools.cache  # once per process is enough
def apply() -> None:
    """Imports BasicSR with all workarounds in place. To be called before anything else imports it."""
    import_torchvision()
    provide_functional_tensor()
    provide_scipy_filters()
    with distutils_provided(), _quiet_import():
        _import('basicsr', 'pip install --no-build-isolation --no-deps basicsr==1.4.2')
    repair_check_resume()
    repair_load_resume_state()
    share_lmdb_handles()


# --- what `import basicsr` needs


def import_torchvision() -> None:
    """Imports torchvision although its compiled operators cannot be loaded.

    Needed by: torchvision 0.17 and later beside a torch of another build, above all torchvision for CUDA beside torch
    for CPU. It cannot load its library, and then describes operators of that library to torch, which stops the
    import: "operator torchvision::nms does not exist", and next "qnms". Declaring them is enough for the import.
    BasicSR calls none of them; whoever does gets torch's error about a missing kernel.
    """
    command = 'pip install torchvision (of the same build as torch; beside torch for CPU with --no-deps)'
    try:
        with _quiet_import():
            _import('torchvision', command)
    except RuntimeError as error:
        if not re.search(r'operator torchvision::\w+ does not exist', str(error)):
            raise
        import torch

        schemas = torch.library.Library('torchvision', 'FRAGMENT')
        _torchvision_schemas.append(schemas)
        for operator in ('nms', 'qnms'):
            if not hasattr(torch.ops.torchvision, operator):
                schemas.define(f'{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        # what the failed import left behind would be taken for a finished import
        for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
            del sys.modules[name]
        with _quiet_import():
            _import('torchvision', command)


def provide_functional_tensor() -> None:
    """Stands in for ``torchvision.transforms.functional_tensor``, of which BasicSR takes ``rgb_to_grayscale``.

    Needed by: torchvision 0.17 and later, which dropped the module.
    """
    if not _exists('torchvision.transforms.functional_tensor'):
        from torchvision.transforms.functional import rgb_to_grayscale

        _stand_in('torchvision.transforms.functional_tensor', rgb_to_grayscale=rgb_to_grayscale)


def provide_scipy_filters() -> None:
    """Stands in for ``scipy.ndimage.filters``, of which BasicSR takes ``convolve`` and ``gaussian_filter``.

    Needed by: SciPy 2, for which the removal is announced.
    """
    if not _exists('scipy.ndimage.filters'):
        from scipy.ndimage import convolve, gaussian_filter

        _stand_in('scipy.ndimage.filters', convolve=convolve, gaussian_filter=gaussian_filter)


@contextmanager
def distutils_provided() -> Iterator[None]:
    """Stands in for ``distutils``, of which BasicSR takes ``LooseVersion``, while BasicSR is imported.

    Needed by: Python 3.12 and later without setuptools, which else provides it. The stand-in goes afterwards, because
    other packages look whether there is a distutils, and mean all of it.
    """
    if _exists('distutils'):
        yield
        return
    try:
        import setuptools  # noqa: F401  (its import provides distutils where its .pth file was not read)
    except ImportError:
        pass
    if _exists('distutils'):
        yield
        return
    from packaging.version import Version

    _stand_in('distutils')
    _stand_in('distutils.version', LooseVersion=Version)
    try:
        yield
    finally:
        del sys.modules['distutils'], sys.modules['distutils.version']


# --- what training with BasicSR needs


def repair_check_resume() -> None:
    """Lets a resumed run load the networks of ``path.ignore_resume_networks`` as a fresh run does.

    Needed by: every BasicSR so far. It leaves the paths of these networks alone, yet turns each ``param_key_*`` from
    params_ema into params, so a frozen teacher silently becomes another network.
    """
    from basicsr.utils import misc

    stock = misc.check_resume

    @functools.wraps(stock)
    def check_resume(opt: dict[str, Any], resume_iter: int) -> None:
        path = opt['path']
        ignored = path.get('ignore_resume_networks') or ()
        networks = [name for name in opt if name.startswith('network_') and name in ignored]
        keys = [name.replace('network_', 'param_key_', 1) for name in networks]
        kept = {key: path.pop(key) for key in keys if key in path}
        try:
            stock(opt, resume_iter)
        finally:
            path.update(kept)

    _rebind(stock, check_resume)


def repair_load_resume_state() -> None:
    """Lets a run resume without CUDA, and says what is wrong with a state that cannot be read.

    Needed by: every BasicSR so far. It asks CUDA for the current device whatever ``num_gpu`` says.
    """
    import torch
    from basicsr import train

    stock = train.load_resume_state
    # older ones refuse the Counter in a scheduler's state, and stay as they were
    reads_states_safely = tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 6)

    @functools.wraps(stock)
    def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
        if opt['auto_resume']:
            # relative to the current folder, as BasicSR has it
            state_file = _newest_state(os.path.join('experiments', opt['name'], 'training_states'))
            if state_file:
                opt['path']['resume_state'] = state_file
        else:
            state_file = opt['path'].get('resume_state')
        if not state_file:
            return None
        on_cpu = opt['num_gpu'] == 0 or not torch.cuda.is_available()
        device = torch.device('cpu') if on_cpu else torch.device('cuda', torch.cuda.current_device())
        try:
            state = torch.load(state_file, map_location=device, weights_only=reads_states_safely)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f'{state_file}: cannot be read as a training state: {error}') from error
        train.check_resume(opt, state['iter'])
        return state

    _rebind(stock, load_resume_state)


def _newest_state(folder: str) -> str | None:
    """Returns the path of ``<iteration>.state`` with the highest iteration, None without any."""
    if not os.path.isdir(folder):
        return None
    states = [name for name in os.listdir(folder) if re.fullmatch(r'\d+\.state', name)]
    return os.path.join(folder, max(states, key=lambda name: int(name.split('.')[0]))) if states else None


def share_lmdb_handles() -> None:
    """Lets several datasets, and forked workers, read one LMDB.

    Needed by: lmdb 2 and later, which allow one open per file and process. With lmdb 1 it only saves handles.
    """
    from basicsr.utils.file_client import FileClient

    from .data.lmdb_backend import SharedLmdbBackend

    FileClient._backends['lmdb'] = SharedLmdbBackend


# --- helpers


def _import(name: str, command: str) -> types.ModuleType:
    """Imports a package; says how to install it when it, not something it imports, is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise InstallError(f'pisr_plugin needs {name}, which is not installed: {command}', name=name) from error


def _exists(name: str) -> bool:
    """Tells whether a module has been or can be imported, without importing it."""
    try:
        return sys.modules.get(name) is not None or importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent does not exist
        return False


def _stand_in(name: str, **attributes: Any) -> None:
    """Puts a module with the given attributes where ``import`` looks first."""
    module = types.ModuleType(name, 'Stand-in by pisr_plugin.compat for a module that is gone.')
    vars(module).update(attributes)
    sys.modules[name] = module


def _rebind(stock: Any, repaired: Any) -> None:
    """Replaces a function of BasicSR under every name that its modules gave it by ``from ... import``."""
    for module_name, module in list(sys.modules.items()):
        if module_name.split('.')[0] == 'basicsr':
            for name, value in list(vars(module).items()):
                if value is stock:
                    setattr(module, name, repaired)


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Hides the deprecations that BasicSR's own imports meet: distutils, scipy.ndimage.filters, functional_tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        warnings.filterwarnings('ignore', r'.*functional_tensor.* is deprecated', UserWarning)
        yield
