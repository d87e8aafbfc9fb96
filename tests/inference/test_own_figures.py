"""`luthier eval` of a run that learned from judged answers gives the objective's own figures, as the run reported them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier import config
from luthier.cli import main
from luthier.inference.intervals import bootstrap_ratio, bootstrap_sum_of_ratios
from luthier.training import run
from tests.helpers.killing import write_config
from tests.helpers.pairs import named

OWN = ("loss", "accuracy", "margin")
OTHERS: tuple[dict[str, Any], ...] = (
    {"kind": "dpo", "loss": "ipo", "sft_weight": 0.5},
    {"kind": "simpo"},
    {"kind": "orpo"},
    {"kind": "kto"},
    {"kind": "weighted", "terms": [{"kind": "dpo"}, {"kind": "orpo", "weight": 0.3}]},
)


def trained(folder: Path, objective: dict[str, Any], *keys: str) -> tuple[Path, dict[str, float]]:
    """A short run, and what it noted last of the rows that it held out."""
    config_file = write_config(folder, json.dumps(objective))
    given = [f"output_dir={folder / 'run'}", "max_steps=3", "learning_rate=3e-3", "max_tokens_per_micro_batch=400", *keys]
    run.execute(config.load(config_file, given), say=lambda _: None)
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return folder / "run", [line for line in lines if "eval_loss" in line][-1]


def measured(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()  # what the run said
    assert main(["eval", *map(str, words), "--generate", "0", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def check(found: dict[str, Any], noted: dict[str, float]) -> None:
    for name in OWN:
        figure = found["objective"][name]
        assert figure["value"] == pytest.approx(noted[f"eval_{name}"], rel=1e-4, abs=1e-5)
        assert figure["low"] <= figure["value"] + 1e-9
        assert figure["value"] <= figure["high"] + 1e-9
    assert found["nll_per_token"]["value"] == pytest.approx(noted["eval_nll"], rel=1e-4)


def test_they_are_those_that_the_run_noted_and_of_a_file_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, noted = trained(tmp_path, {"kind": "dpo"})
    found = measured(capsys, folder)
    check(found, noted)
    assert (found["objective"]["kind"], found["objective"]["accuracy"]["rows"]) == ("dpo", 5)
    by_length = [name for name in found["objective"] if name.startswith("accuracy_where_the_better_is_")]
    assert sum(found["objective"][name]["rows"] for name in by_length) in (4, 5)
    assert measured(capsys, folder, "--data", tmp_path / "held.jsonl")["objective"] == found["objective"]
    rows = [{"prompt": "a b", "completion": "c d"}, {"prompt": "b", "completion": "e"}]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "objective" not in measured(capsys, folder, "--data", tmp_path / "plain.jsonl")
    assert main(["eval", str(folder), "--generate", "0"]) == 0
    assert "of dpo, 5 rows" in " ".join(capsys.readouterr().out.split())


@pytest.mark.prove
@pytest.mark.parametrize("objective", OTHERS, ids=named)
def test_of_every_objective(objective: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, noted = trained(tmp_path, objective)
    check(measured(capsys, folder), noted)


@pytest.mark.prove
def test_where_the_reference_is_gone_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = trained(tmp_path, {"kind": "dpo"}, "tuning=full")
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    found = measured(capsys, folder, "--data", tmp_path / "held.jsonl")
    assert found["objective"].keys() == {"kind", "missing"}
    assert "nll_per_token" in found


def test_an_interval_of_a_sum_of_ratios() -> None:
    """Of one part it is that of the ratio; a part that a draw has none of is left out."""
    import numpy as np

    above, below = np.array([1.0, 4.0, 2.0, 9.0]), np.array([2.0, 3.0, 2.0, 4.0])
    assert bootstrap_sum_of_ratios([(above, below)]) == bootstrap_ratio(above, below)
    good = np.array([1.0, 1.0, 1.0, 0.0])
    low, high = bootstrap_sum_of_ratios([(above * good, good), (above * (1 - good), 1 - good)])
    assert 10 <= low < high <= 13
