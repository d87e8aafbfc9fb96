"""Rows that an objective cannot learn from: all are named before anything begins, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import main
from tests.helpers.tiny_models import tiny_llama

Rows = list[dict[str, Any]]


def each(*parts: dict[str, Any]) -> Rows:
    """Three rows of each part, with requests of their own."""
    return [{**part, "prompt": f"{part.get('prompt', 'ask')} {number}"} for part in parts for number in range(3)]


def said(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)]


PAIR = {"chosen": "yes", "rejected": "no"}
WHOLE = {"chosen": said("one", "yes"), "rejected": said("one", "no"), "prompt": "another"}
GOOD, BAD = {"completion": "yes", "label": True}, {"completion": "no", "label": False}
TEXTS = [{"text": f"a text {number}"} for number in range(3)]
PROMPTS = [{"prompt": f"ask {number}"} for number in range(3)]
ALL = ("rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3")

CASES: dict[str, tuple[str, Rows, tuple[str, ...]]] = {
    "chosen equal to rejected": ("dpo", each({"chosen": "yes", "rejected": "yes"}), ("the same answer as chosen", *ALL)),
    "prompts of a pair differ": ("dpo", each(WHOLE), ("another request than the answers begin with", *ALL)),
    "an empty answer": ("simpo", each({"chosen": "yes", "rejected": ""}), ("rejected", *ALL)),
    "half of a pair": ("orpo", each({"chosen": "yes", "rejected": None}), ("rejected", *ALL)),
    "ranked answers that are equal": ("cpo", each({"answers": ["yes", "no", "yes"]}), ("the same answer", *ALL)),
    "no negative feedback": ("kto", each(GOOD), ("no negative feedback: 3 good answers",)),
    "no positive feedback": ("kto", each(BAD), ("no positive feedback: 3 bad answers",)),
    "a label that is no verdict": ("kto", [*each(GOOD, BAD), *each({**GOOD, "label": "maybe"})], ("label", "rows.jsonl:9")),
    "all answers equal": ("kto", each({**GOOD, "completion": "no"}, BAD), ("all answers are the same", "apo_zero_unpaired")),
    "feedback for dpo": ("dpo", each(GOOD, BAD), ("a feedback", "objective=kto", *ALL)),
    "pairs for pretrain": ("pretrain", each(PAIR), ("a preference", "objective=dpo", *ALL)),
    "text for dpo": ("dpo", TEXTS, ("a text", "a preference, which the objective takes", *ALL)),
    "text for kto": ("kto", TEXTS, ("a text", "a feedback or preference", *ALL)),
    "prompts for sft": ("sft", PROMPTS, ("a prompt", *ALL)),
    "conversations for kto": ("kto", [{"messages": said("ask", "yes")}] * 3, ("a conversation", *ALL)),
    "feedback for sft": ("sft", each(GOOD, BAD), ("a feedback", "objective=kto", *ALL)),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("wrong") / "model")


@pytest.mark.parametrize("case", CASES)
def test_it_is_told_before_anything_is_written(
    case: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    objective, rows, words = CASES[case]
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("mine.yaml").write_text(f"model: {model}\ndata: rows.jsonl\nobjective: {objective}\noutput_dir: out\n")
    assert main(["train", "mine.yaml"]) == 2
    told = capsys.readouterr().err
    assert all(word in told for word in words), told
    assert not Path("out").exists()
