"""What a run says can be typed next can be typed, as it stands: each line is run."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path

import pytest
from tests.helpers.command_line import luthier
from tests.helpers.tiny_models import save_twin

from luthier.reporting.run.next_lines import next_lines
from luthier.runs.figures import read_figures

ROWS = [{"prompt": f"Say {number}.", "completion": f"{number}!"} for number in range(12)]
KINDS = {
    "lora": ["data.eval=0.3", 'sample_prompts=["Say 3."]'],
    "full": ["tuning=full"],
    "text": ["model=bare", "data.train=text.jsonl", "data.eval=0.3"],
    "nf4": ["quantization=nf4"],
    "loftq": ["quantization=nf4", "init_lora_weights=loftq"],
}
EXPECTED = {
    "lora": ["chat", "compare", "eval", "export"],
    "full": ["chat", "compare", "export"],
    "text": ["eval", "export"],
    "nf4": ["chat", "compare", "export"],
    "loftq": ["chat", "compare", "export"],
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    save_twin(tmp_path / "model", "llama")
    save_twin(tmp_path / "bare", "llama", chat_template=None)
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("text.jsonl").write_text("".join(json.dumps({"text": f"Say {n}, then {n + 1}."}) + "\n" for n in range(12)))
    return tmp_path


def trained(*keys: str) -> int:
    given = ["model=model", "data.train=train.jsonl", "max_steps=2", "global_batch_size=4", "output_dir=runs/my run"]
    return luthier("train", *given, *keys)


@pytest.mark.parametrize(
    "kind", [one if one == "text" else pytest.param(one, marks=pytest.mark.prove) for one in KINDS]
)
def test_each_line_runs(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert trained(*KINDS[kind]) == 0
    captured = capsys.readouterr()
    assert "model shards" not in captured.err, "a bar of transformers"
    said = captured.out.splitlines()
    lines = [line.strip() for line in said[said.index("next") + 1 :]]
    assert lines == next_lines(read_figures("runs/my run"))
    assert [line.split()[1] for line in lines] == EXPECTED[kind]
    page = Path("runs/my run/report.html").read_text()
    assert all(f"<code>{line.replace(chr(39), '&#x27;')}</code>" in page for line in lines)
    for line in lines:
        extra = ["--unproven"] if line.startswith("luthier export") else []
        assert luthier(*shlex.split(line)[1:], *extra) == 0, line
    assert Path("my run-merged/config.json").is_file()
    said = capsys.readouterr().out.splitlines()
    own = [line.strip() for line in said[said.index("next") + 1 :]] if "next" in said else []
    assert own == ([] if kind == "text" else ["luthier chat 'my run-merged'"])
    for line in own:
        assert luthier(*shlex.split(line)[1:]) == 0, line


def test_a_finished_run_says_how_to_train_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert trained("output_dir=runs/a") == 0
    capsys.readouterr()
    assert trained("output_dir=runs/a", "max_steps=5", "--resume") == 2
    fix = capsys.readouterr().err.rpartition("result: ")[2].strip()
    assert fix == "luthier train runs/a/config.yaml tuning.adapter_path=runs/a output_dir=runs/a-2 training.max_steps=3"
    assert luthier(*shlex.split(fix)[1:]) == 0
    assert json.loads(Path("runs/a-2/manifest.json").read_text())["total_steps"] == 3


def test_a_run_that_ended_by_epochs_trains_on_by_its_own_steps(capsys: pytest.CaptureFixture[str]) -> None:
    """12 rows, 4 a step, 2 epochs: 6 steps are done, whatever the configuration has in max_steps."""
    common = ["model=model", "data.train=train.jsonl", "global_batch_size=4", "num_train_epochs=2"]
    keys = [*common, "r=4", "init_lora_weights=pissa", "output_dir=runs/my run"]
    assert luthier("train", *keys) == 0
    capsys.readouterr()
    for asked, length in (
        ("max_steps=8", "training.max_steps=2"),
        ("num_train_epochs=3", "training.num_train_epochs=1"),
    ):
        assert luthier("train", *keys, asked, "--resume") == 2
        fix = capsys.readouterr().err.rpartition("result: ")[2].strip()
        assert fix == (
            "luthier train 'runs/my run/config.yaml' 'tuning={kind: lora, adapter_path: runs/my run}' "
            f"'output_dir=runs/my run-2' {length}"
        )
    assert luthier(*shlex.split(fix)[1:]) == 0
    assert json.loads(Path("runs/my run-2/manifest.json").read_text())["total_steps"] == 3


def test_a_batch_larger_than_the_data_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert trained("global_batch_size=128") == 0
    assert "global batch 128: an epoch has 12 rows, so every step is of 12 rows\n" in capsys.readouterr().out


def test_terms_of_a_sum_are_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    terms = "{kind: weighted, terms: [{kind: sft, weight: 0.7}, {kind: z_loss, weight: 0.3}]}"
    assert trained(f"objective={terms}") == 0
    said = capsys.readouterr().out
    assert "method: weighted (0.7 sft + 0.3 z_loss), lora; " in said
    first = json.loads(Path("runs/my run/metrics.jsonl").read_text().splitlines()[0])
    assert f"loss {first['loss']:.3f}  sft {first['loss_sft']:.3f}  z_loss {first['loss_z_loss']:.3f}  lr" in said


def test_a_run_that_asked_nothing_does_not_miss_its_answers() -> None:
    assert trained() == 0
    page = Path("runs/my run/report.html").read_text()
    assert "There is nothing in" not in page
    assert "training.sample_prompts" in page


def test_a_share_that_holds_out_nothing_names_one_that_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert trained("data.eval=0.001") == 2
    fix = capsys.readouterr().err.partition("fix: ")[2].split(",")[0]
    assert fix.startswith("data.eval=0.")
    assert trained(fix) == 0
    assert json.loads(Path("runs/my run/ledger.json").read_text())["rows_held_out"] >= 1
