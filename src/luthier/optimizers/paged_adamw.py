"""AdamW whose means move to the CPU's memory where the card is full (Dettmers et al., 2023, arXiv:2305.14314)."""

from __future__ import annotations

from typing import Literal

from luthier.optimizers._adamw import AdamWConfig
from luthier.optimizers._bitsandbytes import Paged

__all__ = ["PagedAdamW"]


class PagedAdamW(Paged):
    """AdamW by bitsandbytes, its means in 32 bits; they are moved to the CPU's memory where the card is full."""

    class Config(AdamWConfig):
        kind: Literal["paged_adamw"] = "paged_adamw"

    library_name = "PagedAdamW"
    state_bytes = 8
