"""A merge goes through the base's files tensor by tensor, gives what peft gives in memory, and holds one model at a time."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from luthier import component
from luthier.export import merged
from luthier.inference import verified_export
from luthier.inference.opened import open_model
from luthier.models import stored
from luthier.models.dequantized import dequantize
from luthier.models.load import load_model
from tests.helpers.tiny_models import save_twin
from tests.inference.conftest import make_run

CPU = torch.device("cpu")

ATTENTION = ["q_proj", "v_proj"]
WHOLE = {"modules_to_save": ["embed_tokens", "lm_head"], "target_modules": ATTENTION}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "lora": ("llama", {}, {}),
    "dora": ("llama", {}, {"use_dora": True}),
    "rslora": ("llama", {}, {"use_rslora": True}),
    "rank pattern": ("llama", {}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
    "whole modules": ("llama", {}, WHOLE),
    "one whole module": ("llama", {}, WHOLE | {"modules_to_save": ["lm_head"]}),
    "norms": ("llama", {}, WHOLE | {"modules_to_save": ["norm"]}),
    "embeddings": ("llama", {}, {"target_modules": ["embed_tokens", *ATTENTION]}),
    "tied": ("llama", {"tie_word_embeddings": True}, {}),
    "tied whole modules": ("llama", {"tie_word_embeddings": True}, WHOLE),
    "new tokens": (
        "llama",
        {},
        {"rows": 515, "trainable_token_indices": {"embed_tokens": [512, 514], "lm_head": [512, 514]}},
    ),
    "new tokens, tied": (
        "llama",
        {"tie_word_embeddings": True},
        {"rows": 515, "trainable_token_indices": {"embed_tokens": [512, 513]}},
    ),
    "new tokens, whole modules": ("llama", {}, WHOLE | {"rows": 515}),
    "transposed": ("gpt2", {}, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "transposed dora": ("gpt2", {}, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
    "tied of old": ("gpt2", {"tie_word_embeddings": True}, {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "stored under other names": ("gpt_neox", {}, {}),
    "experts in one tensor": (
        "gpt_oss",
        {},
        {"target_modules": ATTENTION, "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
    "experts stored one by one": (
        "qwen3_moe",
        {},
        {"target_modules": ATTENTION, "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
    "experts beside": ("qwen3_moe", {}, {"target_modules": ATTENTION}),
    "an architecture of ours": ("yuan", {}, {}),
    "a head that normalises": ("baichuan", {}, {"target_modules": ["W_pack", "o_proj"]}),
}


def opened(target: Path) -> Any:
    return open_model(str(target), dtype="float32", device=CPU).model


def as_peft_merges(run: Path) -> dict[str, torch.Tensor]:
    """In memory, all at once, in float32."""
    model = opened(run).merge_and_unload(safe_merge=True)
    model.tie_weights()
    found: dict[str, torch.Tensor] = model.state_dict()
    return found


def files_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.prove
@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_as_in_memory(case: str, tmp_path: Path) -> None:
    family, changes, lora = CASES[case]
    base = save_twin(tmp_path / "base", family, **changes)
    run = make_run(tmp_path / "run", base, **lora)
    said: list[str] = []
    done = verified_export.export(str(run), "merged", tmp_path / "out", unproven=True, say=said.append)
    assert not [line for line in said if "in memory" in line]
    wanted = as_peft_merges(run)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").state_dict()
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    assert done.dtype == "float32"
    before, after = files_of(base), files_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.prove
def test_in_fewer_bits_only_what_was_learned_is_rounded(tmp_path: Path) -> None:
    """One tensor of the base is float32 among others in bfloat16, and stays so."""
    base = save_twin(tmp_path / "base", "llama")
    weights = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    weights["model.norm.weight"] = weights["model.norm.weight"].float() * 1.0001
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    run = make_run(tmp_path / "run", base, target_modules=ATTENTION)
    done = verified_export.export(str(run), "merged", tmp_path / "out", unproven=True, say=lambda _text: None)
    assert done.dtype == "bfloat16"
    wanted, found = as_peft_merges(run), files_of(tmp_path / "out")
    for name, before in weights.items():
        touched = any(part in name for part in ATTENTION)
        assert found[name].dtype == before.dtype
        assert torch.equal(found[name], wanted[name].bfloat16() if touched else before)
        assert touched == (not torch.equal(found[name], before))
    wide = verified_export.export(
        str(run), "merged", tmp_path / "wide", settings={"dtype": "float32"}, unproven=True, say=lambda _text: None
    )
    assert wide.dtype == "float32"
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in files_of(tmp_path / "wide").items())
    half = merged.Merged(merged.Merged.Config(dtype="float16")).size_bytes
    total = sum(tensor.numel() for tensor in weights.values())
    parts = verified_export._parts(open_model(str(run), dtype="float32", device=CPU), as_stored=True)
    assert half(parts) == 2 * total
    assert merged.Merged(merged.Merged.Config()).size_bytes(parts) == sum(tensor.nbytes for tensor in weights.values())


def in_bfloat16_but_the_norms(base: Path, named: str | None) -> dict[str, torch.Tensor]:
    """Rounds the weights of a folder, of which config.json then names the dtype `named`, or none."""
    weights = {
        name: tensor * 1.0001 if "norm" in name else tensor.bfloat16()
        for name, tensor in load_file(base / "model.safetensors").items()
    }
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    del config["dtype"]
    (base / "config.json").write_text(json.dumps(config | ({"dtype": named} if named else {})))
    return weights


def test_a_base_that_names_no_dtype_has_that_of_its_weights(tmp_path: Path) -> None:
    base = save_twin(tmp_path / "base", "llama")
    in_bfloat16_but_the_norms(base, None)
    run = make_run(tmp_path / "run", base, target_modules=ATTENTION)
    verified_export.export(str(run), "merged", tmp_path / "out", unproven=True, say=lambda _text: None)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16


@pytest.mark.prove
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_in_memory_each_weight_is_rounded_as_it_was_stored(family: str, tmp_path: Path) -> None:
    """Also where it is stored under another name than the model's."""
    base = save_twin(tmp_path / "base", family)
    weights = in_bfloat16_but_the_norms(base, "bfloat16")
    run = make_run(tmp_path / "run", base, quantization="nf4")
    said: list[str] = []
    verified_export.export(str(run), "merged", tmp_path / "out", base="dequantized", unproven=True, say=said.append)
    assert any("in memory, as a whole" in line for line in said)
    found = files_of(tmp_path / "out")
    assert {name: tensor.dtype for name, tensor in found.items()} == {name: t.dtype for name, t in weights.items()}
    norms = [name for name in weights if "norm" in name]
    assert norms
    assert all(torch.equal(found[name], weights[name]) for name in norms)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    parts = verified_export._parts(open_model(str(run), dtype="float32", device=CPU, base="16bit"), as_stored=False)
    size = merged.Merged(merged.Merged.Config()).size_bytes(parts)
    assert size == sum(tensor.nbytes for tensor in found.values())


