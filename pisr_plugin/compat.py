"""Makes BasicSR 1.4.2, its newest release, importable and trainable on today's packages.

There is one function for each workaround. It says which versions need it, and does nothing with all others. Nothing
on disk is changed. In the process only missing modules are added and functions of BasicSR replaced.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import os
import re
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pisr_plugin.utils.errors import CheckpointError, InstallError, OptionsError

# kept here, because torch removes the schemas of a Library that is garbage-collected
_torchvision_schemas: list[Any] = []


@functools.cache  # once per process is enough
def apply() -> None:
    """Imports BasicSR with all workarounds. It must run before anything else imports BasicSR."""
    import_torchvision()
    provide_functional_tensor()
    provide_scipy_filters()
    with distutils_provided(), _quiet_import():
        _import('basicsr', 'pip install --no-build-isolation --no-deps basicsr==1.4.2')
    repair_check_resume()
    repair_load_resume_state()
    refuse_recipes()


# --- what `import basicsr` needs


def import_torchvision() -> None:
    """Imports torchvision even where its compiled operators cannot be loaded.

    Needed by: torchvision beside a torch of another build, above all torchvision for CUDA beside torch for CPU. It
    cannot load its library, but registers Python code for operators of that library, so torch stops the import:
    "operator torchvision::nms does not exist", and then the same for "qnms". Declaring the two is enough for the
    import. BasicSR calls neither; other callers get torch's error about a missing kernel.
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
        # Python would take modules that the failed import left for imported ones.
        for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
            del sys.modules[name]
        with _quiet_import():
            _import('torchvision', command)


def provide_functional_tensor() -> None:
    """Provides ``torchvision.transforms.functional_tensor``, from which BasicSR imports ``rgb_to_grayscale``.

    Needed by: torchvision 0.17 and later, which removed the module.
    """
    if not _exists('torchvision.transforms.functional_tensor'):
        from torchvision.transforms.functional import rgb_to_grayscale

        _stand_in('torchvision.transforms.functional_tensor', rgb_to_grayscale=rgb_to_grayscale)


def provide_scipy_filters() -> None:
    """Provides ``scipy.ndimage.filters``, from which BasicSR imports ``convolve`` and ``gaussian_filter``.

    Needed by: SciPy 2, which will remove the module.
    """
    if not _exists('scipy.ndimage.filters'):
        from scipy.ndimage import convolve, gaussian_filter

        _stand_in('scipy.ndimage.filters', convolve=convolve, gaussian_filter=gaussian_filter)


@contextmanager
def distutils_provided() -> Iterator[None]:
    """Provides ``distutils``, from which BasicSR imports ``LooseVersion``, while BasicSR is imported.

    Needed by: Python 3.12 and later without setuptools, which provides it otherwise. It is removed afterwards, because
    other packages test whether distutils exists and then use all of it.
    """
    if _exists('distutils'):
        yield
        return
    try:
        import setuptools  # noqa: F401  (provides distutils where Python has not read its .pth file)
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
    """Lets a resumed run load the networks of ``path.ignore_resume_networks`` as a new run does.

    Needed by: every BasicSR so far. It keeps the paths of these networks, but changes each ``param_key_*`` from
    params_ema to params, so a frozen teacher silently becomes another network.
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
    """Lets a run resume without CUDA, never runs code from a state, and says which state cannot be read.

    Needed by: every BasicSR so far. It asks CUDA for the current device even where ``num_gpu`` is 0.
    """
    import torch
    from basicsr import train

    stock = train.load_resume_state

    @functools.wraps(stock)
    def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
        if opt['auto_resume']:
            # relative to the current folder, as in BasicSR
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
            state = torch.load(state_file, map_location=device, weights_only=True)
        except Exception as error:  # a damaged file makes its reader raise anything
            raise CheckpointError(f'{state_file}: cannot be read as a training state: {error}') from error
        if not isinstance(state, dict) or type(state.get('iter')) is not int:
            raise CheckpointError(f'{state_file}: is not a training state.')
        train.check_resume(opt, state['iter'])
        return state

    _rebind(stock, load_resume_state)


def refuse_recipes() -> None:
    """Stops BasicSR's own train and test scripts on a recipe, before they move an earlier run away.

    Needed by: every BasicSR. It knows neither ``_base_`` nor ``stages`` nor ``${...}`` and fails late on them.
    """
    from basicsr.utils import options

    stock = options.parse_options

    @functools.wraps(stock)
    def parse_options(root_path: str, is_train: bool = True) -> Any:
        parser = argparse.ArgumentParser(add_help=False)
        parser.add_argument('-opt')
        path = parser.parse_known_args()[0].opt
        if path and os.path.isfile(path):
            with open(path, encoding='utf-8') as file:
                found = re.findall(r'^(_base_|stages)\s*:', file.read(), re.MULTILINE)
            if found:
                raise OptionsError(
                    f'{path}: this is a recipe of pisr_plugin (found {" and ".join(found)}). Expected plain options. '
                    f'Train it by pisr-train -opt {path}, or use the options.yml of one of its stages.'
                )
        return stock(root_path, is_train)

    _rebind(stock, parse_options)


def _newest_state(folder: str) -> str | None:
    """Returns the path of ``<iteration>.state`` with the highest iteration, None without any."""
    if not os.path.isdir(folder):
        return None
    states = [name for name in os.listdir(folder) if re.fullmatch(r'\d+\.state', name)]
    return os.path.join(folder, max(states, key=lambda name: int(name.split('.')[0]))) if states else None


# --- helpers


def _import(name: str, command: str) -> types.ModuleType:
    """Imports a package. Where it is missing itself, the error says how to install it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise InstallError(f'pisr_plugin needs {name}, which is not installed: {command}', name=name) from error


def _exists(name: str) -> bool:
    """Returns whether a module is imported or can be, without importing it."""
    try:
        return sys.modules.get(name) is not None or importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent does not exist
        return False


def _stand_in(name: str, **attributes: Any) -> None:
    """Adds a module with the given attributes, which ``import`` then finds."""
    module = types.ModuleType(name, 'Added by pisr_plugin.compat for a module that was removed.')
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
    """Hides the deprecation warnings of what BasicSR imports: distutils, scipy.ndimage.filters, functional_tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        warnings.filterwarnings('ignore', r'.*functional_tensor.* is deprecated', UserWarning)
        yield
