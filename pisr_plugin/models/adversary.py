"""The discriminator's part of a GAN step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pisr_plugin.models.update import Update, exchanging, lift


class Adversary:
    """A discriminator that judges the trained network's images and learns to tell them from real ones.

    Computes what BasicSR's ``SRGANModel`` does, in the same order: first the trained network's loss, with the
    discriminator as it is; then, on the image that this gave, the discriminator's own losses, real before fake.

    Args:
        net: The discriminator, images (N, C, H, W) to predictions of any shape; possibly wrapped for distributed
            training.
        criterion: BasicSR's ``GANLoss`` or one that is called alike; its weight counts for the trained network only.
        update: Moves the discriminator.
        iters: The trained network moves in every ``iters``-th iteration, the discriminator in all.
        init_iters: So many iterations at the beginning move the discriminator alone.
        autocast: Lower precision of the discriminator, or None. Losses are computed in float32.
    """

    def __init__(
        self,
        net: nn.Module,
        criterion: nn.Module,
        update: Update,
        iters: int = 1,
        init_iters: int = 0,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.net, self.criterion, self.update = net, criterion, update
        self.bare = net.module if isinstance(net, DistributedDataParallel) else net
        self.iters, self.init_iters, self.autocast = iters, init_iters, autocast

    def lets_move(self, current_iter: int) -> bool:
        """Whether the trained network moves in this iteration, counted from 1."""
        return current_iter % self.iters == 0 and current_iter > self.init_iters

    def loss(self, fake: Tensor) -> Tensor:
        """What the trained network is to minimise; the discriminator gets no gradient.

        Not through the distributed wrapper, because there is nothing to exchange.

        Args:
            fake: The trained network's images (N, C, H, W).
        """
        with _frozen(self.bare):
            return self.criterion(self._judge(self.bare, fake), True, is_disc=False)

    def learn(self, real: Sequence[Tensor], fake: Sequence[Tensor]) -> dict[str, Tensor]:
        """Makes the discriminator's own step.

        Args:
            real: Real images (N, C, H, W), in as many parts as the batch is computed in.
            fake: The trained network's images, without graph, in the same parts.

        Returns:
            ``l_d_real`` and ``l_d_fake``, its losses; ``out_d_real`` and ``out_d_fake``, its mean predictions.
        """
        self.update.zero_grad()
        count, log = len(real), {}
        for number, pair in enumerate(zip(real, fake), 1):
            for name, images, is_real in zip(('real', 'fake'), pair, (True, False)):
                with exchanging(self.net, now=number == count and not is_real):
                    prediction = self._judge(self.net, images)
                    loss = self.criterion(prediction, is_real, is_disc=True)
                    self.update.backward(loss if count == 1 else loss / count)
                for key, value in ((f'l_d_{name}', loss), (f'out_d_{name}', prediction.detach().mean())):
                    value = value.detach() if count == 1 else value.detach() / count
                    log[key] = log[key] + value if key in log else value
        self.update(log['l_d_real'] + log['l_d_fake'])
        return log

    def _judge(self, net: nn.Module, images: Tensor) -> Tensor:
        if self.autocast is None:
            return net(images)
        with torch.autocast(images.device.type, self.autocast):
            return lift(net(images))


@contextmanager
def _frozen(net: nn.Module) -> Iterator[None]:
    """What runs within records no gradients for the parameters of ``net``."""
    trained = [p for p in net.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
