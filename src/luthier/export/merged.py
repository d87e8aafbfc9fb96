"""A plain transformers folder: the base with what was learned added to its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from luthier.component import ComponentConfig
from luthier.export._parts import Parts

__all__ = ["Merged"]


class Merged:
    """W + lora_alpha / r * B A is computed in float32, then rounded to the dtype of the folder."""

    class Config(ComponentConfig):
        kind: Literal["merged"] = "merged"
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
        """Of the written weights. `auto`: as the base's are stored."""

    needs_adapter = False

    def __init__(self, config: Config) -> None:
        self.config = config

    def dtype(self, parts: Parts) -> str:
        return parts.base_dtype if self.config.dtype == "auto" else self.config.dtype

    def write(self, parts: Parts, folder: Path) -> None:
        """Weights, config, tokenizer, template and generation config; `parts.model` is consumed."""
        import torch

        model = parts.model.merge_and_unload(safe_merge=True) if parts.adapter is not None else parts.model
        model.tie_weights()  # embeddings and head that were trained whole are two equal weights now
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        model.to(getattr(torch, self.dtype(parts)))
        model.generation_config = self._generation_config(parts)
        model.save_pretrained(folder)
        parts.tokenizer.chat_template = parts.template
        parts.tokenizer.save_pretrained(folder)

    def _generation_config(self, parts: Parts) -> Any:
        """The base's own, with the tokens at which answers of the template end."""
        from transformers import GenerationConfig

        own = parts.base / "generation_config.json"
        config = GenerationConfig.from_pretrained(parts.base) if own.is_file() else GenerationConfig()
        if parts.stop_ids:
            config.eos_token_id = list(parts.stop_ids)
        if config.pad_token_id is None:
            config.pad_token_id = parts.tokenizer.pad_token_id
        if (
            not config.do_sample
        ):  # some models carry sampling settings for greedy decoding, which transformers refuses to save
            config.temperature = config.top_p = config.top_k = None
        return config

    def reload(self, parts: Parts, folder: Path) -> Any:
        """The written model as anyone loads it, its weights then held in float32 so that only their rounding shows."""
        import torch
        from transformers import AutoModelForCausalLM

        del parts
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
