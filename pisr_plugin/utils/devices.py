"""Copies to a device, and how it and a network compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor of the host; to a GPU through pinned memory, since the host would wait for any other copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else tensor.to(device)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Puts a network and all its modules into evaluation mode for a block."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def precision(tf32: bool) -> Iterator[None]:
    """Sets inside a block whether CUDA computes fp32 convolutions and matrix products in TF32.

    TF32 rounds to 10 bits, differently for each image size. PyTorch allows it for convolutions by default.
    """
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, conv.allow_tf32
    matmul.allow_tf32 = conv.allow_tf32 = tf32
    try:
        yield
    finally:
        matmul.allow_tf32, conv.allow_tf32 = before


def fp32_precision(on_gpu: bool) -> str:
    """Returns in what a device computes fp32 convolutions now: ``fp32``, or ``TF32`` where a GPU may use it."""
    return 'TF32' if on_gpu and torch.backends.cudnn.allow_tf32 else 'fp32'


def is_exporting() -> bool:
    """Whether the network that runs is being exported or traced. Other runtimes have their own fast ways."""
    exporting = getattr(torch.compiler, 'is_exporting', bool)()  # absent before torch 2.7
    return exporting or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


def device_name(on_gpu: bool) -> str:
    """Returns what reports call the device: the GPU's name, or the CPU with its number of threads."""
    return torch.cuda.get_device_name() if on_gpu else f'CPU, {torch.get_num_threads()} threads'
