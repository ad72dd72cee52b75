"""Links: named comparisons between a teacher's and a student's feature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pisr_plugin.distill.taps import Tap, TapReader
from pisr_plugin.errors import OptionsError, TapError, choice


@dataclass
class Link:
    """One comparison: ``loss(estimator(student feature), teacher feature)``.

    Attributes:
        name: What logs and overrides call it.
        student: Tap in the student.
        teacher: Tap in the teacher.
        estimator: Network on the student's feature, or None to compare the feature itself.
        loss: Called as ``loss(estimate, target)``; returns a scalar, already weighted.
        from_iter: First iteration (1-based) at which the loss counts.
        to_iter: Last iteration at which it counts; None: to the end.
    """

    name: str
    student: str
    teacher: str
    estimator: nn.Module | None
    loss: nn.Module
    from_iter: int = 0
    to_iter: int | None = None

    def active(self, current_iter: int) -> bool:
        """Whether the loss counts at this iteration."""
        return self.from_iter <= current_iter and (self.to_iter is None or current_iter <= self.to_iter)

    def __call__(self, estimate: Tensor | tuple[Tensor, ...], target: Tensor, active: bool = True) -> Tensor:
        """Returns the loss of this link, zero when it is not active."""
        value = self.loss(estimate, target)
        # Multiplied rather than skipped: under DDP every parameter takes part in every step.
        return value if active else value * 0.0


class LinkedNetwork(nn.Module):
    """A network and the estimators on its taps as one module.

    Both are trained, so both must lie inside whatever synchronises gradients; an estimator left outside
    DistributedDataParallel drifts apart between ranks.

    Args:
        net: The student. Its own state dict stays free of estimators.
        links: The links whose student side this network computes.
    """

    def __init__(self, net: nn.Module, links: Sequence[Link] = ()) -> None:
        super().__init__()
        self.net = net
        self.estimators = nn.ModuleDict({link.name: link.estimator for link in links if link.estimator is not None})
        self.taps = {link.name: link.student for link in links}
        self.reader = TapReader(net, self.taps.values()).attach()

    def forward(self, *inputs: Tensor) -> tuple[object, dict[str, Tensor | tuple[Tensor, ...]]]:
        """Returns the network's own output and ``{link: estimate of the teacher's feature}``."""
        if not self.taps:
            return self.net(*inputs), {}
        with self.reader.reading() as features:
            output = self.net(*inputs)
        estimates = {}
        for name, tap in self.taps.items():
            estimates[name] = self.estimators[name](features[tap]) if name in self.estimators else features[tap]
        return output, estimates


def default_teacher_tap(teacher: nn.Module, student_tap: str) -> str:
    """The place in ``teacher`` that corresponds to ``student_tap``.

    The same path inside the teacher's decoder when there is one, else the teacher's declared tap, else the same path;
    for the student's output the teacher's.
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
    build_estimator: Callable[[str, dict], nn.Module],
    build_loss: Callable[[str, dict], nn.Module],
    place: str = 'distill_opt',
) -> list[Link]:
    """Builds links and proves on one forward pass that each of them can train the student.

    Args:
        options: ``{name: {student, teacher, estimator, loss}}``; taps default to the networks' declared ones.
        student: The network to be trained.
        teacher: The network it learns from.
        student_inputs: A small input of the student, batch first.
        teacher_inputs: The same images as the teacher sees them.
        build_estimator: Called with option path and options, ``in_ch`` and ``out_ch`` included.
        build_loss: Called with option path and options.
        place: Option path of ``options``, for messages.

    Returns:
        The links in the order of ``options``.

    Raises:
        TapError: a tap is unknown or its feature does not fit.
        OptionsError: a loss cannot use what the estimator gives, or carries no gradient to the student.
    """
    return [
        _build_link(
            name,
            dict(option or {}),
            student,
            teacher,
            student_inputs,
            teacher_inputs,
            build_estimator,
            build_loss,
            f'{place}.{name}',
        )
        for name, option in options.items()
    ]


