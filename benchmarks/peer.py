"""Drives the student stage of a checkout of the PISR authors' code, unmodified, on batches from memory.

It takes ``train_single_epoch`` of ``step2_train_student.py`` of github.com/cvlab-yonsei/PISR (commit f66b979), with
the networks, loss and optimiser that its factories build from options as in its ``configs/fsrcnn/step2.yml``.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from pathlib import Path
from types import ModuleType

from torch import Tensor, nn

from benchmarks.harness import Settings
from benchmarks.workload import build, make_batch, stage_options
from pisr_plugin.utils.errors import InstallError, OptionsError

_SCRIPT = 'step2_train_student'
# its top-level packages, whose names others may have
_PACKAGES = ('datasets', 'transforms', 'models', 'losses', 'optimizers', 'schedulers', 'visualizers', 'utils')


class PeerStudentStage:
    """The authors' second training loop, one batch at a time.

    Args:
        settings: Device, sizes and ``peer``, the checkout.
        recipe: Ours, for sizes and initial weights.

    Raises:
        OptionsError: the folder is no such checkout.
        InstallError: a package that it imports is missing.
    """

    def __init__(self, settings: Settings, recipe: str) -> None:
        opt = stage_options(recipe, 'student', settings)
        batch = make_batch(opt)
        self.script = _import(settings.peer)
        self.script.device = settings.device
        from easydict import EasyDict  # a package of theirs, imported by their code already

        shape = {'scale': opt['scale'], 'n_colors': 1}
        self.config = EasyDict(
            gpu=0,
            train={'batch_size': len(batch['gt'])},
            teacher_model={'name': 'fsrcnn_teacher', 'params': {**shape, 'm': 4, 'k': 1, 'encoder': 'lcscc'}},
            student_model={'name': 'fsrcnn_student', 'params': {**shape, 'vid_info': ['expanding:None']}},
            loss={'name': 'vid_loss', 'params': {'reduction': 'mean', 'lambda1': 1, 'lambda2': 1e-6, 'pdf': 'laplace'}},
            optimizer={'name': 'adam', 'params': {'lr': opt['train']['optim_g']['lr']}},
        )
        with contextlib.redirect_stdout(io.StringIO()):
            self.teacher = self.script.get_model(self.config, 'teacher').to(settings.device)
            self.student = self.script.get_model(self.config, 'student').to(settings.device)
        self._load_ours(build(opt))
        self.criterion = self.script.get_loss(self.config)
        self.optimizer = self.script.get_optimizer(self.config, self.student)
        self.loader = _OneBatch(batch['lq'], batch['gt'])

    def step(self) -> None:
        """Runs their loop over one batch."""
        postfix = {'train/lr': 0.0, 'train/loss': 0.0}
        with open(os.devnull, 'w') as nowhere, contextlib.redirect_stderr(nowhere):  # their progress bar
            self.script.train_single_epoch(
                self.config,
                self.student,
                self.teacher,
                self.loader,
                self.criterion,
                self.optimizer,
                0,
                None,
                None,
                postfix,
            )

    def _load_ours(self, model) -> None:
        """Gives their networks our initial weights; their names are ours behind prefixes."""
        [estimator] = model.estimators.values()
        student = {f'backbone.network.{key}': value for key, value in model.net.state_dict().items()}
        for key, value in estimator.state_dict().items():
            branch, rest = key.split('.', 1)
            student[f'vid_module_dict.expanding_{branch}.{rest}'] = value
        teacher = {
            f'backbone.network.{key.removeprefix("decoder.")}': value
            for key, value in model.teacher.state_dict().items()
        }
        for network, weights in ((self.student, student), (self.teacher, teacher)):
            _load(network, weights)


class _OneBatch:
    """What their loop takes for a data loader: iterable, and its ``dataset`` has a length."""

    def __init__(self, lq: Tensor, gt: Tensor) -> None:
        self.dataset = range(len(gt))
        self.batch = (lq, gt, [''] * len(gt))

    def __iter__(self):
        yield self.batch


def _load(network: nn.Module, weights: dict[str, Tensor]) -> None:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise OptionsError(f"--peer: {type(network).__name__} is not the authors' network: {error}") from None


def _import(checkout: Path) -> ModuleType:
    """Imports their training script with its own packages, which lie beside it."""
    if not (checkout / f'{_SCRIPT}.py').is_file():
        raise OptionsError(f'--peer {checkout}: no checkout of cvlab-yonsei/PISR; {_SCRIPT}.py is not there.')
    taken = [name for name in _PACKAGES if name in sys.modules]
    if taken:
        raise OptionsError(f"--peer: the authors' packages {', '.join(taken)} cannot be imported: names are taken.")
    sys.path.insert(0, str(checkout.resolve()))
    try:
        return importlib.import_module(_SCRIPT)
    except ModuleNotFoundError as error:
        raise InstallError(f"--peer: the authors' code imports {error.name}: pip install {error.name}") from None
    finally:
        sys.path.pop(0)
