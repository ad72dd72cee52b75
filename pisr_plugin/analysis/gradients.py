"""Show how strongly each loss term of a stage pulls at the network: is a weight large enough to be felt?

``python tools/gradients.py -opt options/pisr_fsrcnn_x2.yml --stage student``
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from basicsr.data import build_dataset
from torch import Tensor

from pisr_plugin.data.feed import make_feed
from pisr_plugin.engine import cli
from pisr_plugin.engine.runtime import quiet, runtime_options
from pisr_plugin.engine.train import build_trial, preflight
from pisr_plugin.errors import OptionsError
from pisr_plugin.models.pisr_model import PISRModel


class Pull(NamedTuple):
    """What one loss term does to the trained network.

    Attributes:
        value: The term, its weight included.
        norm: L2 norm of its gradient for all parameters of the network together.
        cosine: Between its gradient and the first term's.
    """

    value: float
    norm: float
    cosine: float


def main(argv: list[str] | None = None) -> int:
    """Command line of ``tools/gradients.py`` and ``pisr-gradients``."""
    parser = cli.recipe_parser('Show how strongly each loss term pulls at the network that a stage trains.')
    parser.add_argument('--batches', type=int, default=4, metavar='N', help='training batches to average over (4)')
    args = parser.parse_args(argv)
    return cli.run(lambda: gradients(args))


def gradients(args: argparse.Namespace) -> int:
    """Prints a table for the beginning of the stage, and one for its end if it is finished; returns the exit code."""
    if args.batches < 1:
        raise OptionsError(f'--batches {args.batches}: at least 1.')
    stage = cli.load_stage(args)
    preflight([stage])
    opt = runtime_options(stage, stage.folder, is_train=True)
    opt['train'] = {key: value for key, value in opt['train'].items() if key != 'compile'}
    model = build_trial(opt, ())
    if not isinstance(model, PISRModel):
        raise OptionsError(f'model_type: {opt["model_type"]}; the terms of a PISRModel are known, not of others.')
    block = opt['datasets']['train']
    with quiet():
        dataset = build_dataset(block)
    with make_feed(dataset, block, seed=opt['manual_seed'], device=model.device) as feed:
        batches = [next(feed) for _ in range(args.batches)]

    print(f'{stage.name or stage.options["name"]}, {args.batches} batches of {block["batch_size_per_gpu"]}')
    print(to_markdown('at the beginning', pulls(model, batches, 1)))
    if stage.checkpoint.is_file():
        with quiet():
            model.load_network(model.net, str(stage.checkpoint))
            if len(model.estimators):
                model.load_network(model.estimators, str(stage.checkpoint.with_name('net_e_latest.pth')))
        print(to_markdown('at the end', pulls(model, batches, opt['train']['total_iter'])))
    return 0


def pulls(model: PISRModel, batches: Sequence[Mapping[str, Tensor]], current_iter: int) -> dict[str, Pull]:
    """Value and gradient of each loss term, means over batches; nothing is changed.

    Args:
        model: A stage.
        batches: As its data set gives them.
        current_iter: Decides which links count.
    """
    step = model.training_step
    parameters = [p for p in model.net.parameters() if p.requires_grad]
    values: dict[str, float] = {}
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        model.feed_data(batch)
        if model.degradation:
            model.feed_data(model.degradation(model.batch, current_iter + number))
        targets = step.targets(model.batch) if step.targets else {}
        losses, shown = step.objective(model.batch, targets, [link.active(current_iter) for link in model.links])
        if step.adversary:
            losses['l_gan'] = step.adversary.loss(shown)
        for name, loss in losses.items():
            values[name] = values.get(name, 0) + loss.item() / len(batches)
            sums[name] = sums.get(name, 0) + _gradient(loss, parameters)
    first = next(iter(sums.values()))
    return {
        name: Pull(
            values[name],
            (gradient.norm() / len(batches)).item(),
            torch.nn.functional.cosine_similarity(gradient, first, dim=0, eps=0).nan_to_num().item(),
        )
        for name, gradient in sums.items()
    }


def to_markdown(when: str, found: Mapping[str, Pull]) -> str:
    """A table of the terms; shares are of the sum of all norms."""
    total = sum(pull.norm for pull in found.values()) or 1
    lines = [f'| {when} | value | gradient | share | cosine with {next(iter(found))} |', '|---|---|---|---|---|']
    for name, (value, norm, cosine) in found.items():
        lines.append(f'| {name} | {value:.3g} | {norm:.3g} | {norm / total:.2g} | {cosine:.2f} |')
    return '\n'.join(lines) + '\n'


def _gradient(loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """All gradients in one vector, float64; zero where the term does not depend on a parameter."""
    parameters = list(parameters)
    if not loss.requires_grad:  # a link that does not count now
        return torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten().double() for gradient in found])
