"""`luthier init` on data whose columns have names of their own."""

from __future__ import annotations

import json
import shlex
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from luthier import config
from luthier.cli import main
from luthier.errors import UserError
from luthier.inspecting import first_config

TURNS = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
EVIDENT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "question and reply": (
        {"question": "a", "reply": "b", "id": 7},
        {"kind": "alpaca", "instruction": "question", "input": None, "output": "reply"},
    ),
    "written large": (
        {"Answer": "b", "Question": "a"},
        {"kind": "alpaca", "instruction": "Question", "input": None, "output": "Answer"},
    ),
    "a prompt and a reply": (
        {"prompt": "a", "reply": "b"},
        {"kind": "alpaca", "instruction": "prompt", "input": None, "output": "reply"},
    ),
    "turns": ({"chat: all": TURNS}, {"kind": "sharegpt", "conversations": "chat: all"}),
    "messages": (
        {"turns": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"kind": "messages", "messages": "turns"},
    ),
}
NOT_EVIDENT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "names that say nothing": ({"it's a": "x", "b": "y"}, ["instruction: it's a", "output: b"]),
    "two answers": ({"question": "a", "answer": "b", "response": "c"}, ["instruction: question", "output: answer"]),
    "a context beside them": ({"question": "a", "context": "b", "answer": "c"}, ["instruction: question"]),
    "a single text": ({"poem": "a"}, ["kind: text", "text: poem"]),
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(name: str, *rows: dict[str, Any]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


@pytest.mark.parametrize("case", EVIDENT)
def test_what_columns_evidently_mean_is_written(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    row, wanted = EVIDENT[case]
    assert main(["init", written("my data.jsonl", row, row), "--model", "org/name"]) == 0, capsys.readouterr().err
    (file,) = config.load("mine.yaml").data.train
    assert file.path == "my data.jsonl"
    assert not isinstance(file.format, str)
    said = file.format.model_dump(by_alias=True)
    assert {key: said[key] for key in wanted} == wanted
    (look,) = first_config.look_at_data(["my data.jsonl"])
    assert (look.rows, look.bad_rows) == (2, 0)


@pytest.mark.parametrize("case", NOT_EVIDENT)
def test_what_is_not_evident_is_a_line_that_works(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    row, words = NOT_EVIDENT[case]
    fine = written("fine.jsonl", {"instruction": "a", "output": "b"})
    assert main(["init", fine, written("my data.jsonl", row), "--model", "org/name"]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("fix: ")]
    program, *arguments = shlex.split(line.removeprefix("fix: "))
    assert program == "luthier"
    for word in words:
        assert word in line.replace("'\"'\"'", "'")
    assert not Path("mine.yaml").exists()
    assert main(arguments) == 0, capsys.readouterr().err
    assert [file.path for file in config.load("mine.yaml").data.train] == ["fine.jsonl", "my data.jsonl"]


def test_an_entry_whose_format_is_to_be_found() -> None:
    written("a.jsonl", {"question": "a", "reply": "b"})
    (look,) = first_config.look_at_data(["{path: a.jsonl, format: auto}"])
    assert (look.entry["path"], look.entry["format"]["output"]) == ("a.jsonl", "reply")


@pytest.mark.parametrize("row", [{"label": 3, "score": 0.5}, {"k" * 100_000: "a"}])
def test_nothing_that_could_be_learned_is_no_line(row: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no format fits") as caught:
        first_config.look_at_data([written("a.jsonl", row)])
    assert caught.value.fix == ""


def test_rows_are_looked_at_one_by_one() -> None:
    rows = ({"instruction": "ask", "output": f"{number} " + "long " * 2000} for number in range(3000))
    written("a.jsonl", *rows)
    tracemalloc.start()
    (look,) = first_config.look_at_data(["a.jsonl"])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert look.rows == len(look.answer_lengths) == 3000
    assert most < 8 << 20  # all of them are thirty


def test_what_the_rows_are_for_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [{"prompt": f"ask {number}", "chosen": "good", "rejected": "worse"} for number in range(9)]
    written("pairs.jsonl", *pairs)
    assert main(["init", "pairs.jsonl", "--model", "org/name"]) == 0
    assert "objective: dpo" in Path("mine.yaml").read_text(encoding="utf-8")
    assert config.load("mine.yaml").objective.kind == "dpo"
    assert main(["init", "pairs.jsonl", "--model", "org/name", "--objective", "orpo", "--output", "b.yaml"]) == 0
    assert config.load("b.yaml").objective.kind == "orpo"
    assert main(["init", "pairs.jsonl", "--model", "org/name", "--objective", "reward", "--output", "d.yaml"]) == 0
    found = config.load("d.yaml")
    assert (found.objective.kind, found.training.sample_prompts) == ("reward", ())
    capsys.readouterr()
    assert main(["init", "pairs.jsonl", "--model", "org/name", "--objective", "sft", "--output", "c.yaml"]) == 2
    assert "from which sft cannot learn\nexpected: other rows\nfix: --objective dpo" in capsys.readouterr().err
    written("answers.jsonl", {"prompt": "a", "completion": "b"})
    assert main(["init", "answers.jsonl", "pairs.jsonl", "--model", "org/name", "--output", "c.yaml"]) == 2
    assert "dpo learns from its rows, but sft from those of answers.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "objective"),
    [
        ([{"prompt": f"ask {number}", "completion": "b", "label": number % 2 == 0} for number in range(9)], "kto"),
        ([{"text": f"text {number}"} for number in range(9)], "pretrain"),
    ],
)
def test_judged_answers_and_texts_are_recognised(rows: list[dict[str, Any]], objective: str) -> None:
    written("rows.jsonl", *rows)
    assert main(["init", "rows.jsonl", "--model", "org/name"]) == 0
    assert config.load("mine.yaml").objective.kind == objective


def test_a_teacher_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An objective that learns from one is not drafted without; to name one chooses the objective."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 9, encoding="utf-8")
    start = ["init", "rows.jsonl", "--model", "org/small"]
    assert main([*start, "--objective", "distill"]) == 2
    fix = "fix: luthier init rows.jsonl --model org/small --objective distill --teacher NAME"
    assert f"none is named\nexpected: a teacher\n{fix}" in capsys.readouterr().err
    assert main([*start, "--objective", "sft", "--teacher", "org/large"]) == 2
    assert "sft does not learn from a teacher" in capsys.readouterr().err
    assert main([*start, "--teacher", "no/such/place"]) == 2
    assert not Path("mine.yaml").exists()
    assert main([*start, "--teacher", "org/large"]) == 0
    objective = config.load("mine.yaml").objective
    assert (objective.kind, objective.model_dump()["teacher"]) == ("distill", "org/large")
