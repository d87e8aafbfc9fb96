"""Headers of safetensors, GGUF files, tokenizers and the settings of adapters, damaged: see `tests/data/fuzzed.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save

from luthier.models import adapters
from luthier.models.headers import file_tensors
from luthier.models.reading import load_tokenizer
from luthier.models.sources import gguf
from tests.data.fuzzed import fuzz
from tests.helpers.gguf_files import to_gguf
from tests.helpers.tiny_models import tiny_tokenizer, twin

pytestmark = pytest.mark.prove


def test_headers_of_safetensors(tmp_path: Path) -> None:
    tensors = {f"model.layers.{n}.weight": torch.ones(3, 2, dtype=torch.bfloat16) for n in range(4)}
    seeds = [save(tensors), save(tensors, {"format": "pt"}), save({})]
    assert fuzz(lambda path: file_tensors(path, "a test"), tmp_path / "a.safetensors", seeds, "safetensors") > 100


def test_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    seed = to_gguf(tmp_path / "seed.gguf").read_bytes()
    assert fuzz(lambda path: gguf.convert(path, lambda words: None), tmp_path / "a.gguf", [seed], "gguf") > 0


def test_tokenizers(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    tree = json.loads(text := (tmp_path / "tokenizer.json").read_bytes())
    compact = json.dumps(tree).encode()
    assert fuzz(lambda path: load_tokenizer(path.parent), tmp_path / "tokenizer.json", [text, compact], "tokenizer") > 3


@pytest.mark.parametrize("name", [adapters.CONFIG, adapters.OURS])
def test_the_settings_of_an_adapter(name: str, tmp_path: Path) -> None:
    base: dict[str, Any] = {"name": "tiny", "config_hash": "a", "weights_hash": "b", "quantization": None}
    tuned = get_peft_model(twin("llama", 0), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], bias="none"))
    adapters.save_adapter(tuned, tmp_path, base, new_tokens={"<a>": 511})

    def use(path: Path) -> None:
        adapters.load_adapter(twin("llama", 0), tmp_path, base=base)
        for tell in (adapters.trained_quantization, adapters.new_tokens, adapters.starts_at_base, adapters.begins):
            tell(tmp_path)

    text = (tmp_path / name).read_bytes()
    compact = json.dumps(json.loads(text)).encode()
    assert fuzz(use, tmp_path / name, [text, compact], name) > 3
