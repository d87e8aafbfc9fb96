"""Runs side by side: what differs, what came of them, what they answer; and the list of runs."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from luthier.config.documents import read_yaml, to_yaml
from luthier.config.plain_yaml import OF_A_RUN
from tests.helpers.command_line import luthier
from tests.helpers.tiny_models import save_twin

ROWS = [{"prompt": f"Say {number}.", "completion": f"{number}!"} for number in range(30)]
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("side")
    save_twin(folder / "model", "llama")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:20]))
    common = [
        f"model={folder / 'model'}",
        "max_steps=3",
        "global_batch_size=8",
        "data.eval=0.4",
        "save_steps=1",
        "eval_steps=3",
    ]
    for name, keys in {
        "a": ["r=4", "learning_rate=1e-2"],
        "b": ["r=8", "learning_rate=1e-4"],
        "c": [f"data.train={folder / 'other.jsonl'}"],
    }.items():
        data = [f"data.train={folder / 'train.jsonl'}"]
        assert luthier("train", *common, *data, *keys, f"output_dir={folder / 'runs' / name}") == 0
        (folder / "runs" / name / "answers.json").write_text(json.dumps([{"prompt": HOSTILE, "after": name}]))
    return folder / "runs"


def test_two_runs_on_the_same_rows(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = runs / "a", runs / "b"
    assert luthier("compare", a, b, "--prompt", "Say 3.", "--max-new-tokens", 4, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"]["tuning.r"] == [4, 8]
    assert found["config"]["training.learning_rate"] == [1e-2, 1e-4]
    assert not any(name.startswith(("output_dir", "model")) for name in found["config"])
    assert len(set(found["data"]["held-out rows"])) == 1
    assert found["versions"] == {}
    first, second = found["scored"]
    assert first["difference"] is None
    value, low, high = second["difference"]
    assert low <= value <= high
    assert value == pytest.approx(second["nll_per_token"][0] - first["nll_per_token"][0], abs=1e-5)
    for run, one in zip((a, b), found["scored"], strict=True):
        noted = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if "eval_loss" in line]
        assert one["nll_per_token"][0] == pytest.approx(noted[-1]["eval_loss"], rel=2e-3)
    for target, answer in zip((a, b), found["answers"][0]["answers"], strict=True):
        assert luthier("chat", target, "--prompt", "Say 3.", "--max-new-tokens", 4) == 0
        assert capsys.readouterr().out.strip() == answer.strip()


def test_what_means_the_same_is_no_difference(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Layers by other words, a value that was left out, and the figures of a measurement."""
    again = tmp_path / "again"
    shutil.copytree(runs / "a", again)
    tree = read_yaml(again / "config.yaml", OF_A_RUN).tree
    tree["tuning"] |= {"target_modules": ["v_proj", "q_proj"], "lora_alpha": 8}
    (again / "config.yaml").write_text(to_yaml(tree))
    manifest = json.loads((again / "manifest.json").read_text())
    manifest["decisions"]["layout_reason"] = re.sub(r"\de[-+]\d+", "9e-09", manifest["decisions"]["layout_reason"])
    (again / "manifest.json").write_text(json.dumps(manifest))
    command = ["compare", runs / "a", again, "--limit", 2]
    assert luthier(*command, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["config"], found["versions"]) == ({}, {})
    manifest["trained_tensors"] = dict(list(manifest["trained_tensors"].items())[:2])
    manifest["decisions"]["layout_reason"] = "others"
    (again / "manifest.json").write_text(json.dumps(manifest))
    assert luthier(*command, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"] == {"tuning.target_modules": ["all-linear", ["q_proj", "v_proj"]]}
    assert list(found["versions"]) == ["layout_reason"]


def test_other_rows_are_not_paired_and_checkpoints_are_taken(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    early = runs / "a" / "checkpoints" / "step-000002"
    assert luthier("compare", runs / "a", early, runs / "c", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measured_on"] == "the rows that each held out"
    assert [one["difference"] for one in found["scored"]] == [None] * 3
    assert found["scored"][2]["verdict"] == "other rows or tokens: not paired"
    assert found["scored"][0]["nll_per_token"] != found["scored"][1]["nll_per_token"]
    assert found["answers"] == [], "a checkpoint has not said what the run's end has"
    assert [len(losses) for losses in found["losses"]] == [3, 2, 3]
    assert [[step for step, _ in losses][-1] for losses in found["held_out_losses"]] == [3, 0, 3]
    course = found["course"]
    assert course["steps"] == [3, 2, 3]
    assert course["state"] == ["finished", "checkpoint of step 2", "finished"]
    assert course["held-out loss, last"][1] is None
    assert course["tokens learned from"][1] < course["tokens learned from"][0]
    assert course["seconds in steps"][1] <= course["seconds in steps"][0]
    assert luthier("compare", runs / "a", runs / "c", "--json") == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert answers == [{"prompt": HOSTILE, "answers": ["a", "c"]}], "what they asked themselves"


def test_rows_are_paired_by_their_names_where_one_run_drops_some(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of a shorter context drops a row in the middle: the answers and losses after it are still of the same rows."""
    short = tmp_path / "short"
    shutil.copytree(runs.parent / "model", short)
    about = json.loads((short / "config.json").read_text()) | {"max_position_embeddings": 64}
    (short / "config.json").write_text(json.dumps(about))
    keys = [f"model={short}", f"data.train={runs.parent / 'train.jsonl'}", "max_steps=1", "data.eval=0.4"]
    assert luthier("train", *keys, f"output_dir={tmp_path / 'd'}") == 0
    asked = [ROWS[0], {"prompt": "long " * 20, "completion": "no"}, ROWS[1], ROWS[2]]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    command = ["compare", runs / "a", tmp_path / "d", "--prompts", tmp_path / "asked.jsonl", "--drop-bad-rows"]
    command += ["--max-new-tokens", 4]
    capsys.readouterr()
    assert luthier(*command, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["left_out"] == 1
    assert ["Say" in one["prompt"] for one in found["answers"]] == [True] * 3
    for target, answer in zip((runs / "a", tmp_path / "d"), found["answers"][2]["answers"], strict=True):
        assert luthier("chat", target, "--prompt", "Say 2.", "--max-new-tokens", 4) == 0
        assert capsys.readouterr().out.strip() == answer.strip()
    assert [one["rows"] for one in found["scored"]] == [3, 3]
    assert found["scored"][1]["difference"] is not None
    assert luthier(*command) == 0
    assert "1 row of" in " ".join(capsys.readouterr().out.split())


def test_text_and_page(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "compared.html"
    assert luthier("compare", runs / "a", runs / "b", "--html", page) == 0
    text = page.read_text()
    assert "tuning.r" in text
    assert text.count("<svg") >= 2
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text
    assert luthier("compare", runs / "a", runs / "b", "--html", page) == 0, "over its own page"
    asked = ["--prompt", "Say 3.", "--chat-template", "alpaca@stanford", "--max-new-tokens", 2, "--html", page]
    assert luthier("compare", runs / "a", runs / "b", *asked) == 0
    assert luthier("compare", runs / "a", *asked[:-2]) == 0
    (tmp_path / "mine.html").write_text("mine")
    assert luthier("compare", runs / "a", runs / "b", "--html", tmp_path / "mine.html") == 2
    assert (tmp_path / "mine.html").read_text() == "mine"
    for _ in range(2):
        assert luthier("compare", runs / "a", runs / "b", "--html", runs / "a" / "compared.html") == 0, "and in a run"
    capsys.readouterr()
    assert luthier("compare", runs / "a", runs / "b") == 0
    said = capsys.readouterr().out
    for words in ("tuning.r", "What they learned from", "nll a token", "Answers"):
        assert words in said
    assert luthier("compare", runs / "a", tmp_path) == 2
    assert "it is no run" in capsys.readouterr().err


def test_the_list_of_runs_cuts_nothing_in_a_pipe(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert luthier("runs", runs) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(name in head for name in ("rank", "batch", "rate", "rows", "time", "began"))
    assert str(runs / "a") in lines[0]
    assert str(runs.parent / "model") in lines[0]
    assert "…" not in "".join(lines)
    assert " 4 " in lines[0]
    assert "0.01" in lines[0]
    assert "train.jsonl" in lines[0]
    assert luthier("runs", runs, "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["rank"] for one in listed] == [4, 8, 16]
    assert listed[2]["data"] == "other.jsonl"
    assert listed[0]["rows"] + json.loads((runs / "a" / "ledger.json").read_text())["rows_held_out"] == 30


def test_when_a_run_began_is_what_it_wrote_itself(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "a", tmp_path / "copy")
    os.utime(tmp_path / "copy" / "config.yaml", (0, 0))
    began = []
    for folder in (runs / "a", tmp_path / "copy"):
        assert luthier("runs", folder, "--json") == 0
        began.append(json.loads(capsys.readouterr().out)[0]["began"])
    assert began[0] == began[1]
    assert began[0]
    manifest = json.loads((runs / "a" / "manifest.json").read_text())
    about = manifest | {"began": "nonsense"}
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps(about))
    assert luthier("runs", tmp_path / "copy", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["began"] is None
