"""Which operators a computation runs."""

from __future__ import annotations

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode


class OperatorCount(TorchDispatchMode):
    """Counts the operators that run inside it, without views, which cost no kernel.

    Attributes:
        names: ``{operator: calls}``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names[str(func)] += 1
        return func(*args, **(kwargs or {}))
