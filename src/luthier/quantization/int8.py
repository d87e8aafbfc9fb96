"""Eight bits a weight: LLM.int8 (Dettmers et al., 2022, arXiv:2208.07339)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from luthier.component import ComponentConfig

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig

__all__ = ["Int8"]


class Int8:
    """Frozen linear weights in 8 bits, by bitsandbytes (CPU and CUDA)."""

    class Config(ComponentConfig):
        kind: Literal["int8"] = "int8"
        outlier_threshold: Annotated[float, Field(ge=0)] = 0.0
        """Activations above it are computed in 16 bits (CUDA only; on a CPU none are).
        They are picked over the whole micro-batch, so any value but 0 makes
        results depend on how a batch is laid out."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def loading_config(self, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=self.config.outlier_threshold)