@pytest.mark.prove
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_one_shard_is_in_memory_and_no_more(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_twin(tmp_path / "base", family, num_hidden_layers=6)
    experts = {"target_parameters": ["mlp.experts.gate_up_proj"]} if family == "qwen3_moe" else {}
    run = make_run(tmp_path / "run", base, target_modules=ATTENTION, **experts)
    largest = max(tensor.nbytes for tensor in load_file(base / "model.safetensors").values())
    limit = 2 * largest
    alive: list[int] = []

    def watched(self: stored.Stored, *args: Any) -> Iterator[tuple[str, torch.Tensor]]:
        seen: list[weakref.ref[torch.Tensor]] = []
        for name, tensor in real(self, *args):
            seen.append(weakref.ref(tensor))
            held = sum(weight.nbytes for weight in stored.own_weights(self.model).values())
            there = sum(value.nbytes for ref in seen if (value := ref()) is not None)
            alive.append(held + there)
            yield name, tensor
            del tensor

    real = stored.Stored.rewritten
    monkeypatch.setattr(stored.Stored, "rewritten", watched)
    monkeypatch.setattr(merged, "SHARD_BYTES", limit)
    said: list[str] = []
    verified_export.export(str(run), "merged", tmp_path / "out", unproven=True, say=said.append)
    files = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(files) > 2
    assert len([line for line in said if line.endswith("written")]) == len(files)
    assert max(alive) <= limit + largest < sum(tensor.nbytes for tensor in files_of(base).values()) / 2
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in files_of(tmp_path / "out").values())
    assert {name: file.name for file in files for name in load_file(file)} == index["weight_map"]
    wanted = as_peft_merges(run)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("base_kind", ["as trained", "16bit", "dequantized"])
