"""Four bits a weight in the NormalFloat code of QLoRA (Dettmers et al., 2023, arXiv:2305.14314)."""

from __future__ import annotations

from typing import Literal

from luthier.quantization._four_bits import FourBits

__all__ = ["NF4"]


class NF4(FourBits):
    """Sixteen levels at the quantiles of a normal distribution, as weights are spread."""

    class Config(FourBits.Config):
        kind: Literal["nf4"] = "nf4"

    code = "nf4"
