"""A run on each native architecture from end to end, in the form in which they are published: trained, merged, loaded again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.cli import main
from luthier.inference import verified_export
from luthier.inference.opened import open_model
from tests.helpers.tiny_models import save_twin, tiny_tokenizer, twin

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
PUBLISHED = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the originals' tokenizers lie in ../shared/golden, which is not here"
)
TOKENIZERS = {"yuan": "tokenizer_yuan2", "baichuan": "tokenizer_baichuan2"}
TEMPLATES = {"yuan": "yuan", "baichuan": "baichuan2@chat"}
ROWS = {"yuan": 135040, "baichuan": 125696}
TALKS = [(f"数到 {number}。", f"{number}, " * (1 + number % 4) + "好。") for number in range(12)]


def published(folder: Path, name: str) -> Path:
    """A twin with the original tokenizer beside it, and settings that ask for code."""
    ids = {"bos_token_id": 185, "eos_token_id": 77185, "pad_token_id": 77185} if name == "yuan" else {}
    ids |= {"eod_token": 77185, "sep_token": 77187} if name == "yuan" else {}
    model = twin(name, vocab_size=ROWS[name], hidden_size=32, num_attention_heads=2, **ids)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoConfig": "configuration.Config", "AutoModelForCausalLM": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for file in (GOLDEN / TOKENIZERS[name]).iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder


def trained(model: Path, folder: Path, *overrides: str) -> tuple[Path, dict[str, Any], list[float]]:
    """The run's folder, its manifest, and the loss of each step."""
    rows = [{"instruction": ask, "input": "", "output": answer} for ask, answer in TALKS]
    data = folder / "talks.json"
    data.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    run = folder / "run"
    keys = [f"model={model}", f"data={data}", f"output_dir={run}", "dtype=float32", "max_steps=6", "warmup_steps=0"]
    keys += ["learning_rate=2e-2", "global_batch_size=4", "lr_scheduler_type=constant", "sample_prompts=[]"]
    assert main(["train", *keys, *overrides]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    return run, manifest, [line["loss"] for line in lines if "loss" in line]


def merged_answers_as(run: Path, out: Path, ids: torch.Tensor) -> None:
    done = verified_export.export(str(run), "merged", out, say=lambda _text: None)
    assert done.drift.max_logit_difference < 1e-3
    opened = open_model(str(run))
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, opened.model(ids).logits, atol=1e-4)


@pytest.mark.prove
@pytest.mark.parametrize("name", ["yuan", "baichuan", "baichuan_alibi"])
def test_a_twin_is_trained_flat_merged_and_loaded(name: str, tmp_path: Path) -> None:
    model = save_twin(tmp_path / "model", name)
    run, manifest, losses = trained(model, tmp_path)
    assert manifest["decisions"]["layout"] == "flat"
    assert losses[-1] < losses[0]
    merged_answers_as(run, tmp_path / "merged", torch.arange(3, 40)[None])
    text = "What is it?"
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").encode(text) == tiny_tokenizer().encode(text)


@pytest.mark.prove
@PUBLISHED
@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_with_the_tokenizer_and_template_of_the_originals(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = published(tmp_path / "model", name)
    run, manifest, losses = trained(model, tmp_path, f"data.chat_template={TEMPLATES[name]}")
    assert manifest["decisions"]["layout"] == "flat"
    assert losses[-1] < losses[0]
    original, kept = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(run / "adapter")
    assert type(kept) is type(original)
    text = f"你是谁？{original.eos_token}  def f(x):\n    return x"
    assert kept.encode(text) == original.encode(text)
    opened = open_model(str(run))
    assert original.eos_token_id in opened.renderer.stop_ids
    merged_answers_as(run, tmp_path / "merged", torch.tensor([original.encode(text)]))
    capsys.readouterr()
    assert main(["chat", str(tmp_path / "merged"), "--prompt", "你是谁？", "--max-new-tokens", "3"]) == 0
