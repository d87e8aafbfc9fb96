"""What the codes of four bits a weight have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.component import ComponentConfig

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig


class FourBits:
    """Frozen linear weights in blocks of 64 numbers with a scale each, by bitsandbytes (CPU and CUDA)."""

    class Config(ComponentConfig):
        double_quant: bool = True
        """Whether the scales of the blocks are quantized too (0.4 bits a weight less)."""
        compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
        """What the weights are unpacked to and multiplied in. `auto`: as everything else, `model.dtype`."""

    code: ClassVar[str]

    def __init__(self, config: Config) -> None:
        self.config = config

    def loading_config(self, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
        """Args:
        compute_dtype: of the run; taken where the configuration leaves it to us.
        """
        from transformers import BitsAndBytesConfig

        asked = self.config.compute_dtype
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.code,
            bnb_4bit_compute_dtype=compute_dtype if asked == "auto" else asked,
            bnb_4bit_use_double_quant=self.config.double_quant,
        )
