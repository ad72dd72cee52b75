"""The discriminator's part of a GAN step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pisr_plugin.models.optim import OptimizerStep, sync_gradients, to_float32


class GANStep:
    """The discriminator: it judges the trained network's images and learns to tell them from real ones.

    Computes what BasicSR's ``SRGANModel`` does, in the same order: first the trained network's loss with the
    discriminator as it is, then, on the same images, the discriminator's own losses, real before fake.

    Args:
        net: The discriminator, from images (N, C, H, W) to predictions of any shape; may be wrapped by
            DistributedDataParallel.
        criterion: BasicSR's ``GANLoss`` or one that is called alike; its weight counts for the trained network only.
        optimizer_step: Updates the discriminator.
        iters: The trained network is updated in every ``iters``-th iteration, the discriminator in all.
        init_iters: Number of iterations at the beginning that update the discriminator alone.
        autocast: Lower precision of the discriminator, or None. Losses are computed in float32.
    """

    def __init__(
        self,
        net: nn.Module,
        criterion: nn.Module,
        optimizer_step: OptimizerStep,
        iters: int = 1,
        init_iters: int = 0,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.net, self.criterion, self.optimizer_step = net, criterion, optimizer_step
        self.bare = net.module if isinstance(net, DistributedDataParallel) else net
        self.iters, self.init_iters, self.autocast = iters, init_iters, autocast

    def updates_generator(self, current_iter: int) -> bool:
        """Returns whether the trained network is updated in this iteration, counted from 1."""
        return current_iter % self.iters == 0 and current_iter > self.init_iters

    def loss(self, fake: Tensor) -> Tensor:
        """Returns the loss that the trained network minimises; the discriminator gets no gradient.

        It bypasses DistributedDataParallel, because there are no gradients to exchange.

        Args:
            fake: The trained network's images (N, C, H, W).
        """
        with _frozen(self.bare):
            return self.criterion(self._judge(self.bare, fake), True, is_disc=False)

    def update_discriminator(self, real: Sequence[Tensor], fake: Sequence[Tensor]) -> dict[str, Tensor]:
        """Updates the discriminator.

        Args:
            real: Real images (N, C, H, W), in the parts in which the batch is computed.
            fake: The trained network's images, without gradients, in the same parts.

        Returns:
            ``l_d_real`` and ``l_d_fake``, its losses; ``out_d_real`` and ``out_d_fake``, its mean predictions.
        """
        self.optimizer_step.zero_grad()
        count = len(real)
        log: dict[str, Tensor] = {}
        for number, pair in enumerate(zip(real, fake), 1):
            for name, images, is_real in zip(('real', 'fake'), pair, (True, False)):
                with sync_gradients(self.net, now=number == count and not is_real):
                    prediction = self._judge(self.net, images)
                    loss = self.criterion(prediction, is_real, is_disc=True)
                    self.optimizer_step.backward(loss if count == 1 else loss / count)
                for key, value in ((f'l_d_{name}', loss), (f'out_d_{name}', prediction.detach().mean())):
                    value = value.detach() if count == 1 else value.detach() / count
                    log[key] = log[key] + value if key in log else value
        self.optimizer_step(log['l_d_real'] + log['l_d_fake'])
        return log

    def _judge(self, net: nn.Module, images: Tensor) -> Tensor:
        if self.autocast is None:
            return net(images)
        with torch.autocast(images.device.type, self.autocast):
            return to_float32(net(images))


@contextmanager
def _frozen(net: nn.Module) -> Iterator[None]:
    """Computes no gradients for the parameters of ``net`` inside the block."""
    trained = [p for p in net.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
