"""A plain transformers folder: the base with what was learned added to its weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from luthier.component import ComponentConfig
from luthier.export._one_by_one import merging
from luthier.export._parts import Parts
from luthier.models.folder import summarise
from luthier.models.precision import DTYPES
from luthier.models.score_head import gives_scores
from luthier.models.shards import SHARD_BYTES, write_shards
from luthier.models.stored import NotByName, Stored, hold_as_stored, release, save_settings
from luthier.system.memory import give_back_memory
from luthier.system.words import human_bytes

__all__ = ["Merged"]


class Merged:
    """W + lora_alpha / r * B A is computed in float32, then rounded to the dtype of the folder; a head of scores stays in float32."""

    class Config(ComponentConfig):
        kind: Literal["merged"] = "merged"
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
        """Of the written weights. `auto`: each as the base's is stored."""

    needs_adapter = False

    def __init__(self, config: Config) -> None:
        self.config = config

    def dtype(self, parts: Parts) -> str:
        """The narrowest in which weights are written."""
        if self.config.dtype != "auto":
            return self.config.dtype
        stored = summarise(parts.base, parts.base_name).floating
        return next((name for name in stored if name in ("bfloat16", "float16")), "float32")

    def size_bytes(self, parts: Parts) -> int:
        """Of the weights that are written."""
        stored = summarise(parts.base, parts.base_name)
        auto = self.config.dtype == "auto"
        return stored.bytes if auto else stored.parameters * DTYPES[self.config.dtype].itemsize

    def write(self, parts: Parts, folder: Path, say: Callable[[str], None]) -> None:
        """Weights, config, tokenizer, template and generation config; `parts.model` is consumed.

        The weights are taken from the base's files one by one, so no more than a file of them is in memory. Where they
        cannot be, the model is merged in memory, as a whole.
        """
        core = parts.model.get_base_model() if parts.adapter is not None else parts.model
        generation = self._generation_config(parts)
        if gives_scores(core):
            generation.save_pretrained(folder)  # for the tokens that end an answer
        else:
            core.generation_config = generation
        dtype = None if self.config.dtype == "auto" else DTYPES[self.config.dtype]
        try:
            if not parts.as_stored:
                raise NotByName("the values of its weights are in no file of a model")
            if gives_scores(core):
                raise NotByName("its head of scores is written in float32")
            if parts.adapter is not None and parts.model.active_peft_config.bias != "none":
                raise NotByName("the adapter brings biases of the base's own")
            stored = Stored(core, parts.base, parts.base_name)
            changes = merging(stored, dtype)
        except NotByName as why:
            say(f"merging in memory, as a whole: {why}")
            self._write_whole(parts, folder)
        else:
            release(core)
            give_back_memory()
            total = stored.size_bytes(dtype)
            write_shards(folder, stored.rewritten(changes, dtype), SHARD_BYTES, partial(_progress, total, say))
            save_settings(core, folder, self._label(parts))
        parts.tokenizer.chat_template = parts.template
        parts.tokenizer.save_pretrained(folder)

    def _write_whole(self, parts: Parts, folder: Path) -> None:
        model = parts.model.merge_and_unload(safe_merge=True) if parts.adapter is not None else parts.model
        model.tie_weights()  # embeddings and head that were trained whole are two equal weights now
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        head = model.score.weight.data.float() if gives_scores(model) else None
        narrowest = DTYPES[self.dtype(parts)]
        if self.config.dtype == "auto":
            hold_as_stored(model, parts.base, parts.base_name, narrowest)
        else:
            model.to(narrowest)
        if head is not None:
            model.score.weight.data = head
        model.save_pretrained(folder, max_shard_size=SHARD_BYTES)
        save_settings(model, folder, self._label(parts))  # transformers names the dtype of the first weight

    def _label(self, parts: Parts) -> str:
        """The dtype that config.json names, in which whoever asks for none loads the weights."""
        return parts.base_dtype if self.config.dtype == "auto" else self.config.dtype

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
        code = parts.trust_remote_code
        return parts.loader.from_pretrained(folder, dtype=torch.float32, trust_remote_code=code).eval()


def _progress(total: int, say: Callable[[str], None], written: int) -> None:
    give_back_memory()
    if total > SHARD_BYTES:
        say(f"{human_bytes(written)} of {human_bytes(total)} written")
