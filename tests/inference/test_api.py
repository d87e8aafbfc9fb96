"""luthier from Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import luthier
from luthier import api
from luthier.api import Run
from luthier.cli import main
from luthier.data.recognise import format_of
from luthier.errors import UserError
from luthier.inference.chat import Chat, Settings
from luthier.inference.opened import open_model

ROWS = [{"instruction": f"What is {n}?", "output": f"It is {n}. 你好"} for n in range(8)]


def test_importing_luthier_imports_nothing_heavy() -> None:
    code = (
        "import sys, luthier; dir(luthier); luthier.UserError; "
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_of_the_package() -> None:
    assert luthier.train is api.train
    assert luthier.Run is Run
    assert set(luthier.__all__) <= set(dir(luthier))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        luthier.trian  # noqa: B018


def test_keys_go_through_the_checks_of_the_command_line(tmp_path: Path) -> None:
    made = api.make_config(
        "org/name",
        "x.jsonl",
        {
            "learning_rate": 1e-5,
            "r": 4,
            "training.max_steps": 3,
            "output_dir": tmp_path,
            "seed": 7,
            "sample_prompts": ['Hi: "you" # 你好 🎻\n'],
            "eval": 0.25,
            "quantization": "nf4",
        },
    )
    assert made.training.learning_rate == 1e-5
    assert made.training.max_steps == 3
    assert made.tuning.r == 4
    assert made.seed == 7
    assert made.training.sample_prompts == ('Hi: "you" # 你好 🎻\n',)
    assert made.data.eval == 0.25
    assert made.model.quantization is not None
    full = api.make_config({"path": "org/name", "dtype": "float32"}, ["a.jsonl", Path("b.jsonl")], {"tuning": "full"})
    assert full.tuning.kind == "full"
    assert [file.path for file in full.data.train] == ["a.jsonl", "b.jsonl"]
    for wrong, match in (
        ({"learning_rat": 1}, "learning_rate"),
        ({"lr": 1}, "learning_rate"),
        ({"learning_rate": "fast"}, "wrong value"),
        ({"seed": object()}, "seed"),
    ):
        with pytest.raises(UserError, match=match):
            api.make_config("org/name", "x.jsonl", wrong)


def test_rows_become_a_file_named_by_its_content() -> None:
    first = api.make_config("m", ROWS, {}).data.train[0].path
    assert api.make_config("m", list(ROWS), {}).data.train[0].path == first
    assert api.make_config("m", ROWS[:3], {}).data.train[0].path != first
    assert [json.loads(line) for line in Path(first).read_text(encoding="utf-8").splitlines()] == ROWS
    split = api.make_config("m", {"train": ROWS, "eval": ROWS[:2], "max_length": 64}, {})
    assert split.data.train[0].path == first
    assert isinstance(split.data.eval, tuple)
    assert split.data.max_length == 64
    files = api.make_config("m", [{"path": "a.jsonl", "format": "alpaca"}], {})
    assert files.data.train[0].format == format_of("alpaca")
    with pytest.raises(UserError, match="JSON"):
        api.make_config("m", [{"instruction": object()}], {})


def test_output_dir_is_the_next_free_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert api.make_config("m", "x.jsonl", {}).output_dir == "runs/001"
    (tmp_path / "runs" / "041").mkdir(parents=True)
    (tmp_path / "runs" / "mine").mkdir()
    assert api.make_config("m", "x.jsonl", {}).output_dir == "runs/042"


def test_a_finished_run_shows_its_figures_and_talks(run: Path) -> None:
    finished = Run(run)
    assert [line["step"] for line in finished.metrics] == [0, 1, 2, 3]
    assert finished.report == run / "report.html"
    assert "3 steps, loss 2 to 0.6667" in repr(finished)
    assert "<svg" in finished._repr_html_()
    assert (
        finished.chat("Hi", max_new_tokens=8)
        == Chat(open_model(str(run)), settings=Settings(max_new_tokens=8)).say("Hi").text
    )
    assert finished.opened is finished.opened
    with pytest.raises(UserError, match=r"no config\.yaml"):
        Run(run / "adapter")


def test_train_from_python_then_use_the_result_everywhere(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way: rows in, a run out; it answers, measures, compares and exports."""
    run = luthier.train(
        model=str(base),
        data=ROWS,
        max_steps=6,
        learning_rate=2e-2,
        global_batch_size=4,
        dtype="float32",
        output_dir=tmp_path / "run",
        sample_prompts=["What is 3?"],
    )
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert "<svg" in run._repr_html_()
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    capsys.readouterr()
    assert main(["compare", str(run.folder), "--prompts", str(data), "--json", "--max-new-tokens", "16"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["measures"]["nll_per_token"]["verdict"] == "tuned is better"
    assert isinstance(run.chat("What is 3?", max_new_tokens=8), str)
    assert main(["export", str(run.folder), "--to", "merged", "--output", str(tmp_path / "merged")]) == 0
    assert "drift" in capsys.readouterr().out
    assert main(["merge", str(run.folder), "--output", str(tmp_path / "merged2"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["drift"]["top1_agreement"] == 1.0
    figures = []
    named = tmp_path / "named.jsonl"
    other = [{"q": row["instruction"], "a": row["output"]} for row in ROWS]
    named.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in other), encoding="utf-8")
    with_format = f"{{path: {named}, format: {{kind: alpaca, instruction: q, output: a}}}}"
    for target, file in ((run.folder, str(data)), (tmp_path / "merged", with_format)):
        assert main(["eval", str(target), "--data", file, "--json"]) == 0
        figures.append(json.loads(capsys.readouterr().out))
    assert figures[0]["nll_per_token"]["value"] == pytest.approx(figures[1]["nll_per_token"]["value"], abs=2e-2)
    assert figures[0]["nll_per_token"]["value"] == pytest.approx(
        tree["measures"]["nll_per_token"]["tuned"][0], rel=1e-3
    )
