"""Each two values of the keys that decide most meet in some short run: it trains, and a broken one goes on to the same bits."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier import config
from luthier.training import run
from tests.helpers.breaking import Broken, break_after
from tests.helpers.covering_array import Trial, covering_trials
from tests.helpers.killing import differences, steps_in
from tests.helpers.tiny_models import save_twin

STEPS, BREAKS_AFTER = 5, 3

VALUES = {
    "model": ("llama", "qwen3_moe", "gpt_oss", "lfm2", "gpt2", "gemma3_text", "bloom", "yuan", "baichuan_alibi"),
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
    "dtype": ("float32", "bfloat16", "float16"),
    "tuning": ("lora", "{kind: lora, r: 2, lora_dropout: 0.3}", "freeze", "full"),
    "quantization": ("null", "nf4", "int8"),
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
    """What the configuration itself refuses is left out."""
    quantized_full = trial.get("tuning") in ("freeze", "full") and trial.get("quantization", "null") != "null"
    unmeasured = trial.get("data.eval") == "null" and any(
        trial.get(key, "null") in ("1", "0.4", "true") for key in NEED_HELD_OUT
    )
    return not quantized_full and not unmeasured


TRIALS = covering_trials(VALUES, allowed)


def test_every_pair_that_may_be_is_in_a_trial() -> None:
    for first in VALUES:
        for second in VALUES:
            met = {(trial[first], trial[second]) for trial in TRIALS}
            wanted = {(a, b) for a in VALUES[first] for b in VALUES[second] if first != second}
            assert {pair for pair in wanted if allowed(dict(zip((first, second), pair, strict=True)))} <= met
    assert all(map(allowed, TRIALS))
    assert len(TRIALS) < 80


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all models and the same conversations in all formats."""
    folder = tmp_path_factory.mktemp("pairs")
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
def test_a_trial(number: int, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(place)
    trial = TRIALS[number] | {"data.train": TRIALS[number]["data.train"] + ".jsonl"}
    limit = [] if trial["on_long_row"] == "error" else ["max_length=34"]
    asked = [f"{key}={value}" for key, value in trial.items()] + limit
    asked += [f"max_steps={STEPS}", "learning_rate=1e-3", "save_total_limit=5"]

    def train(name: str, resume: bool = False) -> Path:
        return run.execute(
            config.load(None, [*asked, f"output_dir={tmp_path / name}"]), resume=resume, say=lambda text: None
        )

    try:
        whole = train("whole")
        with monkeypatch.context() as patch:
            break_after(BREAKS_AFTER, patch)
            with pytest.raises(Broken) if steps_in(whole) > BREAKS_AFTER else nullcontext():
                train("broken")
        again = train("broken", resume=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not differences(whole, again)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    figures = [line[key] for line in lines for key in ("loss", "grad_norm", "eval_loss") if key in line]
    assert figures
    assert all(figure is not None and math.isfinite(figure) for figure in figures)
