"""The unit of a step is the example: a row, whatever number of samples it gave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from luthier import config
from luthier.config import RunConfig
from luthier.inference.intervals import bootstrap_ratio
from luthier.inference.measures import measure_target
from luthier.inference.opened import open_model
from luthier.inference.questions import read_questions, read_samples
from luthier.inference.scoring import score_rows
from luthier.inspecting.data.look import look
from luthier.inspecting.data.shown_rows import Wanted
from luthier.runs.recorder import read_lines
from luthier.runs.run_folder import METRICS, ROW_LOSSES
from luthier.training import run
from luthier.training.step import non_finite
from tests.helpers import tokenizers
from tests.helpers.killing import Worker, differences
from tests.helpers.split_rows import REWRITES, write_conversations
from tests.helpers.tiny_models import tiny_llama

ANSWERS = (3, 1, 2, 5, 3, 1, 4, 2, 3)
"""Nine rows: with a batch of two the last step of an epoch has one."""


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, a template that splits, and conversations."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    tiny_llama(Path("model"))
    tokenizers.save(tokenizers.chatml(), Path("model"))
    Path("splits.jinja").write_text(REWRITES, encoding="utf-8")
    write_conversations(Path("train.jsonl"), ANSWERS)
    return tmp_path


def loaded(name: str, *overrides: str) -> RunConfig:
    keys = ["model=./model", "data=train.jsonl", f"output_dir=runs/{name}", "model.dtype=float32"]
    return config.load(None, [*keys, "global_batch_size=2", "num_train_epochs=2", *overrides])


def trained(name: str, *overrides: str) -> Path:
    return run.execute(loaded(name, *overrides), say=lambda text: None)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [line for line in read_lines(folder / name) if "eval_loss" not in line]


def test_a_step_covers_so_many_rows(there: Path) -> None:
    """Not so many samples: a row counts once, is trained whole in one step, and has one loss, which is that of all its
    answers."""
    folder = trained("split", "chat_template=splits.jinja")
    ledger = json.loads((folder / "ledger.json").read_text())
    assert ledger["rows_split"] == sum(count > 1 for count in ANSWERS)
    steps, losses = lines(folder, METRICS), lines(folder, ROW_LOSSES)
    per_epoch = (len(ANSWERS) + 1) // 2
    assert len(steps) == 2 * per_epoch
    assert [line["epoch"] for line in steps][per_epoch - 1 :: per_epoch] == [1.0, 2.0]
    for epoch in range(2):
        rows = [row for line in losses[epoch * per_epoch : (epoch + 1) * per_epoch] for row in line["rows"]]
        assert sorted(rows) == list(range(len(ANSWERS)))
    before = 0
    for step, line in zip(steps, losses, strict=True):
        tokens, before = step["trained_tokens"] - before, step["trained_tokens"]
        assert len(line["rows"]) <= 2
        assert sum(line["losses"]) / tokens == pytest.approx(step["loss"], rel=1e-5)
    assert before == 2 * ledger["tokens_trained"]


def test_what_a_loss_reads_together_lies_together(there: Path) -> None:
    """Pairs, also where the limit would part them: each is in one micro-batch, its two samples beside each other."""
    write_conversations(Path("train.jsonl"), [1] * 9)
    trained(
        "pairs", "objective={kind: 'tests.helpers.split_rows:Pairs', noted: noted}", "max_tokens_per_micro_batch=40"
    )
    batches = [json.loads(line) for line in Path("noted").read_text().splitlines()]
    for batch in batches:
        assert batch["rows"][::2] == batch["rows"][1::2]
    assert {batch["step"] for batch in batches} == set(range(10))
    for epoch in (range(5), range(5, 10)):
        seen = [row for batch in batches if batch["step"] in epoch for row in batch["rows"][::2]]
        assert sorted(seen) == [f"train.jsonl:{number}" for number in range(1, 10)]


def test_a_row_that_comes_round_within_a_step_has_a_loss_each_time(there: Path) -> None:
    """In a mixture whose short source repeats; the record has a loss for each of the step's rows."""
    write_conversations(Path("short.jsonl"), [2])
    files = "[{path: train.jsonl, weight: 1.0}, {path: short.jsonl, weight: 3.0}]"
    folder = trained("mixed", "chat_template=splits.jinja", f"data.train={files}", "mixing=all_exhausted")
    before, twice = 0, 0
    for step, line in zip(lines(folder, METRICS), lines(folder, ROW_LOSSES), strict=True):
        tokens, before = step["trained_tokens"] - before, step["trained_tokens"]
        assert len(line["rows"]) == len(line["losses"])
        assert sum(line["losses"]) / tokens == pytest.approx(step["loss"], rel=1e-5)
        twice += len(set(line["rows"])) < len(line["rows"])
    assert twice > 5


