"""Links: named comparisons between a teacher's feature and a student's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pisr_plugin.distill.taps import Tap, TapReader
from pisr_plugin.utils.devices import evaluating
from pisr_plugin.utils.errors import OptionsError, TapError, did_you_mean, located

SCALE_ESTIMATOR = {'type': 'LocationScale'}  # the estimator of a loss that requires a scale, where options name none


@dataclass
class Link:
    """One comparison: ``loss(estimator(student feature), teacher feature)``.

    Attributes:
        name: Name in logs and overrides.
        student: Tap in the student.
        teacher: Tap in the teacher.
        estimator: Network on the student's feature; None compares the feature itself.
        loss: Called as ``loss(estimate, target)``; returns a weighted scalar.
        from_iter: First iteration (counted from 1) in which the loss counts.
        to_iter: Last iteration in which it counts; None: the last of the training.
    """

    name: str
    student: str
    teacher: str
    estimator: nn.Module | None
    loss: nn.Module
    from_iter: int = 0
    to_iter: int | None = None

    def active(self, current_iter: int) -> bool:
        """Returns whether the loss counts in this iteration."""
        return self.from_iter <= current_iter and (self.to_iter is None or current_iter <= self.to_iter)

    def __call__(self, estimate: Tensor | tuple[Tensor, ...], target: Tensor, active: bool = True) -> Tensor:
        """Returns the loss of this link, 0 when it is not active.

        Args:
            estimate: What the estimator returned, or the student's feature.
            target: The teacher's feature.
            active: Whether the loss counts.
        """
        value = self.loss(estimate, target)
        # Multiplied, not skipped: under DDP every parameter must get a gradient in every step.
        return value if active else value * 0.0


class LinkedNetwork(nn.Module):
    """The student and the estimators on its taps as one module.

    Both are trained, so DistributedDataParallel must wrap both: it would not synchronise an estimator outside.

    Args:
        net: The student. Its own state dict contains no estimator.
        links: Links whose estimates this network returns.

    Example::

        linked = LinkedNetwork(student, links)
        sr, estimates = linked(lq)
        loss = sum(link(estimates[link.name], features[link.teacher]) for link in links)
    """

    def __init__(self, net: nn.Module, links: Sequence[Link] = ()) -> None:
        super().__init__()
        self.net = net
        self.estimators = nn.ModuleDict({link.name: link.estimator for link in links if link.estimator is not None})
        self.taps = {link.name: link.student for link in links}
        self.reader = TapReader(net, self.taps.values()).attach()

    def forward(self, *inputs: Tensor) -> tuple[object, dict[str, Tensor | tuple[Tensor, ...]]]:
        """Returns the student's output and ``{link: estimate of the teacher's feature}``."""
        if not self.taps:
            return self.net(*inputs), {}
        with self.reader.reading() as features:
            output = self.net(*inputs)
        estimates = {}
        for name, tap in self.taps.items():
            estimates[name] = self.estimators[name](features[tap]) if name in self.estimators else features[tap]
        return output, estimates


def default_teacher_tap(teacher: nn.Module, student_tap: str) -> str:
    """Returns the tap of the teacher that corresponds to a tap of the student.

    That is the same path inside the teacher's decoder. A teacher without it: its declared tap, or else the same path.
    The student's output corresponds to the teacher's output.

    Args:
        teacher: The network to tap.
        student_tap: Tap in the student.
    """
    if not Tap.parse(student_tap).path:
        return student_tap
    in_decoder = f'decoder.{student_tap}'
    try:
        TapReader(teacher, [in_decoder])
        return in_decoder
    except TapError:
        return getattr(teacher, 'default_tap', student_tap)


def build_links(
    options: Mapping[str, Mapping],
    student: nn.Module,
    teacher: nn.Module,
    student_inputs: Sequence[Tensor],
    teacher_inputs: Sequence[Tensor],
    build_estimator: Callable[[str, dict], nn.Module] | None = None,
    build_loss: Callable[[str, dict], nn.Module] | None = None,
    option_path: str = 'distill_opt',
) -> list[Link]:
    """Builds links, and checks with one forward pass that each of them trains the student.

    Losses can be exchanged without touching the estimator. For a loss that takes one tensor the location branch of
    ``LocationScale`` is used alone; a loss that requires a scale and has no estimator gets a ``LocationScale``.

    Args:
        options: ``{name: {student, teacher, estimator, loss}}``; taps default to those that the networks declare.
        student: The network to train.
        teacher: The network it learns from.
        student_inputs: Images for the student, (N, C, H, W), a small batch.
        teacher_inputs: The same images as the teacher sees them.
        build_estimator: Called with option path and options, which then contain ``in_ch`` and ``out_ch``; by default
            it builds what is registered with BasicSR.
        build_loss: Called with option path and options; by default it builds what is registered with BasicSR.
        option_path: Option path of ``options``, for messages.

    Returns:
        The links in the order of ``options``.

    Raises:
        TapError: a tap is unknown, or its feature does not fit.
        OptionsError: a loss cannot use what the estimator returns, or gives the student no gradient.
    """
    build_estimator, build_loss = build_estimator or _build_registered_network, build_loss or _build_registered_loss
    links = []
    for name, option in options.items():
        place = f'{option_path}.{name}'
        student_tap, teacher_tap = _taps(option or {}, student, teacher, place)
        feature = _feature(student, student_tap, student_inputs, f'{place}.student')
        with torch.no_grad():
            target = _feature(teacher, teacher_tap, teacher_inputs, f'{place}.teacher')
        if feature.shape[2:] != target.shape[2:]:
            raise TapError(
                f'{place}: the features differ in size: student {student_tap} gives {tuple(feature.shape)}, '
                f'teacher {teacher_tap} gives {tuple(target.shape)}. Tap modules of equal resolution.'
            )
        loss_option = dict(option['loss'])
        from_iter, to_iter = loss_option.pop('from_iter', None) or 0, loss_option.pop('to_iter', None)
        loss = build_loss(f'{place}.loss', loss_option).to(feature.device)
        estimator = None
        estimator_option = option.get('estimator') or (SCALE_ESTIMATOR if _requires_scale(loss) else None)
        if estimator_option:
            widths = {'in_ch': feature.shape[1], 'out_ch': target.shape[1]}
            estimator = build_estimator(f'{place}.estimator', {**estimator_option, **widths}).to(feature.device)
        link = Link(name, student_tap, teacher_tap, _fitted(estimator, loss, place), loss, from_iter, to_iter)
        _check_trains(link, feature, target, place)
        links.append(link)
    return links


def _build_registered_network(_: str, option: dict) -> nn.Module:
    from basicsr.archs import build_network  # only here: the rest of this package needs nothing but torch

    return build_network(option)


def _build_registered_loss(_: str, option: dict) -> nn.Module:
    from basicsr.losses import build_loss

    return build_loss(option)


def _taps(option: Mapping, student: nn.Module, teacher: nn.Module, option_path: str) -> tuple[str, str]:
    """Returns the taps of a link in student and teacher."""
    student_tap = option.get('student') or getattr(student, 'default_tap', None)
    if student_tap is None:
        modules = [path for path, _ in student.named_modules() if path]
        raise TapError(
            f'{option_path}.student: {type(student).__name__} declares no default tap; name one. '
            f'Possible: {", ".join(modules)}'
        )
    return student_tap, option.get('teacher') or default_teacher_tap(teacher, student_tap)


def _requires_scale(loss: nn.Module) -> bool:
    return getattr(loss, 'requires_scale', False)


def _fitted(estimator: nn.Module | None, loss: nn.Module, option_path: str) -> nn.Module | None:
    """Returns the part of the estimator that the loss uses: all of it, or its location branch alone."""
    location = getattr(estimator, 'location', None)
    if location is None or _requires_scale(loss):
        return estimator
    # Without its scale branch: under DDP every parameter must get a gradient, and it would only cost time.
    logging.getLogger('basicsr').info(
        f'{option_path}: {type(loss).__name__} takes no scale, so the location branch of '
        f'{type(estimator).__name__} is trained alone.'
    )
    return location


def _feature(net: nn.Module, tap: str, inputs: Sequence[Tensor], option_path: str) -> Tensor:
    with located(option_path), evaluating(net):  # or the trial would change batch statistics
        return TapReader(net, [tap]).read(*inputs)[tap]


def _check_trains(link: Link, feature: Tensor, target: Tensor, option_path: str) -> None:
    probe = feature.detach().requires_grad_()
    estimate = probe if link.estimator is None else link.estimator(probe)
    what = type(link.loss).__name__
    try:
        value = link.loss(estimate, target)
    except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError) as error:
        hint = f' Write {option_path}.estimator: {{type: LocationScale}}.' if _requires_scale(link.loss) else ''
        raise OptionsError(
            f'{option_path}: {what} cannot compare student {link.student} {tuple(feature.shape)} with teacher '
            f'{link.teacher} {tuple(target.shape)}: {error}{hint}'
        ) from None
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise OptionsError(f'{option_path}.loss: {what} does not return a scalar. Use reduction mean or sum.')
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, probe, allow_unused=True)
    if gradient is None:
        raise OptionsError(
            f'{option_path}.loss: {what} carries no gradient to the student, so this link would train nothing.'
        )


def transfer_weights(
    mapping: Mapping[str, str], teacher: nn.Module, student: nn.Module, option_path: str = 'weight_transfer'
) -> list[str]:
    """Copies all tensors of modules of the teacher into modules of the student (PISR, section 3.2).

    Args:
        mapping: ``{module of the teacher: module of the student}``, dotted paths; ``.`` is the whole network.
        teacher: Network to copy from.
        student: Network to copy to.
        option_path: Option path of ``mapping``, for messages.

    Returns:
        Names of the copied tensors in the student.

    Raises:
        OptionsError: a module does not exist, or the two modules differ in keys or shapes.
    """
    copied = []
    for source_path, target_path in mapping.items():
        source = _submodule(teacher, source_path, option_path)
        target = _submodule(student, target_path, option_path)
        ours, theirs = source.state_dict(), target.state_dict()
        differing = sorted(
            key
            for key in ours.keys() | theirs.keys()
            if key not in ours or key not in theirs or ours[key].shape != theirs[key].shape
        )
        if differing:
            raise OptionsError(
                f'{option_path}: {source_path} of the teacher ({type(source).__name__}) and {target_path} of the '
                f'student ({type(target).__name__}) are different networks: {len(differing)} tensors '
                f'differ, first {differing[0]}.'
            )
        target.load_state_dict(ours)
        copied += [key if target_path == '.' else f'{target_path}.{key}' for key in ours]
    return copied


def _submodule(net: nn.Module, path: str, option_path: str) -> nn.Module:
    try:
        return net if path == '.' else net.get_submodule(path)
    except AttributeError:
        raise OptionsError(
            f'{option_path}: {type(net).__name__} has no module {path!r}. '
            f'{did_you_mean(path, [name for name, _ in net.named_children()])}'
        ) from None
