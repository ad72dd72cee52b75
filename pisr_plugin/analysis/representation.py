"""Show which degradations a network's representation tells apart, and how far it is from its teacher's.

``python tools/representation.py experiments/kdsr_m_x4/teacher experiments/kdsr_m_x4/student -o representation.png``
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from basicsr.data import build_dataset
from torch import Tensor, nn

from pisr_plugin.archs.traits import input_names
from pisr_plugin.data.blurred_dataset import BlurredImageDataset
from pisr_plugin.distill.taps import TapReader
from pisr_plugin.engine import cli
from pisr_plugin.engine.runtime import make_folder, quiet
from pisr_plugin.errors import DataError, OptionsError
from pisr_plugin.inference import load
from pisr_plugin.losses.representation_loss import RepresentationKLLoss


def main(argv: list[str] | None = None) -> int:
    """Command line of ``tools/representation.py`` and ``pisr-representation``."""
    parser = argparse.ArgumentParser(description='Show which degradations networks tell apart.')
    parser.add_argument(
        'runs', nargs='+', metavar='[NAME=]RUN', help='folders of trained stages; the teacher, if any, first'
    )
    parser.add_argument('--hr', metavar='DIR', help="folder of HR images (default: the first run's test set)")
    parser.add_argument('--tap', help='what to read (default: what the network declares)')
    parser.add_argument('--temperature', type=float, default=0.15, help='of the distances to the first run')
    parser.add_argument('-o', '--output', type=Path, required=True, metavar='FILE', help='picture, PNG or SVG')
    cli.add_plugin_flag(parser)
    args = parser.parse_args(argv)
    return cli.run(lambda: compare(args))


def compare(args: argparse.Namespace) -> int:
    """Reads the representations of all runs, prints a table, draws them and returns the exit code."""
    cli.require('the picture', ['matplotlib'])
    from pisr_plugin.report import figures

    cli.import_plugins(args.plugin)
    runs = {name: _options(folder) for name, folder in map(_named, args.runs)}
    dataset = _test_set(next(iter(runs.values()))[1], args.hr)
    degradations = _degradations(dataset)
    found = {}
    for name, (folder, options) in runs.items():
        label = 'g' if options.get('network_g') else 't'
        key = 'params_ema' if (options.get('train') or {}).get('ema_decay') else 'params'
        with quiet():
            net = load(options[f'network_{label}'], folder / f'models/net_{label}_latest.pth', key, sees_gt=True)
        tap = args.tap or getattr(net, 'default_tap', None)
        if tap is None:
            raise OptionsError(f'{folder}: {type(net).__name__} declares no tap; name one with --tap.')
        found[name] = representations(net, tap, dataset, len(degradations))

    first, teacher = next(iter(found.items()))
    loss = RepresentationKLLoss(temperature=args.temperature)
    print(
        f'{len(teacher)} images, {len(degradations)} degradations; by chance {1 / len(degradations):.2f} would be told'
    )
    print(f'| network | told apart | KL from {first} |\n|---|---|---|')
    for name, vectors in found.items():
        same = vectors.shape == teacher.shape
        distance = f'{loss(vectors.flatten(0, 1), teacher.flatten(0, 1)).item():.4f}' if same else '-'
        print(f'| {name} | {told_apart(vectors):.2f} | {distance} |')
    make_folder(args.output.absolute().parent)
    points = {name: principal(vectors).numpy() for name, vectors in found.items()}
    figures.save(figures.clusters(points, degradations, figures.PAPER), args.output)
    print(f'Saved {args.output}')
    return 0


@torch.no_grad()
def representations(net: nn.Module, tap: str, dataset: BlurredImageDataset, count: int) -> Tensor:
    """What a network's tap gives for each image under each degradation.

    Args:
        net: In evaluation mode.
        tap: Of a vector for each image; a map is averaged over its positions.
        dataset: Its images in order, each under all degradations.
        count: How many degradations that are.

    Returns:
        (images, degradations, channels), float32, on the CPU.
    """
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    net, names = net.to(device), input_names(net)
    reader = TapReader(net, [tap]).attach()
    vectors = []
    for sample in dataset:
        feature = reader.read(*(sample[name][None].to(device) for name in names))[tap]
        vectors.append(feature[0].flatten(1).mean(1) if feature.ndim > 2 else feature[0])
    return torch.stack(vectors).float().cpu().unflatten(0, (-1, count))


def told_apart(vectors: Tensor) -> float:
    """Share of representations that are nearest to the mean, over all other images, of their own degradation.

    Args:
        vectors: (images, degradations, channels), at least two images.
    """
    count = len(vectors)
    means = (vectors.sum(0) - vectors) / (count - 1)  # (images, degradations, channels): each without the image itself
    nearest = torch.cdist(vectors, means).argmin(2)
    return (nearest == torch.arange(vectors.shape[1])).float().mean().item()


def principal(vectors: Tensor) -> Tensor:
    """The two principal components of all representations, (images, degradations, 2)."""
    flat = vectors.flatten(0, 1).double()
    flat = flat - flat.mean(0)
    axes = torch.linalg.svd(flat, full_matrices=False).Vh[:2]
    axes = axes * axes.sum(1, keepdim=True).sign()  # a sign of its own choice would mirror the picture at random
    return (flat @ axes.T).unflatten(0, vectors.shape[:2])


def _named(entry: str) -> tuple[str, Path]:
    name, equals, folder = entry.partition('=')
    return (name, Path(folder)) if equals else (Path(entry).name, Path(entry))


def _options(folder: Path) -> tuple[Path, dict]:
    path = folder / 'options.yml'
    try:
        options = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(
            f'{path}: {getattr(error, "strerror", None) or "cannot be read"}. A run is a folder that '
            'training has made, such as experiments/kdsr_m_x4/student.'
        ) from None
    if not isinstance(options, Mapping) or not (options.get('network_g') or options.get('network_t')):
        raise DataError(f'{path}: names no network.')
    return folder, dict(options)


def _test_set(options: dict, hr: str | None) -> BlurredImageDataset:
    """The test set with known degradations of a run, or of other images under the same degradations."""
    for entry in (options.get('datasets') or {}).values():
        if entry.get('type') == BlurredImageDataset.__name__:
            changes = {'dataroot_gt': hr, 'io_backend': {'type': 'disk'}} if hr else {}
            with quiet():
                return build_dataset({**entry, **changes, 'scale': options['scale'], 'phase': 'val'})
    raise OptionsError(f'datasets: no test set of type {BlurredImageDataset.__name__}, whose degradations are known.')


def _degradations(dataset: BlurredImageDataset) -> list[str]:
    """What the degradations are called, in the order in which each image has them."""
    count = len(dataset.kernels) * len(dataset.noise)
    if len(dataset) < 2 * count:
        raise DataError('At least two images are needed to see whether degradations are told apart.')
    names = []
    for index in range(count):
        sample = dataset[index]
        names.append(Path(sample['lq_path']).stem.removeprefix(f'{Path(sample["gt_path"]).stem}_'))
    return names
