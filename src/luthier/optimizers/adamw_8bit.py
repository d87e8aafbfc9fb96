"""AdamW whose means are held in 8 bits (Dettmers et al., 2021, arXiv:2110.02861)."""

from __future__ import annotations

from typing import Literal

from luthier.optimizers._adamw import AdamWConfig
from luthier.optimizers._bitsandbytes import LibraryAdamW

__all__ = ["AdamW8bit"]


class AdamW8bit(LibraryAdamW):
    """AdamW by bitsandbytes, its means in 8 bits."""

    class Config(AdamWConfig):
        kind: Literal["adamw_8bit"] = "adamw_8bit"

    library_name = "AdamW8bit"
    state_bytes = 2
