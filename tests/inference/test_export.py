"""Exports are read back by other libraries, compared, whole or absent, refused where they would lose something."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from luthier import config
from luthier.errors import EnvironmentProblem, UserError
from luthier.inference import drift, verified_export
from luthier.inference.chat import Chat
from luthier.inference.opened import open_model
from luthier.training.run import execute
from luthier.types import Message
from tests.helpers.tiny_models import tiny_llama
from tests.inference.conftest import make_run

IDS = torch.tensor([[5, 9, 42, 77, 300, 12]])


def quiet(_text: str) -> None:
    """Says nothing."""


def full(*_args: Any, **_keys: Any) -> None:
    """As safetensors says it."""
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


OWN_CODE = """from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_a_model_whose_code_comes_with_it(tmp_path: Path, kind: str) -> None:
    model = tiny_llama(tmp_path / "model")
    (model / "own.py").write_text(OWN_CODE)
    tree = json.loads((model / "config.json").read_text())
    tree |= {"model_type": "own_llama", "architectures": ["OwnModel"]}
    tree["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (model / "config.json").write_text(json.dumps(tree))
    (tmp_path / "train.jsonl").write_text('{"prompt": "Hello.", "completion": "Hello to you."}\n' * 3)
    keys = [f"model={model}", f"data={tmp_path / 'train.jsonl'}", "dtype=float32", "max_steps=1"]
    execute(config.load(None, [*keys, f"output_dir={tmp_path / 'run'}"]), trust_remote_code=True, say=quiet)
    with pytest.raises(UserError, match="--trust-remote-code"):
        verified_export.export(str(tmp_path / "run"), kind, tmp_path / "out", say=quiet)
    done = verified_export.export(
        str(tmp_path / "run"), kind, tmp_path / "out", unproven=True, trust_remote_code=True, say=quiet
    )
    assert done.drift.max_logit_difference < 1e-4
    assert (tmp_path / "out" / "own.py").is_file() == (kind == "merged")


def test_merged_is_a_plain_folder_that_answers_as_the_run(run: Path, tmp_path: Path) -> None:
    done = verified_export.export(str(run), "merged", tmp_path / "out", say=quiet)
    assert done.dtype == "float32"
    assert done.drift.max_logit_difference < 1e-3
    assert done.drift.top1_agreement == 1.0
    assert done.tuning is not None
    assert done.tuning.mean_kl_nats > 0.01
    assert not list((tmp_path / "out").glob("adapter*"))
    opened = open_model(str(run))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert torch.allclose(logits(merged), logits(opened.model), atol=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert text == opened.renderer.prompt_ids([Message("user", "Hi")])
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [2]
    assert {path.suffix for path in (tmp_path / "out").iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    reopened = open_model(str(tmp_path / "out"))
    assert reopened.adapter is None
    assert reopened.renderer.stop_ids == {2}


@pytest.mark.prove
@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_the_system_text_of_the_training_goes_along(kind: str, base: Path, tmp_path: Path) -> None:
    """A model answers as it was trained only when it is asked as it was trained."""
    run = make_run(tmp_path / "run", base)
    ours = run / "adapter" / "luthier.json"
    ours.write_text(json.dumps(json.loads(ours.read_text()) | {"system": "You are a luthier."}))
    done = verified_export.export(str(run), kind, tmp_path / "out", say=quiet)
    assert "'You are a luthier.'" in done.as_text()
    assert Chat(open_model(str(tmp_path / "out"))).messages == [Message("system", "You are a luthier.")]
    again = verified_export.export(str(tmp_path / "out"), kind, tmp_path / "again", say=quiet)
    assert again.system == "You are a luthier."
    without = verified_export.export(str(make_run(tmp_path / "b", base)), kind, tmp_path / "c", say=quiet)
    assert "system text" not in without.as_text()


@pytest.mark.prove
def test_files_have_the_mode_that_the_umask_says(run: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        verified_export.export(str(run), "merged", tmp_path / "merged", say=quiet)
        verified_export.export(str(run), "adapter", tmp_path / "adapter", say=quiet)
    finally:
        os.umask(before)
    for folder in ("merged", "adapter"):
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / folder).iterdir()} == {0o640}


def test_merged_in_the_dtype_of_the_base(run: Path, base: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(base, half)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(half)
    half_run = make_run(tmp_path / "run", half)
    done = verified_export.export(str(half_run), "merged", tmp_path / "out", say=quiet)
    assert done.dtype == "bfloat16"
    assert {
        weight.dtype for weight in AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").parameters()
    } == {torch.bfloat16}
    assert 0 < done.drift.mean_kl_nats < done.tuning.mean_kl_nats / 2
    wide = verified_export.export(str(half_run), "merged", tmp_path / "wide", settings={"dtype": "float32"}, say=quiet)
    assert wide.drift.max_logit_difference < 1e-3


@pytest.mark.prove
def test_a_merge_that_rounds_the_tuning_away_is_refused(base: Path, tmp_path: Path) -> None:
    faint = make_run(tmp_path / "faint", base, strength=1e-4)
    with pytest.raises(UserError, match="what was learned would be lost") as caught:
        verified_export.export(str(faint), "merged", tmp_path / "out", settings={"dtype": "bfloat16"}, say=quiet)
    assert "--dtype float32" in caught.value.fix
    assert not (tmp_path / "out").exists()
    done = verified_export.export(str(faint), "merged", tmp_path / "out", say=quiet)
    assert done.drift.max_logit_difference < 1e-3


def test_adapter_is_the_same_to_the_bit_and_loads_in_plain_peft(run: Path, base: Path, tmp_path: Path) -> None:
    done = verified_export.export(str(run), "adapter", tmp_path / "out", say=quiet)
    assert done.drift.max_logit_difference == 0.0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert "manifest.json" not in names
    weights = "adapter_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (run / "adapter" / weights).read_bytes()
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "out"))
    assert torch.equal(logits(plain), logits(open_model(str(run)).model))


def test_a_run_that_tuned_all_weights(full_run: Path, tmp_path: Path) -> None:
    done = verified_export.export(str(full_run), "merged", tmp_path / "out", say=quiet)
    assert done.tuning is None
    assert done.drift.max_logit_difference == 0.0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(merged), logits(AutoModelForCausalLM.from_pretrained(full_run / "model")))
    with pytest.raises(UserError, match="has no adapter"):
        verified_export.export(str(full_run), "adapter", tmp_path / "no", say=quiet)
    assert not (tmp_path / "no").exists()


