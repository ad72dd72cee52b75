"""Whether two training steps do the same: losses, gradients and weights after one step, against float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.workload import iterate
from pisr_plugin.models.pisr_model import PISRModel


@dataclass
class Outcome:
    """What one step left: its loss, and gradients and weights of the networks, then of the estimators."""

    loss: float
    gradients: list[Tensor]
    weights: list[Tensor]
    networks: int  # how many of the tensors belong to networks; the others are the estimators'

    def errors(self, reference: Outcome) -> dict[str, float]:
        """Relative errors against a reference.

        ``gradient_error`` and ``estimator_gradient_error`` are of all tensors taken as one vector. The second is apart
        because the distillation loss's gradients, weighted 1e-6, vanish beside those of the reconstruction loss.
        ``weight_error`` is the worst tensor's.
        """
        errors = {
            'loss_error': abs(self.loss - reference.loss) / abs(reference.loss),
            'gradient_error': _relative(self.gradients[: self.networks], reference.gradients[: self.networks]),
        }
        if self.networks < len(self.gradients):
            errors['estimator_gradient_error'] = _relative(
                self.gradients[self.networks :], reference.gradients[self.networks :]
            )
        errors['weight_error'] = max(_relative([a], [b]) for a, b in zip(self.weights, reference.weights, strict=True))
        return errors


def step_of_ours(model: PISRModel, batch: Mapping[str, Tensor]) -> Outcome:
    """Runs our first step on a batch."""
    iterate(model, batch, current_iter=1)
    networks, estimators = list(model.net.parameters()), list(model.estimators.parameters())
    return _outcome(sum(model.get_current_log().values()), [*networks, *estimators], len(networks))


def step_of_plain(loop: plain.Loop, batch: Mapping[str, Tensor]) -> Outcome:
    """Runs a plain loop's first step on a batch."""
    parameters = loop.parameters()
    network = next(iter(loop.modules.values()))  # the others are estimators
    loss = loop.step({key: value.to(parameters[0].dtype) for key, value in batch.items()})
    return _outcome(loss.item(), parameters, len(list(network.parameters())))


def _outcome(loss: float, parameters: Sequence[Tensor], networks: int) -> Outcome:
    return Outcome(
        loss,
        [parameter.grad.detach().double().clone() for parameter in parameters],
        [parameter.detach().double().clone() for parameter in parameters],
        networks,
    )


def _relative(values: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    difference = torch.cat([(a - b).flatten() for a, b in zip(values, reference, strict=True)])
    return (difference.norm() / torch.cat([b.flatten() for b in reference]).norm()).item()
