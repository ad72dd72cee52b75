"""What trained networks make of one image: the teacher's compact feature and the estimators' scale maps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from basicsr.utils.color_util import rgb2ycbcr
from torch import Tensor, nn

from pisr_plugin import checkpoint
from pisr_plugin.archs.traits import input_channels, input_names
from pisr_plugin.distill.estimators import Estimate
from pisr_plugin.distill.links import default_teacher_tap
from pisr_plugin.distill.taps import TapReader
from pisr_plugin.engine.runtime import quiet
from pisr_plugin.errors import CheckpointError, OptionsError, PISRError
from pisr_plugin.inference import build, load
from pisr_plugin.report.evaluation import Evaluation, Run
from pisr_plugin.resize import imresize_uint8

MOST_MAPS = 4  # scale maps of more rows than this tell nothing new
BAND = 4  # lines of the spectrum on either side of the u axis that are averaged: a single one is noise
PROBE = 48  # side in pixels of the LR patch on which the width of a teacher's feature is read


@dataclass
class View:
    """One of the images that Fig. 3 compares.

    Attributes:
        kind: ``lr``, ``imitation``, ``free`` (compact feature without imitation loss) or ``hr``.
        name: What to call it.
        picture: (H, W) or (H, W, 3), uint8.
        plane: (H, W), one value for each pixel, 1 is white; it may leave [0, 1].
        pitch: Distance of its pixels in LR pixels.
        stretched: Whether the picture's contrast was stretched, as its values leave [0, 1].
    """

    kind: str
    name: str
    picture: np.ndarray
    plane: np.ndarray
    pitch: float
    stretched: bool = False


@dataclass
class ScaleMap:
    """Mean over channels of an estimator's scale, at LR resolution."""

    title: str
    link: str
    values: np.ndarray


