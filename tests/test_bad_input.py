"""Bad input, from the command line: exit code, one screen, the place, a fix to paste; nothing written, nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.cli import main
from luthier.training import loop, result, run
from luthier.tuning.lora import Lora
from tests.helpers.tiny_models import tiny_llama

GOOD = [{"instruction": f"Say {n}", "output": f"number {n}"} for n in range(12)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


def write_rows(path: Path, rows: list[object]) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def with_row(number: int, row: object) -> list[object]:
    return [*GOOD[: number - 1], row, *GOOD[number:]]


def no_template(folder: Path) -> list[str]:
    tiny_llama(folder / "plain", chat_template=None)
    return [f"model={folder / 'plain'}"]


def no_weights(folder: Path) -> list[str]:
    tiny_llama(folder / "empty")
    (folder / "empty" / "model.safetensors").unlink()
    return [f"model={folder / 'empty'}"]


def pickled(folder: Path) -> list[str]:
    no_weights(folder)
    (folder / "empty" / "pytorch_model.bin").write_bytes(b"\x80\x04canary")
    return [f"model={folder / 'empty'}"]


def unwritable(folder: Path) -> list[str]:
    (folder / "file").write_text("a file, so no folder can lie under it")
    return [f"output_dir={folder / 'file' / 'run'}"]


def rows(*given: object) -> Callable[[Path], list[str]]:
    def change(folder: Path) -> list[str]:
        write_rows(folder / "train.jsonl", list(given))
        return []

    return change


CASES: dict[str, tuple[Callable[[Path], list[str]], int, list[str]]] = {
    "missing file": (lambda folder: ["data=nowhere.jsonl"], 2, ["nowhere.jsonl", "no such file"]),
    "broken JSON in line 7": (rows(*with_row(7, '{"instruction": "x", "output": ')), 2, ["train.jsonl:7"]),
    "wrong type": (rows(*with_row(4, {"instruction": 5, "output": "x"})), 2, ["train.jsonl:4", "instruction", "text"]),
    "empty answer": (
        rows(*with_row(9, {"instruction": "x", "output": ""})),
        2,
        ["train.jsonl:9", "output", "on_bad_row=drop"],
    ),
    "row longer than the context": (
        rows(*with_row(3, {"instruction": "x", "output": "violin " * 300})),
        2,
        ["train.jsonl:3", "256", "on_long_row"],
    ),
    "no rows": (rows(), 2, ["train.jsonl", "empty", "at least one row"]),
    "unknown key": (lambda folder: ["trainin.seed=1"], 2, ["trainin"]),
    "unknown leaf": (lambda folder: ["learning_rat=1"], 2, ["learning_rate"]),
    "no template": (no_template, 2, ["chat_template"]),
    "unwritable output": (unwritable, 2, ["output_dir"]),
    "a folder without weights": (no_weights, 2, ["empty", "safetensors"]),
    "pickled weights": (pickled, 2, ["pytorch_model.bin", "safetensors"]),
    "target modules that match nothing": (lambda folder: ["target_modules=[q_prj]"], 2, ["q_prj", "q_proj"]),
    "a tracker that is not installed": (lambda folder: ["report_to=aim"], 3, ["aim"]),
    "several bad rows": (
        rows({"instruction": "x", "output": ""}, *GOOD, {"instruction": None, "output": "y"}, "[1"),
        2,
        ["train.jsonl:1", "train.jsonl:14", "train.jsonl:15", "3 of 15 rows"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(
    name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "train.jsonl", list(GOOD))
    change, code, words = CASES[name]
    overrides = [f"model={model}", "data=train.jsonl", "output_dir=runs/mine", *change(tmp_path)]
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", *overrides]) == code
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert len(shown.splitlines()) <= 30
    for word in words:
        assert word in shown, shown
    assert "fix:" in shown, shown
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"


def test_dropped_rows_are_written_with_their_reason(model: Path, tmp_path: Path) -> None:
    """`on_bad_row: drop` continues; every row is in the ledger or in rejected.jsonl with what it held."""
    bad = {"instruction": "keep me", "output": ""}
    write_rows(tmp_path / "train.jsonl", with_row(5, bad))
    run = tmp_path / "run"
    overrides = [
        f"model={model}",
        f"data={tmp_path / 'train.jsonl'}",
        f"output_dir={run}",
        "on_bad_row=drop",
        "max_steps=2",
    ]
    assert main(["train", *overrides]) == 0
    (line,) = [json.loads(text) for text in (run / "rejected.jsonl").read_text().splitlines()]
    assert line["row"] == bad
    assert "train.jsonl:5" in line["where"]
    ledger = json.loads((run / "ledger.json").read_text())
    assert ledger["rows_in"] == 12
    assert ledger["rows_trained"] == 11


@pytest.mark.parametrize("how", ["drop", "truncate"])
def test_long_rows_are_counted(how: str, model: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", with_row(3, {"instruction": "x", "output": "violin " * 300}))
    run = tmp_path / "run"
    overrides = [
        f"model={model}",
        f"data={tmp_path / 'train.jsonl'}",
        f"output_dir={run}",
        f"on_long_row={how}",
        "max_steps=2",
    ]
    assert main(["train", *overrides]) == 0
    ledger = json.loads((run / "ledger.json").read_text())
    assert ledger["rows_trained"] == (11 if how == "drop" else 12)
    assert (ledger["tokens_dropped"] if how == "drop" else ledger["tokens_cut"]) > 0


def test_a_bad_row_with_a_resume_loses_nothing(model: Path, tmp_path: Path) -> None:
    """A second start in a folder with a run is refused and leaves every byte of it."""
    write_rows(tmp_path / "train.jsonl", list(GOOD))
    overrides = [f"model={model}", f"data={tmp_path / 'train.jsonl'}", f"output_dir={tmp_path / 'run'}", "max_steps=2"]
    assert main(["train", *overrides]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert main(["train", *overrides]) == 2
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_damaged_best_checkpoint_is_no_dead_end(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "train.jsonl", list(GOOD))
    given = [f"model={model}", f"data={tmp_path / 'train.jsonl'}", f"output_dir={tmp_path / 'run'}"]
    given += ["dtype=float32", "data.eval=0.3", "eval_steps=1", "max_steps=3", "load_best_checkpoint=true"]

    def damaged(config: Any, built: Any, *rest: Any) -> None:
        (built.job.checkpoints.path(built.job.progress.best_step) / "tensors.safetensors").write_bytes(b"damaged")
        result.write_result(config, built, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_result", damaged)
        assert main(["train", *given]) == 2
    assert "load_best_checkpoint=false, with --resume" in capsys.readouterr().err
    assert main(["train", *given[:-1], "load_best_checkpoint=false", "--resume"]) == 0
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ((Lora, "apply"), ["before the first step", "quantization=nf4"]),
        ((loop, "optimizer_step"), ["step 1", "max_tokens_per_micro_batch=", "activation_checkpointing=true"]),
    ],
)
def test_a_card_that_is_full_is_no_traceback(
    place: tuple[Any, str],
    words: list[str],
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(*place, full)
    write_rows(tmp_path / "train.jsonl", list(GOOD))
    assert main(["train", f"model={model}", f"data={tmp_path / 'train.jsonl'}", f"output_dir={tmp_path / 'run'}"]) == 3
    shown = capsys.readouterr().err
    for word in [*words, "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.", "fix:"]:
        assert word in shown
