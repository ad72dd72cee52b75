"""The gradient that each loss term of a stage gives the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pisr_plugin.models.pisr_model import PISRModel


class GradientStats(NamedTuple):
    """One loss term and its gradient.

    Attributes:
        value: Value of the term, its weight included.
        norm: L2 norm of its gradient with respect to all parameters of the network.
        cosine: Cosine of the angle between its gradient and that of the first term, -1 to 1.
    """

    value: float
    norm: float
    cosine: float


def gradient_stats(
    model: PISRModel, batches: Sequence[dict[str, Tensor]], current_iter: int
) -> dict[str, GradientStats]:
    """Returns value and gradient of each loss term, means over batches. The model is not changed.

    Args:
        model: The model of a stage.
        batches: Batches as its dataset returns them.
        current_iter: Number of the iteration, which decides which links count.
    """
    step = model.training_step
    parameters = [p for p in model.net.parameters() if p.requires_grad]
    values: dict[str, float] = {}
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        model.feed_data(batch)
        if model.degradation:
            model.feed_data(model.degradation(model.batch, current_iter + number))
        features = step.teacher_features(model.batch) if step.teacher_features else {}
        losses, sr = step.training_losses(model.batch, features, [link.active(current_iter) for link in model.links])
        if step.gan_step:
            losses['l_gan'] = step.gan_step.loss(sr)
        for name, loss in losses.items():
            values[name] = values.get(name, 0) + loss.item() / len(batches)
            sums[name] = sums.get(name, 0) + _gradient(loss, parameters)
    first = next(iter(sums.values()))
    return {
        name: GradientStats(
            values[name],
            (gradient.norm() / len(batches)).item(),
            torch.nn.functional.cosine_similarity(gradient, first, dim=0, eps=0).nan_to_num().item(),
        )
        for name, gradient in sums.items()
    }


def to_markdown(when: str, found: Mapping[str, GradientStats]) -> str:
    """Returns a table of the terms. A share is the term's norm over the sum of all norms.

    Args:
        when: Heading of the first column.
        found: Return value of :func:`gradient_stats`.
    """
    total = sum(stats.norm for stats in found.values()) or 1
    lines = [f'| {when} | value | gradient | share | cosine with {next(iter(found))} |', '|---|---|---|---|---|']
    for name, (value, norm, cosine) in found.items():
        lines.append(f'| {name} | {value:.3g} | {norm:.3g} | {norm / total:.2g} | {cosine:.2f} |')
    return '\n'.join(lines) + '\n'


def _gradient(loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """Returns all gradients as one float64 vector, 0 for parameters that the term does not depend on."""
    parameters = list(parameters)
    if not loss.requires_grad:  # a link that is not active
        return torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten().double() for gradient in found])
