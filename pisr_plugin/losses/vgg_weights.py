"""The weights of the perceptual loss: one message when they cannot be had."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from basicsr.archs import vgg_arch

from pisr_plugin import checkpoint
from pisr_plugin.errors import CheckpointError

URL = 'https://download.pytorch.org/models/vgg19-dcbb9e9d.pth'


@contextmanager
def vgg_weights_told(place: str) -> Iterator[None]:
    """Says where VGG19's weights belong when a loss built within lacks them.

    BasicSR's ``PerceptualLoss`` takes them from a file, or lets torchvision download them and keep them for later.

    Args:
        place: Option path of the loss.

    Raises:
        CheckpointError: they are neither there nor to be had, or damaged.
    """
    file = vgg_arch.VGG_PRETRAIN_PATH
    try:
        if os.path.exists(file):
            checkpoint.load_file_safely(file)  # BasicSR's way of reading it may run code
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*(pretrained|weight enum)', UserWarning, 'torchvision')
            yield
    except (OSError, RuntimeError, CheckpointError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{place}: VGG19's weights cannot be loaded: {reason}\nThey are looked for in {file}, from the current "
            f'folder, and else downloaded. Without a connection put {URL} there.'
        ) from None
