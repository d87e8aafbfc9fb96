"""An adapter is put on the base that it was trained on and on no other; merging one that was trained on a quantized base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier import component, config
from luthier.errors import UserError
from luthier.inference import verified_export
from luthier.inference.opened import open_model
from luthier.models.dequantized import dequantize
from luthier.models.load import fingerprint, load_model
from luthier.models.source import ModelSource
from luthier.training import run
from tests.helpers.tiny_models import tiny_llama
from tests.inference.conftest import make_run, sharpened


def quiet(_text: str) -> None:
    """What is said on the way."""


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same shapes and tokenizer with other weights, as a chat model is of its base."""
    return sharpened(tiny_llama(tmp_path_factory.mktemp("models") / "chat", seed=7))


def test_trained_on_the_base_and_merged_into_the_chat_model(base: Path, chat_model: Path, tmp_path: Path) -> None:
    """A tutorial trains on one model and merges into its chat version: every shape fits, and the answers are of neither."""
    swapped = tmp_path / "base"
    shutil.copytree(base, swapped)
    trained = make_run(tmp_path / "run", swapped)
    settings = trained / "adapter" / "adapter_config.json"
    tree = json.loads(settings.read_text()) | {"base_model_name_or_path": str(chat_model)}
    settings.write_text(json.dumps(tree))
    assert open_model(str(trained)).source.folder == swapped, (
        "what luthier wrote of the base says more than peft's file"
    )
    rows = tmp_path / "train.jsonl"
    rows.write_text('{"prompt": "Say.", "completion": "No."}\n' * 3)
    go_on = [f"model={chat_model}", f"data={rows}", f"adapter_path={trained}", f"output_dir={tmp_path / 'next'}"]
    with pytest.raises(UserError, match=f"trained on {swapped}, this is {chat_model}; they differ in their weights"):
        run.execute(config.load(None, [*go_on, "dtype=float32"]), say=quiet)
    shutil.rmtree(swapped)
    shutil.copytree(chat_model, swapped)
    for use in (
        lambda: verified_export.export(str(trained), "merged", tmp_path / "out", say=quiet),
        lambda: open_model(str(trained)),
    ):
        with pytest.raises(UserError, match="they differ in their weights") as caught:
            use()
        assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.prove
def test_tuned_and_untuned_are_not_the_same_weights(base: Path, tmp_path: Path) -> None:
    """The same tutorial then compares the merged model with itself: merging had changed its base in place."""
    trained = make_run(tmp_path / "run", base, strength=0.5)
    verified_export.export(str(trained), "merged", tmp_path / "merged", say=quiet)
    opened = open_model(str(trained), dtype="float32", device=torch.device("cpu"))
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        tuned = opened.model(input_ids=ids).logits
        with opened.model.disable_adapter():
            before = opened.model(input_ids=ids).logits
        merged = open_model(str(tmp_path / "merged"), dtype="float32", device=torch.device("cpu")).model(ids).logits
        plain = open_model(str(base), dtype="float32", device=torch.device("cpu")).model(ids).logits
    assert torch.equal(before, plain)
    assert float((tuned - before).abs().max()) > 0.1
    torch.testing.assert_close(merged, tuned, atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="nothing is known of what it was"):
        open_model(str(tmp_path / "merged")).policy(with_reference=True)


