"""Each two values of the keys that decide most meet in some short run, from the command line: it trains, a broken one goes on to the
same bits, answers, is exported, and what was exported answers too."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.inference.opened import open_model
from luthier.types import Message
from tests.helpers.breaking import break_after
from tests.helpers.command_line import luthier
from tests.helpers.covering_array import Trial, covering_trials
from tests.helpers.killing import differences, steps_in
from tests.helpers.tiny_models import save_twin

STEPS, BREAKS_AFTER = 5, 3

HEADED = ("llama", "qwen3_moe", "gemma3_text")
"""Models whose head and embeddings have the names that the trials write."""
MIXTURES = ("qwen3_moe", "gpt_oss")

ON_THE_HEAD = "{kind: lora, target_modules: [q_proj, lm_head], lora_dropout: 0.2}"
ON_EXPERTS = "{kind: lora, r: 2, experts: true}"
WHOLE_EDGES = "{kind: lora, modules_to_save: [embed_tokens, lm_head]}"
DORA = "{kind: lora, use_dora: true, use_rslora: true}"
PISSA = "{kind: lora, init_lora_weights: pissa, loraplus_lr_ratio: 4}"
WITH_BALANCE = "{kind: weighted, terms: [{kind: sft}, {kind: router_balance}]}"

VALUES = {
    "model": ("llama", "qwen3_moe", "gpt_oss", "lfm2", "gpt2", "gemma3_text", "bloom", "yuan", "baichuan_alibi"),
    "tuning": (
        "lora",
        "{kind: lora, r: 2, lora_dropout: 0.3}",
        DORA,
        PISSA,
        ON_THE_HEAD,
        ON_EXPERTS,
        WHOLE_EDGES,
        "freeze",
        "full",
    ),
    "optim": ("adamw", "adamw_bf16", "adamw_8bit", "adafactor", "lion", "muon", "paged_adamw", "paged_adamw_8bit"),
    "data.train": ("alpaca", "sharegpt", "messages", "prompt_completion", "text"),
    "lr_scheduler_type": (
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
    ),
    "objective": (
        "sft",
        "{kind: weighted, terms: [{kind: sft, weight: 0.9}, {kind: z_loss}]}",
        "{kind: weighted, terms: [{kind: sft}, {kind: z_loss}], gradient_shares: true}",
        WITH_BALANCE,
    ),
    "dtype": ("float32", "bfloat16", "float16"),
    "quantization": ("null", "nf4", "int8"),
    "neftune_noise_alpha": ("null", "5"),
    "data.add_tokens": ("[]", "['<new>']"),
    "data.system": ("null", "Be brief."),
    "data.eval": ("null", "0.2", "held.jsonl"),
    "on_long_row": ("error", "drop", "truncate"),
    "eval_steps": ("null", "1", "0.4"),
    "warmup_steps": ("0", "0.5", "2"),
    "global_batch_size": ("1", "3", "8"),
    "max_tokens_per_micro_batch": ("auto", "30"),
    "load_best_checkpoint": ("false", "true"),
    "early_stopping_patience": ("null", "1"),
    "activation_checkpointing": ("false", "true"),
    "max_grad_norm": ("null", "0.5"),
    "weight_decay": ("0", "0.1"),
    "save_steps": ("1", "2"),
    "sample_prompts": ("[]", "[hello]"),
    "deterministic": ("false", "true"),
    "seed": ("0", "7"),
}
NEED_HELD_OUT = ("eval_steps", "load_best_checkpoint", "early_stopping_patience")


def allowed(trial: Trial) -> bool:
    """What the configuration itself refuses is left out, and models that do not have what a value names."""
    model, tuning = trial.get("model", "qwen3_moe"), trial.get("tuning", "lora")
    held = trial.get("quantization", "null")
    adds_tokens = trial.get("data.add_tokens", "[]") != "[]"
    refused = (
        tuning in (PISSA, "freeze", "full") and held != "null",
        tuning == DORA and held == "int8",
        tuning in (ON_THE_HEAD, "freeze") and adds_tokens,
        model == "baichuan_alibi"
        and trial.get("tuning", "full") != "full"
        and adds_tokens,  # its head is no plain layer
        trial.get("optim") == "adamw_bf16" and trial.get("dtype", "bfloat16") != "bfloat16",
        trial.get("lr_scheduler_type") == "constant" and trial.get("warmup_steps", "0") != "0",
        trial.get("data.eval") == "null"
        and any(trial.get(key, "null") in ("1", "0.4", "true") for key in NEED_HELD_OUT),
        tuning in (ON_THE_HEAD, WHOLE_EDGES) and model not in HEADED,
        tuning == ON_EXPERTS and model not in MIXTURES,
        trial.get("objective") == WITH_BALANCE and model not in MIXTURES,
    )
    return not any(refused)


TRIALS = covering_trials(VALUES, allowed)


def test_every_pair_that_may_be_is_in_a_trial() -> None:
    for first in VALUES:
        for second in VALUES:
            met = {(trial[first], trial[second]) for trial in TRIALS}
            wanted = {(a, b) for a in VALUES[first] for b in VALUES[second] if first != second}
            assert {pair for pair in wanted if allowed(dict(zip((first, second), pair, strict=True)))} <= met
    assert all(map(allowed, TRIALS))
    assert len(TRIALS) < 110


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all models and the same conversations in all formats."""
    folder = tmp_path_factory.mktemp("combinations")
    for name in VALUES["model"]:
        save_twin(folder / name, name)
    talks = [(f"Say {number}.", f"{number} it is. " * (1 + number % 5)) for number in range(40)]
    turns = [[{"role": "user", "content": ask}, {"role": "assistant", "content": answer}] for ask, answer in talks]
    renamed = [[{"from": "human", "value": a["content"]}, {"from": "gpt", "value": b["content"]}] for a, b in turns]
    files: dict[str, list[dict[str, Any]]] = {
        "alpaca": [{"instruction": ask, "output": answer} for ask, answer in talks],
        "sharegpt": [{"conversations": turn} for turn in renamed],
        "messages": [{"messages": turn} for turn in turns],
        "prompt_completion": [{"prompt": ask, "completion": answer} for ask, answer in talks],
        "text": [{"text": f"{ask} {answer}"} for ask, answer in talks],
    }
    files["held"] = files["messages"][:6]
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.mark.prove
@pytest.mark.parametrize("number", range(len(TRIALS)))
def test_a_trial(
    number: int, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    trial = TRIALS[number] | {"data.train": TRIALS[number]["data.train"] + ".jsonl"}
    long = trial["data.system"] != "null" and TRIALS[number]["data.train"] != "text"
    limit = [] if trial["on_long_row"] == "error" else [f"max_length={60 if long else 36}"]
    keys = [f"{key}={value}" for key, value in trial.items()] + limit
    keys += [f"max_steps={STEPS}", "learning_rate=1e-3", "save_total_limit=5"]
    whole, broken, exported = (tmp_path / name for name in ("whole", "broken", "exported"))

    assert luthier("train", *keys, f"output_dir={whole}") == 0, capsys.readouterr().err
    with monkeypatch.context() as patch:
        ended = break_after(BREAKS_AFTER, patch)
        assert luthier("train", *keys, f"output_dir={broken}") == (1 if steps_in(whole) > BREAKS_AFTER else 0)
    assert ended == [BREAKS_AFTER] * (steps_in(whole) > BREAKS_AFTER)
    assert steps_in(broken) == min(BREAKS_AFTER, steps_in(whole))
    assert luthier("train", *keys, f"output_dir={broken}", "--resume") == 0, capsys.readouterr().err
    assert not differences(whole, broken)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    figures = [line[key] for line in lines for key in ("loss", "grad_norm", "eval_loss") if key in line]
    assert figures
    assert all(figure is not None and math.isfinite(figure) for figure in figures)
    if limit:
        ledger = json.loads((whole / "ledger.json").read_text())
        assert ledger["rows_cut"] if trial["on_long_row"] == "truncate" else ledger["dropped"]

    def answer(model: Path) -> str:
        capsys.readouterr()
        assert luthier("chat", model, "--prompt", "Say 3.", "--max-new-tokens", "4") == 0, capsys.readouterr().err
        return capsys.readouterr().out

    def logits(model: Path) -> torch.Tensor:
        opened = open_model(str(model), dtype="float32")
        with torch.no_grad():
            found: torch.Tensor = opened.model(
                torch.tensor([opened.renderer.prompt_ids([Message("user", "Say 3.")])])
            ).logits
        return found

    assert answer(whole)
    base = [] if trial["quantization"] == "null" else ["--base", "dequantized"]
    assert luthier("export", whole, "--output", exported, *base) == 0, capsys.readouterr().err
    assert answer(exported)
    if trial["dtype"] == "float32" and not base:
        # not the answers: what is exported is a model, which `chat` opens in bfloat16 where the processor multiplies it
        torch.testing.assert_close(logits(exported), logits(whole), atol=1e-4, rtol=0)
