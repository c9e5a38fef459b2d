"""Modules that are fitted to films, not trained: all they know is in buffers, whose sizes depend on the films."""

from typing import Any, ClassVar

import torch
from torch import nn


class Fitted(nn.Module):
    """Empty buffers of the names `fitted`, which a subclass fills and a saved state brings with their sizes."""

    fitted: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        super().__init__()
        for name in self.fitted:
            self.register_buffer(name, torch.zeros(0))

    def check_fitted(self) -> None:
        """Raise RuntimeError where nothing was fitted yet."""
        if not len(getattr(self, self.fitted[0])):
            raise RuntimeError("fit() comes before the first score")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Give the buffers the sizes of those to be loaded."""
        for name in self.fitted:
            if f"{prefix}{name}" in state_dict:
                device = getattr(self, name).device
                setattr(self, name, torch.empty_like(state_dict[f"{prefix}{name}"], device=device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
