"""Eight bits a weight: LLM.int8 (Dettmers et al., 2022, arXiv:2208.07339)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from luthier.component import ComponentConfig

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig

__all__ = ["Int8"]


class Int8:
    """Frozen linear weights in 8 bits with a scale a row, by bitsandbytes (CPU and CUDA).

    On CUDA activations are rounded to 8 bits as well, token by token, by way of float16: one above 65,504 becomes infinite.
    """

    class Config(ComponentConfig):
        kind: Literal["int8"] = "int8"
        outlier_threshold: Annotated[float, Field(ge=0, le=1e6)] = 0.0
        """Activations above it are computed in 16 bits (CUDA only; on a CPU none are).
        They are picked over the whole micro-batch, so any value but 0 makes
        results depend on how a batch is laid out."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def loading_config(self, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
        from transformers import BitsAndBytesConfig

        # Said at every product of every layer, and true of every one.
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_news)
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=self.config.outlier_threshold)


def _is_news(record: logging.LogRecord) -> bool:
    return "inputs will be cast" not in str(record.msg)
