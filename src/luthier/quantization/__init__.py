"""How the frozen weights are held: one file a kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class Quantization(Protocol):
    """How the base is held in fewer bits."""

    def loading_config(self, compute_dtype: torch.dtype) -> Any: ...