def _build_link(
    name: str,
    option: dict,
    student: nn.Module,
    teacher: nn.Module,
    student_inputs: Sequence[Tensor],
    teacher_inputs: Sequence[Tensor],
    build_estimator: Callable,
    build_loss: Callable,
    place: str,
) -> Link:
    student_tap = option.get('student') or getattr(student, 'default_tap', None)
    if student_tap is None:
        modules = [path for path, _ in student.named_modules() if path]
        raise TapError(
            f'{place}.student: {type(student).__name__} declares no default tap; name one. '
            f'Possible: {", ".join(modules)}'
        )
    teacher_tap = option.get('teacher') or default_teacher_tap(teacher, student_tap)

    feature = _feature(student, student_tap, student_inputs, f'{place}.student')
    with torch.no_grad():
        target = _feature(teacher, teacher_tap, teacher_inputs, f'{place}.teacher')
    if feature.shape[2:] != target.shape[2:]:
        raise TapError(
            f'{place}: the features differ in size: student {student_tap} gives {tuple(feature.shape)}, '
            f'teacher {teacher_tap} gives {tuple(target.shape)}. Tap places of equal resolution.'
        )

    estimator = None
    if option.get('estimator'):
        widths = {'in_ch': feature.shape[1], 'out_ch': target.shape[1]}
        estimator = build_estimator(f'{place}.estimator', {**option['estimator'], **widths})
        estimator.to(feature.device)
    loss_option = dict(option['loss'])
    from_iter, to_iter = loss_option.pop('from_iter', None) or 0, loss_option.pop('to_iter', None)
    loss = build_loss(f'{place}.loss', loss_option).to(feature.device)
    link = Link(name, student_tap, teacher_tap, estimator, loss, from_iter, to_iter)
    _check_trains(link, feature, target, place)
    return link


def _feature(net: nn.Module, tap: str, inputs: Sequence[Tensor], place: str) -> Tensor:
    training = net.training
    net.eval()  # a probe must not move batch statistics
    try:
        feature = TapReader(net, [tap]).read(*inputs)[tap]
    except TapError as error:
        raise TapError(f'{place}: {error}') from None
    finally:
        net.train(training)
    return feature


def _check_trains(link: Link, feature: Tensor, target: Tensor, place: str) -> None:
    probe = feature.detach().requires_grad_()
    estimate = probe if link.estimator is None else link.estimator(probe)
    what = type(link.loss).__name__
    try:
        value = link.loss(estimate, target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionsError(
            f'{place}: {what} cannot compare student {link.student} {tuple(feature.shape)} with teacher '
            f'{link.teacher} {tuple(target.shape)}: {error}'
        ) from None
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise OptionsError(f'{place}.loss: {what} does not return a scalar. Use reduction mean or sum.')
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, probe, allow_unused=True)
    if gradient is None:
        raise OptionsError(
            f'{place}.loss: {what} carries no gradient to the student, so this link would train nothing.'
        )


def transfer_weights(mapping: Mapping[str, str], teacher: nn.Module, student: nn.Module, place: str) -> list[str]:
    """Copies modules of the teacher into the student, every tensor of them (PISR, section 3.2).

    Args:
        mapping: ``{module of the teacher: module of the student}``; ``.`` is the whole network.
        teacher: Where weights come from.
        student: Where they go.
        place: Option path of ``mapping``, for messages.

    Returns:
        The copied tensors' names in the student.

    Raises:
        OptionsError: a module does not exist or the two differ in keys or shapes.
    """
    copied = []
    for source_path, target_path in mapping.items():
        source = _submodule(teacher, source_path, place)
        target = _submodule(student, target_path, place)
        ours, theirs = source.state_dict(), target.state_dict()
        differing = sorted(
            key
            for key in ours.keys() | theirs.keys()
            if key not in ours or key not in theirs or ours[key].shape != theirs[key].shape
        )
        if differing:
            raise OptionsError(
                f'{place}: {source_path} of the teacher ({type(source).__name__}) and {target_path} of the '
                f'student ({type(target).__name__}) are different networks: {len(differing)} tensors '
                f'differ, first {differing[0]}.'
            )
        target.load_state_dict(ours)
        copied += [key if target_path == '.' else f'{target_path}.{key}' for key in ours]
    return copied


def _submodule(net: nn.Module, path: str, place: str) -> nn.Module:
    try:
        return net if path == '.' else net.get_submodule(path)
    except AttributeError:
        raise OptionsError(
            f'{place}: {type(net).__name__} has no module {path!r}. '
            f'{choice(path, [name for name, _ in net.named_children()])}'
        ) from None
