"""Four bits a weight as small floating-point numbers: a sign, two bits of exponent, one of mantissa."""

from __future__ import annotations

from typing import Literal

from luthier.quantization._four_bits import FourBits

__all__ = ["FP4"]


class FP4(FourBits):
    """Levels of a floating-point number; coarser than `nf4` for weights of trained models, which it is there to be compared with."""

    class Config(FourBits.Config):
        kind: Literal["fp4"] = "fp4"

    code = "fp4"
