"""The weights of the perceptual loss: one message when they are missing."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from basicsr.archs import vgg_arch

from pisr_plugin.inference import checkpoint
from pisr_plugin.utils.errors import CheckpointError, first_line

URL = 'https://download.pytorch.org/models/vgg19-dcbb9e9d.pth'


@contextmanager
def vgg_weights_told(option_path: str) -> Iterator[None]:
    """Turns the errors of a loss that is built inside the block and lacks VGG19's weights into one message.

    BasicSR's ``PerceptualLoss`` reads them from a file, or lets torchvision download them and keep them for later.

    Args:
        option_path: Option path of the loss.

    Raises:
        CheckpointError: the file is damaged, or is missing and cannot be downloaded.
    """
    file = vgg_arch.VGG_PRETRAIN_PATH
    try:
        if os.path.exists(file):
            checkpoint.load_file_safely(file)  # BasicSR itself reads it in a way that may run code
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*(pretrained|weight enum)', UserWarning, 'torchvision')
            yield
    except (OSError, RuntimeError, CheckpointError) as error:
        reason = first_line(error)
        raise CheckpointError(
            f"{option_path}: VGG19's weights cannot be loaded: {reason}\nThey are looked for in {file}, from the "
            f'current folder, and else downloaded. Without a connection put {URL} there.'
        ) from None
