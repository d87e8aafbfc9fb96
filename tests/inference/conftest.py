"""A small run as a finished one lies on the disk: a base, and an adapter on it that changes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from luthier import config
from luthier.kernels.lora import tie_edges
from luthier.models.adapters import save_adapter
from luthier.models.load import fingerprint
from luthier.models.new_tokens import grow
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in float32 whose logits are far from flat."""
    return sharpened(tiny_llama(tmp_path_factory.mktemp("models") / "base"))


def sharpened(folder: Path) -> Path:
    """Random weights of the usual size give flat logits; the head is made larger, as training makes it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    return folder


def make_run(
    folder: Path,
    base: Path,
    *,
    strength: float = 0.1,
    seed: int = 1,
    quantization: str | None = None,
    tokenizer: Path | None = None,
    rows: int = 0,
    **lora: Any,
) -> Path:
    """A run's folder with a LoRA adapter of random weights on `base`; strength 0 leaves the base as it was.

    `rows`: of the embeddings, where new tokens made them more. `lora`: keys of peft's LoraConfig.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    grow(plain, rows)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | lora
    model = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 1.0).mul_(strength)
            elif lora and parameter.requires_grad and "lora_A" not in name:
                parameter.add_(strength * (parameter.abs() + 0.1) * torch.randn_like(parameter))
    tie_edges(model)
    adapter = folder / "adapter"
    adapter.mkdir(parents=True)
    save_adapter(model, adapter, fingerprint(base).as_dict())
    used = AutoTokenizer.from_pretrained(tokenizer) if tokenizer else tiny_tokenizer()
    used.save_pretrained(adapter)
    finish_run(folder, base, quantization=quantization)
    return folder


def finish_run(folder: Path, base: Path, *, tuning: str = "lora", quantization: str | None = None) -> None:
    """The files beside the result."""
    data = folder / "train.jsonl"
    data.write_text(json.dumps({"instruction": "Hi", "output": "Hello."}) + "\n")
    overrides = [
        f"model.path={base}",
        f"data={data}",
        f"output_dir={folder}",
        f"tuning={tuning}",
        "model.dtype=float32",
    ]
    overrides += [f"model.quantization={quantization}"] if quantization else []
    (folder / "config.yaml").write_text(config.load(None, overrides).resolved_yaml())
    (folder / "manifest.json").write_text(json.dumps({"state": "finished"}))
    lines = [{"step": 0, "eval_loss": 2.5}, *({"step": step, "loss": 2.0 / step} for step in range(1, 4))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "mine", base)


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A run that tuned all weights."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("runs") / "full"
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    finish_run(folder, base, tuning="full")
    return folder
