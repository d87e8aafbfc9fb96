"""Four bits a weight in the NormalFloat code of QLoRA (Dettmers et al., 2023, arXiv:2305.14314)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from luthier.component import ComponentConfig

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig

__all__ = ["NF4"]


class NF4:
    """Frozen linear weights in 4-bit NormalFloat, by bitsandbytes (CPU and CUDA)."""

    class Config(ComponentConfig):
        kind: Literal["nf4"] = "nf4"
        double_quant: bool = True
        """Whether the scales of the blocks are quantized too (0.4 bits a weight less)."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def loading_config(self, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=compute_dtype,
            bnb_4bit_use_double_quant=self.config.double_quant,
        )
