"""`tuning: freeze`: what is named is trained, the rest keeps its bits, and the result is a whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from luthier import component, config
from luthier.errors import UserError
from luthier.inference.opened import open_model
from luthier.kernels.dropout import DropoutKeys
from luthier.models import stored
from luthier.models.load import load_model
from luthier.models.source import ModelSource
from luthier.planning import memory
from luthier.training import build, result, run
from luthier.tuning import Start
from tests.helpers.tiny_models import TWINS, tiny_llama, tiny_tokenizer, twin

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


@pytest.mark.parametrize(
    ("family", "held", "dtype"),
    [
        ("llama", "float32", "float32"),
        ("llama", "float32", "bfloat16"),
        ("llama", "bfloat16", "bfloat16"),
        ("qwen3_moe", "bfloat16", "float32"),
        ("gpt2", "float32", "bfloat16"),
    ],
)
def test_what_is_frozen_is_written_as_it_was_stored(tmp_path: Path, family: str, held: str, dtype: str) -> None:
    """Bit for bit, in whatever the base is held; what is trained is float32, and nothing else has moved."""
    tied = family == "gpt2"
    twin(family, tie_word_embeddings=tied).to(getattr(torch, held)).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    folder = trained_run(tmp_path, dtype)
    names = json.loads((folder / "manifest.json").read_text())["trained_tensors"]
    assert names
    assert all(".layers.*." in name or ".h.*." in name for name in names)
    before, after = (
        load_file(tmp_path / "model" / "model.safetensors"),
        load_file(folder / "model" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    trained = {name for name in before if ".layers.1." in name or "h.1." in name}
    frozen = before.keys() - trained
    assert [name for name in frozen if not torch.equal(before[name], after[name])] == []
    assert {after[name].dtype for name in frozen} == {getattr(torch, held)}
    assert {after[name].dtype for name in trained} == {torch.float32}
    assert sum(not torch.equal(before[name].float(), after[name]) for name in trained) > 0.6 * len(trained)
    opened = open_model(str(folder))
    plain = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=opened.compute_dtype)
    ids = torch.arange(8)[None]
    assert torch.equal(opened.model(ids).logits, plain(ids).logits)
    assert AutoModelForCausalLM.from_pretrained(folder / "model", dtype="auto").dtype == torch.float32


def test_what_cannot_be_found_by_name_is_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, where there is room beside the model that was trained."""
    tiny_llama(tmp_path / "model")
    monkeypatch.setattr(stored, "tensors", lambda *_: iter(()))
    places: list[str] = []
    load = result.load_model
    monkeypatch.setattr(
        result, "load_model", lambda *args, **keys: (places.append(str(keys["device"])), load(*args, **keys))[1]
    )
    folder = trained_run(tmp_path, "bfloat16", "sample_prompts=[Say 3.]")
    assert places == ["cpu"]
    assert [line["prompt"] for line in json.loads((folder / "answers.json").read_text())] == ["Say 3."]
    before, after = (
        load_file(tmp_path / "model" / "model.safetensors"),
        load_file(folder / "model" / "model.safetensors"),
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".layers.1." in name}


def test_gradients_and_a_second_model_are_not_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(tmp_path / "model")
    monkeypatch.setattr(stored, "tensors", lambda *_: iter(()))
    core = load_model(model, dtype=torch.bfloat16, device="cpu")
    trained_of(core, last_layers=1)
    for parameter in core.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    load = result.load_model

    def watched(*args: Any, **keys: Any) -> Any:
        assert all(parameter.grad is None for parameter in core.parameters())
        return load(*args, **keys)

    monkeypatch.setattr(result, "load_model", watched)
    result._save_model(core, ModelSource(model, "tiny", None, "folder"), tmp_path / "out", in_float32=True)
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize(("mixed", "wanted"), [(False, torch.bfloat16), (True, torch.float32)])
def test_what_is_trained_begins_as_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixed: bool, wanted: torch.dtype
) -> None:
    """A base of 16 bits is loaded in 16 bits, also if its config.json does not say so; one with wider weights is not."""
    model = twin("llama").bfloat16()
    if mixed:
        model.model.layers[1].input_layernorm.float()
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({key: value for key, value in settings.items() if key != "dtype"})
    )
    found: list[torch.dtype] = []
    load = build.load_model
    monkeypatch.setattr(
        build, "load_model", lambda *args, **keys: (found.append(keys["dtype"]), load(*args, **keys))[1]
    )
    trained_run(tmp_path, "bfloat16")
    assert found == [wanted]


@pytest.mark.parametrize(
    ("tuning", "checkpointing", "counted"),
    [("freeze", "true", 0), ("freeze", "false", 0), ("full", "auto", 1), ("freeze", "auto", 1)],
)
def test_a_model_is_made_for_counting_only_where_it_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuning: str, checkpointing: str, counted: int
) -> None:
    calls: list[Any] = []
    count = build.trained_parameters
    monkeypatch.setattr(build, "trained_parameters", lambda *args: (calls.append(args), count(*args))[1])
    tiny_llama(tmp_path / "model")
    trained_run(tmp_path, "float32", f"tuning={tuning}", f"activation_checkpointing={checkpointing}", "max_steps=1")
    assert len(calls) == counted


def trained_run(folder: Path, dtype: str, *more: str) -> Path:
    """The last layer of `folder`/model, for three steps."""
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    keys = [f"model={folder / 'model'}", f"data={folder / 'train.jsonl'}", f"output_dir={folder / 'run'}"]
    keys += ["tuning={kind: freeze, last_layers: 1}", f"dtype={dtype}", "max_steps=3", "learning_rate=1e-2", *more]
    run.execute(config.load(None, keys), say=lambda text: None)
    return folder / "run"


def test_what_is_held_is_counted(tmp_path: Path) -> None:
    """Of a frozen weight its own bytes; of a trained one its gradient and AdamW's means too."""
    model = twin("llama")
    total = sum(parameter.numel() for parameter in model.parameters())
    layer = sum(parameter.numel() for parameter in model.model.layers[1].parameters())
    for kind, settings, trained in (("full", {}, total), ("freeze", {"last_layers": 1}, layer)):
        tuning = component.load("tuning", kind)
        count = memory.trained_parameters(model.config, tuning(tuning.Config(**settings)))
        assert count == trained
        assert memory.held_bytes(total, count, 2) == 2 * (total - trained) + 18 * trained
        assert (
            memory.held_bytes(total, count, 2, state_bytes=4, in_bfloat16=True) == 2 * (total - trained) + 8 * trained
        )


def test_a_head_of_scores_can_be_named_and_is_counted() -> None:
    model = twin("llama")
    kind = component.load("tuning", "freeze")
    tuning = kind(kind.Config(patterns=(r"score\.weight",)))
    assert memory.trained_parameters(model.config, tuning, scored=True) == model.config.hidden_size
    with pytest.raises(UserError, match="score"):
        memory.trained_parameters(model.config, tuning)