@pytest.mark.prove
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_merged_into_the_values_that_it_was_trained_on(base: Path, tmp_path: Path, kind: str) -> None:
    trained = make_run(tmp_path / "run", base, quantization=kind)
    with pytest.raises(UserError, match=f"held in {kind}.*") as caught:
        verified_export.export(str(trained), "merged", tmp_path / "out", say=quiet)
    assert "dequantized" in str(caught.value)
    done = verified_export.export(str(trained), "merged", tmp_path / "out", base="dequantized", say=quiet)
    other = verified_export.export(str(trained), "merged", tmp_path / "other", base="16bit", say=quiet)
    assert done.choice is not None
    assert other.choice is not None
    assert done.choice.mean_kl_nats < 0.05 * other.choice.mean_kl_nats
    assert done.choice.top1_agreement >= other.choice.top1_agreement
    assert "this base against the quantized one of the training" in done.as_text()
    with torch.no_grad():
        ids = torch.arange(3, 30)[None]
        wanted = open_model(str(trained), dtype="float32", device=torch.device("cpu")).model(ids).logits
        merged = open_model(str(tmp_path / "out"), dtype="float32", device=torch.device("cpu")).model(ids).logits
    torch.testing.assert_close(merged, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("copied", [False, True], ids=["run", "copied adapter"])
def test_dequantized_is_what_was_trained_on_in_another_dtype_too(base: Path, tmp_path: Path, copied: bool) -> None:
    """A run in bfloat16 rounds the base's float32 weights before it quantizes them, which changes some codes."""
    rows = [{"prompt": f"Say {number}.", "completion": f"{number}!"} for number in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = [
        f"model={{path: {base}, quantization: nf4, dtype: bfloat16}}",
        f"data={tmp_path / 'train.jsonl'}",
        "max_steps=1",
    ]
    run.execute(config.load(None, [*keys, f"output_dir={tmp_path / 'run'}"]), say=quiet)
    target = tmp_path / "run"
    if copied:
        target = Path(shutil.copytree(tmp_path / "run" / "adapter", tmp_path / "copy"))
    held = component.load("quantization", "nf4")
    exact, rounded = (
        dequantize(load_model(base, dtype=dtype, device="cpu", quantization=held(held.Config())), torch.float32)
        for dtype in (torch.float32, torch.bfloat16)
    )
    opened = open_model(str(target), dtype="float32", device=torch.device("cpu"), base="dequantized")
    name = "model.layers.0.mlp.up_proj"
    found = opened.model.get_base_model().get_submodule(name).base_layer.weight
    assert found.dtype == torch.float32
    assert torch.equal(found, rounded.get_submodule(name).weight)
    assert not torch.equal(found, exact.get_submodule(name).weight)


@pytest.mark.prove
def test_a_copied_adapter_knows_how_its_base_was_held(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {number}.", "completion": f"{number}!"} for number in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = [f"data={tmp_path / 'train.jsonl'}", "dtype=float32", "max_steps=1", "data.eval=0.3"]
    begin = [*keys, f"model={{path: {base}, quantization: nf4}}", f"output_dir={tmp_path / 'run'}"]
    run.execute(config.load(None, [*begin, "init_lora_weights=loftq"]), say=quiet)
    shutil.copytree(tmp_path / "run" / "adapter", tmp_path / "copy")
    opened = open_model(str(tmp_path / "copy"))
    assert opened.quantization is not None
    assert opened.quantization.kind == "nf4"
    assert any(type(module).__name__ == "Linear4bit" for module in opened.model.modules())
    with pytest.raises(UserError, match="began at what quantization lost"):
        verified_export.export(str(tmp_path / "run"), "merged", tmp_path / "out", base="16bit", say=quiet)
    assert len(verified_export._held_out(open_model(str(tmp_path / "run")), quiet)) > 0
    done = verified_export.export(str(tmp_path / "run"), "merged", tmp_path / "out", base="dequantized", say=quiet)
    assert done.choice is not None
    assert done.choice.mean_kl_nats < 1e-5
    go_on = [*keys, f"model={base}", f"output_dir={tmp_path / 'next'}", f"adapter_path={tmp_path / 'copy'}"]
    with pytest.raises(UserError, match=f"trained on {base} held in nf4, this is {base}; they differ in their quant"):
        run.execute(config.load(None, go_on), say=quiet)


def test_any_tensor_of_another_base_is_seen(tmp_path: Path) -> None:
    """Also in a model of 32 layers with as many tensors in each as are looked at from layer to layer."""
    folder = tiny_llama(tmp_path / "model", num_hidden_layers=32)
    before = fingerprint_of(folder)
    weights = load_file(folder / "model.safetensors")
    assert len(weights) > 9 * 32
    for name in [name for name in weights if ".layers." not in name or ".layers.7." in name]:
        changed = weights | {name: weights[name].clone()}
        changed[name].view(-1)[changed[name].numel() // 2] += 1.0
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        assert fingerprint_of(folder) != before, name
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint_of(folder) == before


def fingerprint_of(folder: Path) -> str:
    return fingerprint(ModelSource(folder, str(folder), None, "folder")).weights_hash


def test_another_template_is_another_base_to_go_on_from(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {number}.", "completion": f"{number}!"} for number in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = [f"model={base}", f"data={tmp_path / 'train.jsonl'}", "dtype=float32", "max_steps=1"]
    run.execute(config.load(None, [*keys, f"output_dir={tmp_path / 'run'}"]), say=quiet)
    keys += [f"adapter_path={tmp_path / 'run'}", f"output_dir={tmp_path / 'next'}"]
    with pytest.raises(UserError, match="they differ in their template"):
        run.execute(config.load(None, [*keys, "chat_template=chatml"]), say=quiet)
    run.execute(config.load(None, keys), say=quiet)


def test_an_adapter_for_a_base_that_peft_changes_is_no_beginning(base: Path, tmp_path: Path) -> None:
    trained = make_run(tmp_path / "run", base) / "adapter"
    settings = trained / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"init_lora_weights": "pissa"}))
    (tmp_path / "train.jsonl").write_text('{"prompt": "Say.", "completion": "No."}\n' * 3)
    keys = [f"model={base}", f"data={tmp_path / 'train.jsonl'}", "dtype=float32", "max_steps=1"]
    keys += [f"adapter_path={trained}", f"output_dir={tmp_path / 'next'}"]
    with pytest.raises(UserError, match="for which peft changes the base"):
        run.execute(config.load(None, keys), say=quiet)


def test_what_quantization_lost_is_not_added_twice_after_going_on(base: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "Say.", "completion": "No."}\n' * 3)
    keys = [
        f"model={{path: {base}, quantization: nf4}}",
        f"data={tmp_path / 'train.jsonl'}",
        "dtype=float32",
        "max_steps=1",
    ]
    run.execute(config.load(None, [*keys, "init_lora_weights=loftq", f"output_dir={tmp_path / 'run'}"]), say=quiet)
    go_on = [*keys, f"adapter_path={tmp_path / 'run'}", f"output_dir={tmp_path / 'next'}"]
    run.execute(config.load(None, go_on), say=quiet)
    with pytest.raises(UserError, match="began at what quantization lost"):
        verified_export.export(str(tmp_path / "next"), "merged", tmp_path / "out", base="16bit", say=quiet)
