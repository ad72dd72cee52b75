"""How well a network's representation separates degradations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pisr_plugin.archs.network_info import required_inputs
from pisr_plugin.data.datasets.blurred_image_dataset import BlurredImageDataset
from pisr_plugin.distill.taps import TapReader


@torch.no_grad()
def representations(net: nn.Module, tap: str, dataset: BlurredImageDataset, count: int) -> Tensor:
    """Reads the representation of each image under each degradation.

    Args:
        net: A network in evaluation mode.
        tap: Tap of a vector for each image; a map is averaged over its positions.
        dataset: Images in order, each under all degradations.
        count: Number of degradations.

    Returns:
        Tensor (images, degradations, channels), float32, on the CPU.
    """
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    net, names = net.to(device), required_inputs(net)
    reader = TapReader(net, [tap]).attach()
    vectors = []
    for index in range(len(dataset)):
        sample: dict[str, Any] = dataset[index]
        feature = reader.read(*(sample[name][None].to(device) for name in names))[tap]
        vectors.append(feature[0].flatten(1).mean(1) if feature.ndim > 2 else feature[0])
    return torch.stack(vectors).float().cpu().unflatten(0, (-1, count))


def nearest_centroid_accuracy(vectors: Tensor) -> float:
    """Returns the share of representations whose nearest class mean is that of their own degradation, 0 to 1.

    Each class mean is taken over all other images.

    Args:
        vectors: Tensor (images, degradations, channels) of at least two images.
    """
    count = len(vectors)
    means = (vectors.sum(0) - vectors) / (count - 1)  # (images, degradations, channels), each without its image
    nearest = torch.cdist(vectors, means).argmin(2)
    return (nearest == torch.arange(vectors.shape[1])).float().mean().item()


def principal(vectors: Tensor) -> Tensor:
    """Projects all representations onto their two principal components.

    Args:
        vectors: Tensor (images, degradations, channels).

    Returns:
        Tensor (images, degradations, 2).
    """
    flat = vectors.flatten(0, 1).double()
    flat = flat - flat.mean(0)
    axes = torch.linalg.svd(flat, full_matrices=False).Vh[:2]
    axes = axes * axes.sum(1, keepdim=True).sign()  # the sign that svd chooses would mirror the picture at random
    return (flat @ axes.T).unflatten(0, vectors.shape[:2])