# ---- processes, breaks, streaming


def stopped_at(whole: Path, folder: Path, step: int) -> Path:
    """The folder of a finished run as it was when it was killed after a step."""
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "adapter")
    for path in (folder / "checkpoints").glob("step-*"):
        if int(path.name.partition("-")[2]) > step:
            shutil.rmtree(path)
    (folder / "report.html").unlink(missing_ok=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"state": "running"}))
    return folder


@pytest.mark.prove
@pytest.mark.processes
@pytest.mark.parametrize("streaming", [False, True])
def test_the_same_rows_after_a_break_and_on_two_processes(there: Path, streaming: bool, worker: Worker) -> None:
    """In the middle of an epoch, with dropout: to the bit on one process, to rounding where there are two."""
    Path("mine.yaml").write_text(
        f"""
model: {{path: {there / "model"}, dtype: float32}}
data: {{train: {there / "train.jsonl"}, chat_template: {there / "splits.jinja"}, streaming: {str(streaming).lower()}}}
tuning: {{kind: lora, r: 4, lora_dropout: 0.1}}
training: {{global_batch_size: 2, num_train_epochs: 2, save_steps: 1, save_total_limit: 20, learning_rate: 1e-3,
  max_tokens_per_micro_batch: 50}}
output_dir: unused
"""
    )
    mine, whole = there / "mine.yaml", there / "whole"
    worker.run(mine, whole, "new")
    assert len(lines(whole, METRICS)) == 10
    resumed = stopped_at(whole, there / "resumed", 3)
    worker.run(mine, resumed, "resume")
    assert [name for name in differences(whole, resumed) if name != "rows"] == []
    worker.run(mine, there / "two", "new", 2)
    half = stopped_at(there / "two", there / "half", 7)
    worker.run(mine, half, "resume", 1)
    for folder in (there / "two", half):
        for one, other in zip(lines(whole, ROW_LOSSES), lines(folder, ROW_LOSSES), strict=True):
            assert one["rows"] == other["rows"]
            assert other["losses"] == pytest.approx(one["losses"], rel=1e-4)
        weights = [load_file(run_folder / "adapter/adapter_model.safetensors") for run_folder in (whole, folder)]
        assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) < 5e-5


@pytest.mark.prove
def test_what_is_measured_afterwards_is_of_rows(there: Path) -> None:
    """`data --after`, `eval` and `compare` on a run that learned from split rows."""
    trained("split", "chat_template=splits.jinja")
    after = look(config.load("runs/split/config.yaml"), Wanted(), after=Path("runs/split")).after
    assert after is not None
    assert after["passes"] == 2
    assert [row["row"] for row in after["rows"]] == [f"train.jsonl:{row + 1}" for row in range(len(ANSWERS))]
    assert not any(None in row["losses"] for row in after["rows"])
    assert after["examined"] == len(ANSWERS)
    measured = measure_target("runs/split", "train.jsonl", answered=4, max_new_tokens=4)
    assert (measured.rows, measured.answered_rows) == (len(ANSWERS), 4)
    opened = open_model("runs/split")
    questions = read_questions(opened, "train.jsonl", limit=3)
    assert [question.row for question in questions] == [f"train.jsonl:{row + 1}" for row in range(3)]
    assert [question.reference for question in questions] == [
        f"assistant {row} {ANSWERS[row] - 1} " + "word " * ((row + ANSWERS[row] - 1) % 3 + 1) for row in range(3)
    ]
    samples = read_samples(opened, "train.jsonl").train
    scores = score_rows(opened.policy(), samples, layout="padded", max_tokens=2_048)
    assert len(scores.nll) == sum(ANSWERS)
    by_row = [np.add.reduceat(values, np.cumsum([0, *ANSWERS[:-1]])) for values in (scores.nll, scores.tokens)]
    assert measured.figures["nll_per_token"][1:] == pytest.approx(bootstrap_ratio(*by_row, 0), rel=1e-9)


def test_a_row_of_several_samples_is_named_once() -> None:
    assert "Rows: a:1, b:2" in str(non_finite(0, "loss", ["a:1", "a:1", "b:2", "a:1"]))
