"""What each distillation loss costs, estimator included, forward and backward: the cost table of docs/losses.md.

``python -m benchmarks.losses --size 1 56 96 96``
"""

from __future__ import annotations

import argparse
import time

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.operators import OperatorCount
from pisr_plugin.archs.fsrcnn_arch import FSRCNN
from pisr_plugin.distill.estimators import Adapter, LocationFreeScale, LocationScale

ROWS = [
    ('FeatureMAELoss', {}, None),
    ('FeatureMAELoss', {}, Adapter),
    ('HintLoss', {}, Adapter),
    ('AttentionTransferLoss', {}, None),
    ('StatisticalMapLoss', {}, None),
    ('FeatureAffinityLoss', {'pool': 2}, None),
    ('FeatureAffinityLoss', {}, None),
    ('FeatureAffinityLoss', {'kind': 'channel'}, None),
    ('FrequencyLoss', {}, None),
    ('FrequencyLoss', {'part': 'amplitude'}, None),
    ('FocalFrequencyLoss', {}, None),
    ('RepresentationKLLoss', {}, None),
    ('VIDLaplaceLoss', {}, LocationScale),
    ('VIDLaplaceLoss', {}, LocationFreeScale),
    ('VIDGaussianLoss', {}, LocationScale),
]


def step(estimator: nn.Module | None, loss: nn.Module, feature: Tensor, target: Tensor) -> None:
    feature.grad = None
    loss(estimator(feature) if estimator else feature, target).backward()


def saved_bytes(estimator: nn.Module | None, loss: nn.Module, feature: Tensor, target: Tensor) -> int:
    """Memory that is kept between forward and backward, without the feature, the target and the parameters."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(estimator(feature) if estimator else feature, target)
    for given in (feature, target, *(estimator.parameters() if estimator else ())):
        storages.pop(given.untyped_storage().data_ptr(), None)
    del value
    return sum(storages.values())


def main() -> None:
    parser = argparse.ArgumentParser(description='Measure what each distillation loss costs.')
    parser.add_argument('--size', nargs=4, type=int, default=(1, 56, 96, 96), metavar=('N', 'C', 'H', 'W'))
    parser.add_argument('--repeat', type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    feature, target = torch.randn(args.size, requires_grad=True), torch.randn(args.size)
    print(f'feature {tuple(args.size)}, torch {torch.__version__}, {torch.get_num_threads()} thread(s), CPU')
    print('| loss | estimator | operators | GFLOPs | MiB kept | ms |\n|---|---|---|---|---|---|')
    for kind, options, estimator_kind in ROWS:
        loss = LOSS_REGISTRY.get(kind)(**options)
        estimator = estimator_kind(in_ch=args.size[1], out_ch=args.size[1]) if estimator_kind else None
        run = (estimator, loss, feature, target)
        step(*run)
        operators, flops = OperatorCount(), FlopCounterMode(display=False)
        with operators:
            step(*run)
        with flops:
            step(*run)
        times = []
        for _ in range(args.repeat):
            start = time.perf_counter()
            step(*run)
            times.append(time.perf_counter() - start)
        label = kind + ''.join(f', {key}: {value}' for key, value in options.items())
        print(
            f'| {label} | {estimator_kind.__name__ if estimator_kind else "none"} | {operators.names.total()} '
            f'| {flops.get_total_flops() / 1e9:.2f} | {saved_bytes(*run) / 2**20:.1f} | {min(times) * 1e3:.1f} |'
        )

    lr, student = torch.rand(args.size[0], 1, *args.size[2:]), FSRCNN(upscale=2)
    with FlopCounterMode(display=False) as flops:
        student(lr).mean().backward()
    print(f'FSRCNN on {tuple(lr.shape)} at x2, forward and backward: {flops.get_total_flops() / 1e9:.2f} GFLOPs')


if __name__ == '__main__':
    main()
