"""`tuning: freeze`: what is named is trained, the rest keeps its bits, and the result is a whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from luthier import component, config, run
from luthier.dropout import DropoutKeys
from luthier.errors import UserError
from luthier.models.opened import open_model
from luthier.types import Start
from tests.helpers.tiny_models import TWINS, tiny_llama, twin

ROWS = [{"prompt": f"Say {number}.", "completion": f"{number}!"} for number in range(8)]


def trained_of(model: Any, **settings: Any) -> tuple[set[str], str]:
    freeze = component.load("tuning", "freeze")
    tuned = freeze(freeze.Config(**settings)).apply(model, Start(DropoutKeys(0)))
    return {name for name, parameter in tuned.model.named_parameters() if parameter.requires_grad}, tuned.trained


def names_of(model: Any, *parts: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if any(part in name for part in parts)}


@pytest.mark.parametrize("name", TWINS)
def test_the_last_layer_of_every_architecture(name: str) -> None:
    model = twin(name)
    count = model.config.num_hidden_layers
    trained, said = trained_of(model, last_layers=1)
    assert trained == names_of(model, f"layers.{count - 1}.", f".h.{count - 1}.")
    assert trained
    share = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert said.startswith(f"last 1 layers: {share:,} of ")


def test_first_last_and_patterns_add_up() -> None:
    model = twin("gemma3_text")
    trained, said = trained_of(model, first_layers=1, last_layers=1, patterns=(r"model\.norm\..*",))
    assert trained == names_of(model, "layers.0.", "layers.3.", "model.norm.")
    assert said.startswith("last 1 layers, first 1 layers, 1 weights of model")


def test_two_layers_where_nothing_is_said() -> None:
    model = twin("gemma3_text")
    assert trained_of(model)[0] == names_of(model, "layers.2.", "layers.3.")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"last_layers": 3}, "3 layers; the model has 2"),
        ({"patterns": (r".*\.mlp\..*", "layers.0")}, "'layers.0' matches no weight"),
        ({"patterns": ("(",)}, "no regular expression"),
    ],
)
def test_what_is_not_there_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        trained_of(twin("llama"), **settings)


def test_a_quantized_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tuning: freeze of a quantized model"):
        config.load(None, ["model={path: m, quantization: nf4}", "data=d", "tuning=freeze", f"output_dir={tmp_path}"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_trains_what_is_named_and_nothing_else(tmp_path: Path, dtype: str) -> None:
    tiny_llama(tmp_path / "model")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    keys = [f"model={tmp_path / 'model'}", f"data={tmp_path / 'train.jsonl'}", f"output_dir={tmp_path / 'run'}"]
    keys += ["tuning={kind: freeze, last_layers: 1}", f"dtype={dtype}", "max_steps=3", "learning_rate=1e-2"]
    run.train(config.load(None, keys), say=lambda text: None)
    stored = json.loads((tmp_path / "run" / "manifest.json").read_text())["trained_tensors"]
    assert stored.pop("model.layers.*.mlp.up_proj.weight") == 1
    assert all(name.startswith("model.layers.*.") for name in stored)
    before, after = (
        load_file(tmp_path / "model" / "model.safetensors"),
        load_file(tmp_path / "run" / "model" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name].to(getattr(torch, dtype)).float(), after[name])}
    assert moved == {name for name in before if ".layers.1." in name}
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    opened = open_model(str(tmp_path / "run"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype=opened.compute_dtype)
    ids = torch.arange(8)[None]
    assert torch.equal(opened.model(ids).logits, plain(ids).logits)