def test_nothing_is_overwritten_and_an_empty_folder_is_taken(run: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        verified_export.export(str(run), "adapter", tmp_path / "used", say=quiet)
    assert (tmp_path / "used" / "mine.txt").read_text() == "keep"
    (tmp_path / "empty").mkdir()
    verified_export.export(str(run), "adapter", tmp_path / "empty", say=quiet)
    assert (tmp_path / "empty" / "adapter_config.json").is_file()


@pytest.mark.prove
def test_a_quantized_base_needs_a_choice(base: Path, tmp_path: Path) -> None:
    quantized = make_run(tmp_path / "run", base, quantization="nf4")
    with pytest.raises(UserError, match="held in nf4") as caught:
        verified_export.export(str(quantized), "merged", tmp_path / "out", say=quiet)
    line = f"luthier export {quantized} --to merged --output {tmp_path / 'out'} --base"
    assert caught.value.fix == f"{line} 16bit, or {line} dequantized"
    assert not (tmp_path / "out").exists()
    verified_export.export(str(quantized), "merged", tmp_path / "out", base="16bit", say=quiet)
    verified_export.export(str(quantized), "adapter", tmp_path / "adapter", say=quiet)


def test_a_full_disk_is_seen_before_and_a_failed_write_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(verified_export.shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(EnvironmentProblem, match="are free"):
            verified_export.export(str(run), "merged", tmp_path / "out", say=quiet)
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(EnvironmentProblem, match=r"the disk is full"):
            verified_export.export(str(run), "merged", tmp_path / "out", say=quiet)
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        verified_export.export(str(run), "adapter", tmp_path / "file" / "out", say=quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_unknown_kinds_and_settings_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="merged"):
        verified_export.export(str(run), "merge", tmp_path / "out", say=quiet)
    with pytest.raises(UserError, match="no setting 'dtype'"):
        verified_export.export(str(run), "adapter", tmp_path / "out", settings={"dtype": "float32"}, say=quiet)
    with pytest.raises(UserError, match="16bit"):
        verified_export.export(str(run), "merged", tmp_path / "out", base="8bit", say=quiet)
    with pytest.raises(UserError, match="int3"):
        verified_export.export(str(run), "merged", tmp_path / "out", settings={"dtype": "int3"}, say=quiet)


def test_drift_of_a_model_from_itself_is_nothing_and_grows_with_the_difference() -> None:
    first = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    assert drift.drift([first], [first]) == drift.Drift(0.0, float(first.abs().max()), 1.0, 0.0, 20)
    shifted = drift.drift([first], [first + 3.0])
    assert shifted.mean_kl_nats < 1e-6  # a constant changes no probability
    other = first.clone()
    other[0] = -other[0]
    found = drift.drift(first.split(5), other.split(5))
    assert found == drift.drift([first], [other])
    assert found.top1_agreement == 0.95
    expected = (
        torch.nn.functional.kl_div(other.log_softmax(-1), first.log_softmax(-1), log_target=True, reduction="sum") / 20
    )
    assert found.mean_kl_nats == pytest.approx(float(expected), rel=1e-4)
    other[3, 3] = torch.nan
    broken = drift.drift([first, first], [other, first])
    assert broken.max_logit_difference != broken.max_logit_difference
    assert broken.mean_kl_nats != broken.mean_kl_nats
