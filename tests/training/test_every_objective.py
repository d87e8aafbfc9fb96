"""What must change nothing of a run changes nothing, with dropout on: every objective that learns from rows on disk, as a whole run. (How
one step is cut, laid out and shared: tests/objectives/test_cuts.py.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier import config
from luthier.training import run
from tests.helpers.killing import Worker, kill_and_resume, outcome, rows_of, write_config
from tests.helpers.pairs import OBJECTIVES as PAIRED
from tests.helpers.pairs import named
from tests.objectives.test_kto import OBJECTIVES as JUDGED
from tests.objectives.test_pretrain import text_config
from tests.objectives.test_reward import REWARDS
from tests.training.test_distillation import taught

Keys = dict[str, Any]
TEXTS: tuple[Keys, ...] = tuple(
    {"kind": "pretrain", "block_size": 24, "documents": documents} for documents in ("joined", "apart")
)
TAUGHT: tuple[Keys, ...] = (
    {"kind": "distill"},
    {"kind": "distill", "top_k": 5, "divergence": "reverse", "temperature": 2.0},
)
SUMS: tuple[Keys, ...] = (
    {"kind": "weighted", "terms": [{"kind": "sft"}, {"kind": "z_loss", "weight": 0.01}]},
    {"kind": "weighted", "terms": [{"kind": "dpo"}, {"kind": "orpo", "weight": 0.3}]},
)
SFT: Keys = {"kind": "sft"}
CASES: dict[str, Keys] = {named(keys): keys for keys in (SFT, *TEXTS, *REWARDS, *PAIRED, *JUDGED, *TAUGHT, *SUMS)}
WAYS = {
    "cut": "max_tokens_per_micro_batch=25",
    "at once": "max_tokens_per_micro_batch=100000",
    "not evaluated": "data.eval=null eval_steps=null",
    "live": "objective.reference=live",
    "apart": "share_prefix=never",
}
"""What a run of one process is started with beside the configuration."""


def ways_of(keys: Keys) -> list[str]:
    left_out = set[str]()
    if keys["kind"] not in ("dpo", "kto") or "reference" in keys:
        left_out.add("live")
    if keys not in (*PAIRED, *REWARDS, *JUDGED):
        left_out.add("apart")
    return [way for way in WAYS if way not in left_out]


def every_way() -> list[Any]:
    """Each objective with each way; `make test` has each objective with one of them."""
    cases = []
    for number, (case, keys) in enumerate(CASES.items()):
        ways = ways_of(keys)
        for place, way in enumerate(ways):
            cases.append(pytest.param(case, way, marks=[pytest.mark.prove] if place != number % len(ways) else []))
    return cases


def configuration(folder: Path, keys: Keys) -> Path:
    """Of a small run in three epochs, with its data."""
    if keys in TEXTS:
        return text_config(folder, json.dumps(keys))
    if keys in TAUGHT:
        return taught(folder, "".join(f", {key}: {value}" for key, value in keys.items() if key != "kind"))
    of_rows = keys in (SFT, SUMS[0])
    path = write_config(folder, "sft" if of_rows else json.dumps(keys))
    path.write_text(path.read_text().replace("objective: sft", f"objective: {json.dumps(keys)}"))
    return path


def figures(folder: Path, evaluated: bool = True) -> dict[tuple[int, str], float]:
    """All numbers of a run, by step and name."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {
        (line["step"], name): value
        for line in lines
        for name, value in line.items()
        if (evaluated or not name.startswith("eval_")) and isinstance(value, float)
    }


def result(folder: Path) -> bytes:
    return outcome(folder)["result"]


@pytest.mark.parametrize(("case", "way"), every_way())
def test_what_must_change_nothing(case: str, way: str, tmp_path: Path) -> None:
    config_file = configuration(tmp_path, CASES[case])
    for name, overrides in (("whole", ""), ("other", WAYS[way])):
        keys = [f"output_dir={tmp_path / name}", "max_steps=3", *overrides.split()]
        run.execute(config.load(config_file, keys), say=lambda line: None)
    compare(way, tmp_path / "whole", tmp_path / "other")


@pytest.mark.prove
@pytest.mark.processes
@pytest.mark.parametrize("case", CASES)
def test_killed_and_on_two_processes(case: str, worker: Worker, tmp_path: Path) -> None:
    config_file = configuration(tmp_path, CASES[case])
    worker.run(config_file, tmp_path / "whole", "new")
    kill_and_resume(worker, config_file, tmp_path / "killed", tmp_path / "whole", kills=1, seed=1)
    worker.run(config_file, tmp_path / "two", "new", processes=2)
    assert rows_of(tmp_path / "two") == rows_of(tmp_path / "whole")
    compare("two processes", tmp_path / "whole", tmp_path / "two")
    kill_and_resume(worker, config_file, tmp_path / "both", tmp_path / "two", kills=1, seed=2, processes=2)


def compare(way: str, whole: Path, other: Path) -> None:
    """To the bit where the same operations ran, else to rounding."""
    if way == "not evaluated":
        assert result(other) == result(whole)
        assert figures(other, evaluated=False) == figures(whole, evaluated=False)
        return
    wanted = figures(whole)
    assert len(wanted) > 10
    rel, near = (1e-3, 2e-4) if way == "two processes" else (1e-4, 2e-5)  # of thirty-six steps, and of three
    assert figures(other) == pytest.approx(wanted, rel=rel, abs=near)
