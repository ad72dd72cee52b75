"""PReLU whose gradient takes a tenth of the time on a CPU, and less memory traffic on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pisr_plugin.utils.devices import is_exporting
from pisr_plugin.utils.errors import first_line


def use_fast_prelu(net: nn.Module, device: torch.device, warn: Callable[[str], None] = print) -> None:
    """Lets every :class:`torch.nn.PReLU` within ``net`` compute its gradient as :class:`FastPReLU`; in place.

    Args:
        net: Network to be trained.
        device: Where it is trained. On a GPU the gradient is compiled, once, for all sizes.
        warn: Called with one line where that is impossible; torch's own gradient is then used.
    """
    slow = [module for module in net.modules() if type(module) is nn.PReLU]
    if slow and device.type != 'cpu':
        try:
            images = torch.ones(2, 3, 5, 7, device=device)  # sides that differ, so that they may differ later
            with torch.no_grad():
                _compiled_gradients()(images, images, torch.ones(1, device=device))
        except Exception as error:  # whatever a missing or unfit compiler raises
            warn(f"PReLU's gradient cannot be compiled here, so torch's own is used: {first_line(error)}")
            return
    for module in slow:
        module.__class__ = FastPReLU


class FastPReLU(nn.PReLU):
    """A :class:`torch.nn.PReLU` whose backward pass is a few vectorised operators on a CPU, one kernel on a GPU.

    Torch's own kernel for a CPU is not vectorised: in a training step of FSRCNN it takes as long as all convolutions'
    backward passes together. The one for a GPU writes the slope's gradient as a map of the image's size and then reads
    it for the sum. Keys, initial slopes, values and the gradient of the input are the same to the bit, the gradient of
    the slope to rounding. In what is compiled, exported or traced, torch's own operator does the work.

    Args:
        num_parameters: Number of slopes: 1, or one per channel.
        init: Their initial value.

    Shape:
        (N, C, *) to the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or _is_recorded():
            return super().forward(input)
        return _FastPReLU.apply(input, self.weight)


def _is_recorded() -> bool:
    return is_exporting() or torch.compiler.is_compiling()


class _FastPReLU(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, slopes: Tensor) -> Tensor:
        return F.prelu(x, slopes)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, slopes = ctx.saved_tensors
        return (_gradients if grad.device.type == 'cpu' else _compiled_gradients())(grad, x, slopes)


def _gradients(grad: Tensor, x: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of the input and of the slopes."""
    above = torch.ops.aten.threshold_backward(grad, x, 0)  # the gradient where x > 0, else 0
    below = grad - above
    grad_x = torch.addcmul(above, below, slopes.to(grad.dtype).view(-1, *[1] * (x.dim() - 2)))
    products = below * x
    if torch.compiler.is_compiling():  # one kernel then makes the input's gradient and these first sums
        products = products.view(*x.shape[:2], -1).sum(2)
    dims = range(products.dim()) if slopes.numel() == 1 else [dim for dim in range(products.dim()) if dim != 1]
    return grad_x, products.sum(tuple(dims)).to(slopes.dtype).view_as(slopes)


@functools.cache
def _compiled_gradients() -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    return torch.compile(_gradients, dynamic=True)
