"""`luthier eval RUN` measures on what the run held out, and says in the words of its options what it cannot do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from luthier.errors import UserError
from luthier.inference.as_typed import named_by
from luthier.system.progress import Progress
from tests.helpers.command_line import luthier
from tests.helpers.tiny_models import save_twin

ROWS = [{"prompt": f"Say {number}.", "completion": f"{number}!"} for number in range(30)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held-out")
    save_twin(folder / "model", "llama")
    save_twin(folder / "bare", "llama", chat_template=None)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    keys = ["max_steps=2", "data.eval=0.2", "dtype=float32", f"output_dir={folder / 'run'}"]
    assert luthier("train", f"model={folder / 'model'}", f"data.train={folder / 'train.jsonl'}", *keys) == 0
    return folder / "run"


def test_its_figures_are_those_that_the_run_noted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert luthier("eval", run, "--generate", 0, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    noted = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if "eval_loss" in line][-1]
    assert found["nll_per_token"]["value"] == pytest.approx(noted["eval_loss"], rel=1e-4)
    assert found["tokens"] == noted["eval_tokens"]
    assert luthier("eval", run, "--generate", 1, "--limit", 2, "--max-new-tokens", 4) == 0
    assert "on the rows that it held out: 2 rows" in " ".join(capsys.readouterr().out.split())


def test_what_cannot_be_measured_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert luthier("eval", run.parent / "model", "--generate", 0) == 2
    assert f"fix: luthier eval {run.parent / 'model'} --data FILE" in capsys.readouterr().err
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("eval: 0.2", "eval: 0.3"))
    assert luthier("eval", run, "--generate", 0) == 2
    assert "not those of the run any more" in capsys.readouterr().err
    (run / "config.yaml").write_text(text)
    assert luthier("eval", run, "--data", run.parent / "elsewhere.jsonl") == 2
    said = capsys.readouterr().err
    assert f"--data: {run.parent / 'elsewhere.jsonl'}: there is no such file" in said
    assert "fix: --data PATH/elsewhere.jsonl" in said
    assert "data.train" not in said


def test_a_model_without_a_template_is_asked_with_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = run.parent / "bare"
    rows = ["--data", run.parent / "train.jsonl", "--limit", 3, "--generate", 0]
    for command in (["chat", bare, "--prompt", "Say 3.", "--max-new-tokens", 4], ["eval", bare, *rows]):
        assert luthier(*command) == 2
        fix = capsys.readouterr().err.partition("fix: ")[2]
        assert fix.startswith("--chat-template ")
        assert luthier(*command, "--chat-template", "alpaca@stanford") == 0
        capsys.readouterr()
    assert luthier("eval", run.parent / "model", *rows, "--json") == 0
    own = json.loads(capsys.readouterr().out)
    assert luthier("eval", bare, *rows, "--json", "--chat-template", "chatml") == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == own["tokens"]


@pytest.mark.parametrize(
    ("where", "fix", "typed"),
    [
        ("data.train[0].path: x", "data.train[0].path=PATH/x", ("--data: x", "--data PATH/x")),
        ("data.train", "data.train=FILE", ("--data", "--data FILE")),
        ("data.chat_template", "data.chat_template=NAME", ("--chat-template", "--chat-template NAME")),
    ],
)
def test_keys_become_options(where: str, fix: str, typed: tuple[str, str]) -> None:
    error = named_by("--data", UserError(where, "", "", fix))
    assert (error.where, error.fix) == typed
    folded = named_by("--data", UserError("data.on_system", "", "", "data.on_system=fold puts it first"))
    assert "--chat-template" in folded.fix
    assert "data." not in folded.where + folded.fix


def test_progress_is_a_line_now_and_then_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with Progress(Console(force_terminal=False, width=20), clock=lambda: now) as progress:
        for now in (0.5, 5.0, 10.0, 12.0, 19.0, 20.5):
            progress(f"[{now:g}] of 30 scored", now / 30)
    assert capsys.readouterr().out.splitlines() == ["[10] of 30 scored, 33%", "[20.5] of 30 scored, 68%"]
