"""AdamW whose means are held in 8 bits, and move to the CPU's memory where the card is full."""

from __future__ import annotations

from typing import Literal

from luthier.optimizers._adamw import AdamWConfig
from luthier.optimizers._bitsandbytes import Paged

__all__ = ["PagedAdamW8bit"]


class PagedAdamW8bit(Paged):
    """AdamW by bitsandbytes, its means in 8 bits; they are moved to the CPU's memory where the card is full."""

    class Config(AdamWConfig):
        kind: Literal["paged_adamw_8bit"] = "paged_adamw_8bit"

    library_name = "PagedAdamW8bit"
    state_bytes = 2
