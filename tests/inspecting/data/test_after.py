"""What a run made of each row: the arithmetic is that of a plain look with transformers and peft alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier.cli import main
from luthier.errors import UserError
from luthier.inspecting.data.row_losses import courses
from luthier.inspecting.data.shown_rows import Wanted
from luthier.inspecting.data.suspects import pairs, suspicion
from luthier.reporting.data.text import print_report
from luthier.training import run
from luthier.types import NO_TARGET, Sample
from tests.helpers.looked_at import loaded, looked, prepare_folder, write_rows

ROWS = [
    {"instruction": f"Say {word}", "output": f"{word} {word}"}
    for word in ("a", "lute", "violin", "you", "world", "Paris")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two passes over the rows; the model is random, the figures are real."""
    path = tmp_path_factory.mktemp("after")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_CACHE", str(path / "cache"))
        patch.chdir(path)
        prepare_folder(ROWS)
        run.execute(loaded("num_train_epochs=2", "global_batch_size=3", "model.dtype=float32", "learning_rate=0.01"))
    return path


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)


def after(**more: Any) -> dict[str, Any]:
    from luthier import config
    from luthier.inspecting.data.look import look

    found = look(config.load("runs/x/config.yaml"), Wanted(), after=Path("runs/x"), **more).after
    assert found is not None
    return found


def test_the_losses_are_those_of_the_model_before_and_the_scores_those_after() -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found = after()
    rows = {row.row: row for row in looked(wanted=Wanted(samples=len(ROWS))).rows}
    base = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32).eval()
    tuned = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32), "runs/x/adapter"
    ).eval()

    def per_token(model: Any, name: str) -> float:
        ids = torch.tensor([[token.id for token in rows[name].tokens]])
        trained = torch.tensor([token.trained for token in rows[name].tokens])[1:]
        with torch.inference_mode():
            logps = model(ids).logits[0, :-1].log_softmax(-1)
        return float(-logps.gather(1, ids[0, 1:, None])[trained].mean())

    assert found["passes"] == 2
    assert found["examined"] == len(ROWS)
    first_step = json.loads(Path("runs/x/row_losses.jsonl").read_text().splitlines()[0])["rows"]
    assert len(first_step) == 3
    for index in first_step:  # what the model said before it had learned anything
        loss = per_token(base, f"train.jsonl:{index + 1}")
        assert found["rows"][index]["losses"][0] == pytest.approx(loss, rel=1e-4)
    assert {suspect["row"] for suspect in found["suspects"]} == rows.keys()
    assert len(rows) == len(ROWS)
    for suspect in found["suspects"]:
        assert suspect["own_prompt"] == pytest.approx(per_token(tuned, suspect["row"]), rel=1e-4)
    scores = [suspect["score"] for suspect in found["suspects"]]
    assert scores == sorted(scores, reverse=True)
    means = np.array([row["losses"] for row in found["rows"]]).mean(0)
    assert found["mean_by_pass"] == pytest.approx(means.tolist(), abs=1e-5)


def test_the_second_time_the_model_is_not_asked_again() -> None:
    said: list[str] = []
    first = after(say=said.append)
    before = len(said)
    assert after(say=said.append) == first
    assert len(said) == before
    assert after(examined_rows=0)["suspects"] == []
    assert not list(Path("cache").glob("reports/*"))  # what a run made of the rows is not kept as a report


def test_what_a_person_sees(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--after", "runs/x", "--html", "after.html"]) == 0
    page = Path("after.html").read_text(encoding="utf-8")
    assert "Answers that fit their prompts least, of 6 rows" in page
    assert "suspected by the run" not in page, "each of these answers fits its own prompt best"
    capsys.readouterr()
    assert main(["data", "--after", "runs/x"]) == 0
    out = capsys.readouterr().out
    assert "by pass over the data" in out
    assert "of 6 rows each answer is likelier behind its own prompt than behind another row's" in out
    assert "one of the first" in out


def test_only_answers_that_fit_another_prompt_as_well_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    report = looked(wanted=Wanted(rows=("train.jsonl:2",), samples=0))
    assert [(row.row, row.why) for row in report.rows] == [("train.jsonl:2", ["suspected by the run"])]
    row = {"row": "train.jsonl:2", "losses": [4.0, None], "course": ""}
    suspects = [
        {**row, "score": 0.4, "own_prompt": 3.5, "other_prompt": 3.25},
        {**row, "row": "train.jsonl:3", "score": -0.1, "own_prompt": 3.33, "other_prompt": 3.34},
    ]
    report.after = {**after(examined_rows=0), "examined": 6, "suspects": suspects}
    print_report(report)
    listed = capsys.readouterr().out.partition("the likeliest mistakes first, of 6 rows (nats a token):\n")[2]
    heading, first, *_ = listed.splitlines()
    assert heading.split() == ["row", "own", "prompt", "another", "by", "pass"]
    assert first.split() == ["train.jsonl:2", "3.50", "3.25", "4.00", "?"]
    assert "train.jsonl:3" not in listed


def test_overrides_are_put_on_the_runs_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--after", "runs/x", "on_bad_row=drop", "--suspects", "0", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["after"]["rows"]) == len(ROWS)
    write_rows([*ROWS, ROWS[0]], "more.jsonl")
    assert main(["data", "--after", "runs/x", "data=more.jsonl"]) == 2
    assert "it learned from other data" in capsys.readouterr().err


def test_a_run_on_other_data_is_refused() -> None:
    write_rows([*ROWS, ROWS[0]], "more.jsonl")
    with pytest.raises(UserError, match="it learned from other data"):
        looked("data=more.jsonl", after=Path("runs/x"))


def test_courses_by_hand() -> None:
    sums = np.array([[4.0, 3.0, 2.0], [4.0, 1.0, 3.0], [4.0, 3.9, 3.8], [2.0, 3.0, 4.0], [6.0, np.nan, np.nan]])
    found = courses(sums, np.array([2, 1, 1, 4, 3]))
    assert found.losses[0].tolist() == [2.0, 1.5, 1.0]
    assert found.learned.tolist() == [True, False, False, False, False]
    assert found.forgotten.tolist() == [False, True, False, False, False]
    assert found.never_learned.tolist() == [False, False, True, True, False]
    assert found.last.tolist() == [1.0, 3.0, 3.8, 1.0, 2.0]


def test_an_answer_that_another_prompt_explains_as_well_is_the_most_suspicious() -> None:
    own, other = np.array([10.0, 10.0, 40.0]), np.array([30.0, 9.0, 80.0])
    scores = suspicion(own, other, np.array([4, 4, 16]))
    assert scores.tolist() == [-10.0, 0.5, -10.0]


def test_no_answer_is_put_behind_its_own_prompt() -> None:
    rows = [[1, 2, 3, 9], [1, 2, 3, 8], [1, 2, 3, 7], [4, 5, 6, 9]]
    targets = np.array([NO_TARGET, NO_TARGET, 9, NO_TARGET])
    samples = [Sample(np.array(ids), targets, f"x:{number}", number) for number, ids in enumerate(rows)]
    own, other = pairs(samples)
    assert [sample.input_ids.tolist() for sample in own] == rows
    assert [sample.input_ids[:3].tolist() for sample in other[:3]] == [[4, 5, 6]] * 3
    assert other[3].input_ids.tolist() == [1, 2, 3, 9]