def spectrum(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes along the u axis of a view's 2D spectrum.

    The image is faded out towards its borders, whose jump would otherwise be all that is seen on the axis.

    Returns:
        Frequencies in cycles per LR pixel, and magnitudes divided by the number of pixels.
    """
    height, width = view.plane.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    magnitude = np.abs(np.fft.rfft2((view.plane - view.plane.mean()) * window)) / window.sum()
    rows = np.r_[0 : BAND + 1, -BAND:0] % height
    return np.fft.rfftfreq(width, view.pitch), magnitude[rows].mean(axis=0)


def compact_views(evaluation: Evaluation, truth: np.ndarray) -> list[View]:
    """LR image, the teachers' compact features and HR image; with and without imitation where both were trained.

    Args:
        evaluation: Names the teachers' runs.
        truth: (H, W, 3) HR image, uint8, its sides multiples of the scale.

    Raises:
        PISRError: no run is that of a privileged teacher, or its checkpoint cannot be used; the message says so.
    """
    teachers = _teachers(evaluation)
    if not teachers:
        raise OptionsError('None of the runs is a teacher that squeezes the HR image into a compact feature.')
    scale = evaluation.scale
    channels = input_channels(next(iter(teachers.values()))[0]['network_t'])
    lr = imresize_uint8(truth, 1 / scale)
    views = [View('lr', 'LR image', _display(_tensor(lr, channels))[0], _plane(_tensor(lr, channels)), 1.0)]
    for kind, (options, path) in teachers.items():
        net = _load(options['network_t'], path, options)
        with torch.no_grad():
            output = net(_tensor(truth, input_channels(options['network_t']))[None])
        compact = output.compact[0]
        name = {'imitation': 'compact, with imitation loss', 'free': 'compact, without imitation loss'}[kind]
        if len(teachers) == 1:
            name = 'compact feature' if kind == 'imitation' else 'compact, without imitation loss'
        picture, stretched = _display(compact)
        views.append(View(kind, name, picture, _plane(compact), 1.0, stretched))
    hr = _tensor(truth, channels)
    return [*views, View('hr', 'HR image', _display(hr)[0], _plane(hr), 1 / scale)]


def scale_maps(evaluation: Evaluation, truth: np.ndarray) -> list[ScaleMap]:
    """Scale maps that the rows' estimators give for one image.

    Args:
        evaluation: Names the students' runs; of several seeds the first is taken.
        truth: (H, W, 3) HR image, uint8.

    Raises:
        PISRError: no row has an estimator whose scale differs from place to place; the message says so.
    """
    lr = imresize_uint8(truth, 1 / evaluation.scale)
    maps, problems = [], []
    for row in evaluation.rows:
        for run in row.runs:
            options = _options(run)
            if not options.get('network_g') or not _section(options, 'distill_opt'):
                continue
            try:
                found = _maps_of(run, options, lr)
            except PISRError as error:
                problems.append(str(error))
                continue
            maps += [ScaleMap(row.title, link, values) for link, values in found.items()]
            break
    if not maps:
        raise OptionsError(problems[0] if problems else 'No student was trained with an estimator of a scale map.')
    return maps[:MOST_MAPS]


def _teachers(evaluation: Evaluation) -> dict[str, tuple[dict, Path]]:
    """Options and checkpoint of one teacher with and one without imitation loss, those of them that exist."""
    found: dict[str, tuple[dict, Path]] = {}
    for row in evaluation.rows:
        for run in row.runs:
            options = _options(run)
            network = options.get('network_t') or {}
            if options.get('network_g') or 'decoder' not in network:
                continue
            imitation = _section(options, 'imitation_opt')
            kind = 'imitation' if imitation and imitation.get('loss_weight', 1) else 'free'
            path = run.folder / 'models' / 'net_t_latest.pth'
            if path.is_file():
                found.setdefault(kind, (options, path))
    return {kind: found[kind] for kind in ('imitation', 'free') if kind in found}


def _maps_of(run: Run, options: dict, lr: np.ndarray) -> dict[str, np.ndarray]:
    """``{link: scale map}`` of one student; links whose scale is the same everywhere are left out."""
    models = run.folder / 'models'
    path = models / 'net_g_latest.pth'
    student = _load(options['network_g'], path if path.is_file() or not run.checkpoint else run.checkpoint, options)
    image = _tensor(lr, input_channels(options['network_g']))[None]
    weights = None
    maps = {}
    for name, link in _section(options, 'distill_opt').items():
        if not (link or {}).get('estimator'):
            continue
        weights = weights or checkpoint.load_weights(models / 'net_e_latest.pth')
        tap = link.get('student') or getattr(student, 'default_tap', None)
        with torch.no_grad(), quiet():
            feature = TapReader(student, [tap]).read(image)[tap]
            width = _width(options, link, tap)
            estimator = build({**link['estimator'], 'in_ch': feature.shape[1], 'out_ch': width})
            own = {key.removeprefix(f'{name}.'): value for key, value in weights.items() if key.startswith(f'{name}.')}
            try:
                estimator.load_state_dict(own)
            except RuntimeError:
                raise CheckpointError(f'{models.name}/net_e_latest.pth does not fit the estimator of {name}.') from None
            estimate = estimator(feature)
        if isinstance(estimate, Estimate) and min(estimate.scale.shape[2:]) > 1:
            maps[name] = estimate.scale[0].mean(0).numpy()
    if not maps:
        raise OptionsError('The estimators give no scale, or one that is the same at every position.')
    return maps


def _width(options: dict, link: dict, student_tap: str) -> int:
    """Channels of the teacher's feature in a link."""
    teacher = build(options['network_t'])
    channels, scale = input_channels(options['network_t']), options['scale']
    patches = {'lq': torch.zeros(1, channels, PROBE, PROBE)}
    patches['gt'] = torch.zeros(1, channels, PROBE * scale, PROBE * scale)
    tap = link.get('teacher') or default_teacher_tap(teacher, student_tap)
    inputs = [patches[name] for name in input_names(teacher)]
    return TapReader(teacher, [tap]).read(*inputs)[tap].shape[1]


def _options(run: Run) -> dict[str, Any]:
    path = run.folder / 'options.yml'
    try:
        options = yaml.safe_load(path.read_text(encoding='utf-8')) if path.is_file() else None
    except (yaml.YAMLError, UnicodeDecodeError):
        options = None  # a damaged file is like none: the run is left out of what needs it
    return options if isinstance(options, dict) else {}


def _section(options: dict, key: str) -> dict:
    return (options.get('train') or {}).get(key) or {}


def _load(network: dict, path: Path, options: dict) -> nn.Module:
    key = 'params_ema' if (options.get('train') or {}).get('ema_decay') else 'params'
    with quiet():
        return load(network, path, key, sees_gt=True)


def _tensor(image: np.ndarray, channels: int) -> Tensor:
    """(C, H, W) in [0, 1]; one channel is BT.601 luminance."""
    array = image.astype(np.float32) / 255
    array = rgb2ycbcr(array, y_only=True)[..., None] if channels == 1 else array
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def _plane(image: Tensor) -> np.ndarray:
    weights = torch.tensor([0.299, 0.587, 0.114]) if len(image) == 3 else torch.full((len(image),), 1 / len(image))
    return torch.einsum('chw,c->hw', image, weights).numpy()


def _display(image: Tensor) -> tuple[np.ndarray, bool]:
    """8-bit picture; where over 5 % of the values leave [0, 1], their 1st to 99th percentile becomes the range."""
    array = image.permute(1, 2, 0).numpy()
    array = array if array.shape[2] == 3 else array.mean(axis=2)
    stretched = bool(((array < 0) | (array > 1)).mean() > 0.05)
    if stretched:
        low, high = np.percentile(array, (1, 99))
        array = (array - low) / max(high - low, 1e-9)
    return (array.clip(0, 1) * 255).round().astype(np.uint8), stretched
