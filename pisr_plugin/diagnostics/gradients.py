"""The gradient that each loss term of a stage gives the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from basicsr.models.base_model import BaseModel
from torch import Tensor

from pisr_plugin.archs.network_info import required_inputs
from pisr_plugin.models.pisr_model import PISRModel
from pisr_plugin.models.step import TrainingLosses
from pisr_plugin.utils import random_state

WEAK = 1e-3  # share of the gradient below which a link hardly trains the student
_IMAGES = 4  # of a batch are enough to find a weak link


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
    """Returns value and gradient of each loss term, means over batches, in float32.

    Changes neither the model nor the random state, and works on one rank alone.

    Args:
        model: The model of a stage.
        batches: Batches as its dataset returns them.
        current_iter: Number of the iteration, which decides which links count.
    """
    step = model.training_step
    # float32, since small gradients are 0 in float16 without loss scaling; without DistributedDataParallel
    training_losses = TrainingLosses(
        model.get_bare_model(model.linked),
        model.links,
        required_inputs(model.net),
        model.cri_pix,
        model.cri_imitation,
        cri_perceptual=model.cri_perceptual,
        return_sr=bool(step.gan_step),
    )
    parameters = [p for p in model.net.parameters() if p.requires_grad]
    values: dict[str, float] = {}
    sums: dict[str, Tensor] = {}
    with _buffers_preserved(model), random_state.preserved():
        for number, batch in enumerate(batches):
            model.feed_data(batch)
            if model.degradation:
                model.feed_data(model.degradation(model.batch, current_iter + number))
            features = step.teacher_features(model.batch) if step.teacher_features else {}
            losses, sr = training_losses(model.batch, features, [link.active(current_iter) for link in model.links])
            if step.gan_step:
                assert sr is not None
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


def weak_links(model: BaseModel, batch: Mapping[str, Any], current_iter: int) -> dict[str, float]:
    """Returns for each link with less than :data:`WEAK` of the gradient its share, measured on a few images.

    A link that does not count in this iteration is left out. Changes neither the model nor the random state.

    Args:
        model: The model of a stage. One without links has no weak ones.
        batch: A batch as its dataset returns it.
        current_iter: Number of the iteration.
    """
    links = [link for link in getattr(model, 'links', ()) if link.active(current_iter)]
    if not links:
        return {}
    assert isinstance(model, PISRModel)  # no other model has links
    if model.training_step.gather:  # the batch holds no images yet
        batch = model.training_step.gather(batch['indices'])
    images = {key: value[:_IMAGES] for key, value in batch.items() if isinstance(value, Tensor)}
    shares = _shares(gradient_stats(model, [images], current_iter))
    found = {link.name: shares[f'l_distill_{link.name}'] for link in links}
    return {name: share for name, share in found.items() if share < WEAK}


def _shares(found: Mapping[str, GradientStats]) -> dict[str, float]:
    """Returns each term's norm over the sum of all norms."""
    total = sum(stats.norm for stats in found.values()) or 1
    return {name: stats.norm / total for name, stats in found.items()}


@contextmanager
def _buffers_preserved(model: PISRModel) -> Iterator[None]:
    """Resets what a forward pass may change, such as the statistics of batch norm, at the end of the block."""
    modules = [model.linked, *(link.loss for link in model.links), *([model.net_d] if model.net_d else [])]
    buffers = [buffer for module in modules for buffer in module.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before):
            buffer.copy_(value)


def to_markdown(when: str, found: Mapping[str, GradientStats]) -> str:
    """Returns a table of the terms. A share is the term's norm over the sum of all norms.

    Args:
        when: Heading of the first column.
        found: Return value of :func:`gradient_stats`.
    """
    shares = _shares(found)
    lines = [f'| {when} | value | gradient | share | cosine with {next(iter(found))} |', '|---|---|---|---|---|']
    for name, (value, norm, cosine) in found.items():
        lines.append(f'| {name} | {value:.3g} | {norm:.3g} | {shares[name]:.2g} | {cosine:.2f} |')
    return '\n'.join(lines) + '\n'


def _gradient(loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """Returns all gradients as one float64 vector, 0 for parameters that the term does not depend on."""
    parameters = list(parameters)
    if not loss.requires_grad:  # a link that is not active
        return torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten().double() for gradient in found])
