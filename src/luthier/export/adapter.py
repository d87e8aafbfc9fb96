"""A clean PEFT folder: what was learned alone, for anyone who has the base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from luthier.component import ComponentConfig
from luthier.export._parts import Parts
from luthier.models.adapter_readme import write_readme

__all__ = ["Adapter"]

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Adapter:
    """The adapter's weights to the bit, with the tokenizer and the chat template that it was trained with."""

    class Config(ComponentConfig):
        kind: Literal["adapter"] = "adapter"

    needs_adapter = True

    def __init__(self, config: Config) -> None:
        self.config = config

    def dtype(self, parts: Parts) -> str:
        del parts
        return "float32"

    def size_bytes(self, parts: Parts) -> int:
        """Of the weights that are written."""
        assert parts.adapter is not None
        return (parts.adapter / WEIGHTS).stat().st_size

    def write(self, parts: Parts, folder: Path, say: Callable[[str], None]) -> None:
        """adapter_model.safetensors, adapter_config.json, README.md, tokenizer, template, and the tokens that end an answer."""
        del say  # it is written at once
        assert parts.adapter is not None
        if parts.step is None:
            shutil.copyfile(parts.adapter / WEIGHTS, folder / WEIGHTS)
        else:
            from safetensors.torch import save_file

            from luthier.models.adapters import adapter_weights

            save_file(adapter_weights(parts.model), folder / WEIGHTS, metadata={"format": "pt"})
        settings = json.loads((parts.adapter / CONFIG).read_text(encoding="utf-8"))
        settings |= {"base_model_name_or_path": parts.base_name, "revision": parts.base_revision}
        (folder / CONFIG).write_text(
            json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        write_readme(folder, (parts.base_name, parts.base_revision), parts.origin)
        parts.tokenizer.chat_template = parts.template
        parts.tokenizer.save_pretrained(folder)
        stops = {"eos_token_id": list(parts.stop_ids)}
        (folder / "generation_config.json").write_text(json.dumps(stops, indent=2) + "\n", encoding="utf-8")

    def reload(self, parts: Parts, folder: Path) -> Any:
        """The base with the written adapter, by plain transformers and peft."""
        import torch
        from peft import PeftModel
        code = parts.trust_remote_code
        base = parts.loader.from_pretrained(parts.base, dtype=torch.float32, trust_remote_code=code, **parts.labels)
        rows = parts.origin.get("embedding_rows", 0)
        if rows > base.get_input_embeddings().weight.shape[0]:  # new tokens: their rows are the adapter's
            base.resize_token_embeddings(rows, mean_resizing=False)
        return PeftModel.from_pretrained(base, model_id=str(folder)).eval()