def test_never_two_models_at_once(base_kind: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = None if base_kind == "as trained" else "nf4"
    run = make_run(tmp_path / "run", base, quantization=held)
    models: list[weakref.ref[Any]] = []
    real_open, real_reload = verified_export.open_model, merged.Merged.reload

    def seen(model: Any) -> None:
        models.append(weakref.ref(model))
        models.append(weakref.ref(model.get_input_embeddings().weight))

    def opening(*args: Any, **keys: Any) -> Any:
        assert all(ref() is None for ref in models)
        found = real_open(*args, **keys)
        seen(found.model)
        return found

    def reloading(*args: Any) -> Any:
        assert models
        assert all(ref() is None for ref in models)
        return real_reload(*args)

    monkeypatch.setattr(verified_export, "open_model", opening)
    monkeypatch.setattr(merged.Merged, "reload", reloading)
    said: list[str] = []
    verified_export.export(str(run), "merged", tmp_path / "out", base=base_kind, unproven=True, say=said.append)
    assert len(models) == (2 if held is None else 4)
    assert any("in memory, as a whole" in line for line in said) == (base_kind == "dequantized")


def test_what_cannot_be_found_by_name_is_merged_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_twin(tmp_path / "base", "llama")
    run = make_run(tmp_path / "run", base)
    wanted = as_peft_merges(run)
    shapes = dict.fromkeys(("model.layers.0.self_attn.q_proj.weight",), (1, 1))
    real = stored.Stored.check
    monkeypatch.setattr(stored.Stored, "check", lambda self, names: (self.shapes.update(shapes), real(self, names))[1])
    said: list[str] = []
    verified_export.export(str(run), "merged", tmp_path / "out", unproven=True, say=said.append)
    assert "in memory, as a whole: model.layers.0.self_attn.q_proj.weight is not stored" in "\n".join(said)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in files_of(tmp_path / "out").items())


def test_trained_biases_are_no_update_of_a_weight(tmp_path: Path) -> None:
    """Somebody else's adapter: peft holds trained biases in the base's own places, also of layers without an update."""
    base = save_twin(tmp_path / "base", "gpt2")
    run = make_run(tmp_path / "run", base, target_modules=["c_attn"], fan_in_fan_out=True, bias="all")
    said: list[str] = []
    verified_export.export(str(run), "merged", tmp_path / "out", unproven=True, say=said.append)
    assert any("in memory, as a whole: the adapter brings biases" in line for line in said)
    before, after = files_of(base), files_of(tmp_path / "out")
    assert not torch.equal(before["transformer.ln_f.bias"], after["transformer.ln_f.bias"])


def test_embeddings_and_head_that_grew_apart_get_two_places(tmp_path: Path) -> None:
    """Somebody else's adapter: the base ties them, the adapter has two different copies."""
    base = save_twin(tmp_path / "base", "llama", tie_word_embeddings=True)
    run = make_run(tmp_path / "run", base, target_modules=ATTENTION, modules_to_save=["lm_head"])
    said: list[str] = []
    verified_export.export(str(run), "merged", tmp_path / "out", unproven=True, say=said.append)
    assert any("in memory, as a whole: embeddings and head" in line for line in said)
    shutil.rmtree(base)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not torch.equal(found.lm_head.weight, found.model.embed_tokens.weight)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
def test_quantized_layers_are_unpacked_to_what_they_were(family: str, kind: str, tmp_path: Path) -> None:
    """Also those that hold their weight transposed, or are a class of their own in a model that is not quantized."""
    base = save_twin(tmp_path / "base", family)
    quantization = component.load("quantization", kind)
    held = load_model(base, dtype=torch.float32, device=CPU, quantization=quantization(quantization.Config()))
    wanted = logits(held)
    unpacked = dequantize(held, torch.float32)
    plain = load_model(base, dtype=torch.float32, device=CPU)
    kinds = [nn.Linear if isinstance(module, nn.Linear) else type(module) for module in plain.modules()]
    assert [type(module) for module in unpacked.modules()] == kinds
    before, after = plain.state_dict(), unpacked.state_dict()
    assert {name: tensor.shape for name, tensor in after.items()} == {name: t.shape for name, t in before.items()}
    rounded = [name for name in before if not torch.equal(before[name], after[name])]
    assert rounded
    assert all((before[name] - after[name]).abs().max() < 0.2 * before[name].abs().max() for name in rounded)
    torch.testing.assert_close(logits(unpacked), wanted, atol=1e-4 if kind == "nf4" else 0.05, rtol=0)
    unpacked.save_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(load_model_of(tmp_path / "out")), logits(unpacked), atol=1e-6, rtol=0)


def load_model_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(3, 30)[None]).logits
    return found
