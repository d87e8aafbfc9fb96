"""Whole runs on pairs: killed and resumed to the same bits, on two processes, and with what is kept of the reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier import config
from luthier.errors import UserError
from luthier.system.paths import cache_dir
from luthier.training import reference, run
from tests.helpers.killing import outcome, write_config

FIGURES = ("loss", "margin", "accuracy", "kl", "eval_loss", "eval_margin", "eval_nll", "eval_kl")


def trained(config_file: Path, folder: Path, *overrides: str) -> tuple[dict[str, bytes], list[str]]:
    """What a run made, and what it said."""
    said: list[str] = []
    run.execute(config.load(config_file, [f"output_dir={folder}", "max_steps=3", *overrides]), say=said.append)
    return outcome(folder), said


def figures(folder: Path) -> dict[tuple[int, str], float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {(line["step"], name): line[name] for line in lines for name in FIGURES if name in line}


@pytest.mark.parametrize(("objective", "sets"), [("dpo", 2), pytest.param("kto", 4, marks=pytest.mark.prove)])
def test_the_reference_is_kept_for_the_next_run(objective: str, sets: int, tmp_path: Path) -> None:
    """To the bit; what was damaged is computed anew; and computed in every step it gives the same figures."""
    config_file = write_config(tmp_path, objective)
    first, said = trained(config_file, tmp_path / "first")
    assert sum("computed once" in line for line in said) == sets
    again, said = trained(config_file, tmp_path / "again", "objective.beta=0.1")
    assert not any("computed once" in line for line in said)
    assert again == first
    for kept in (cache_dir() / "reference").iterdir():
        content = bytearray(kept.read_bytes())
        content[len(content) // 2] ^= 1
        kept.write_bytes(content)
    mended, said = trained(config_file, tmp_path / "mended")
    assert sum("computed once" in line for line in said) == sets
    assert mended == first
    _, said = trained(config_file, tmp_path / "live", "objective.reference=live")
    assert not any("computed once" in line for line in said)
    assert figures(tmp_path / "live") == pytest.approx(figures(tmp_path / "first"), abs=1e-5)


def test_weights_held_otherwise_are_another_reference(tmp_path: Path) -> None:
    """Under bfloat16 a whole model is held in float32, and the base of an adapter is not: the figures differ by rounding."""
    config_file = write_config(tmp_path, "dpo")
    whole = ["dtype=bfloat16", "tuning=full", "learning_rate=1e-5"]
    trained(config_file, tmp_path / "whole", *whole)
    _, said = trained(config_file, tmp_path / "adapter", "dtype=bfloat16")
    assert sum("computed once" in line for line in said) == 2
    assert figures(tmp_path / "adapter")[1, "margin"] == 0


def test_a_prompt_is_computed_once_and_that_changes_nothing(tmp_path: Path) -> None:
    config_file = write_config(tmp_path, "dpo")
    _, said = trained(config_file, tmp_path / "shared")
    assert any("layout: shared" in line and "answers to one prompt share it" in line for line in said)
    _, said = trained(config_file, tmp_path / "apart", "share_prefix=never")
    assert any("layout: flat" in line for line in said)
    assert figures(tmp_path / "shared") == pytest.approx(figures(tmp_path / "apart"), rel=1e-5, abs=1e-5)


def test_another_beginning_is_another_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter that is gone on from is its own reference; what is kept of the base is not taken for it."""
    config_file = write_config(tmp_path, "dpo")
    trained(config_file, tmp_path / "first", "learning_rate=1e-2")
    goes_on = ["tuning={kind: lora, adapter_path: " + str(tmp_path / "first") + "}", "lora_dropout=0.0"]
    _, said = trained(config_file, tmp_path / "second", *goes_on)
    assert sum("computed once" in line for line in said) == 2
    assert figures(tmp_path / "second")[1, "loss"] == pytest.approx(0.693147, abs=1e-5)
    monkeypatch.setattr(
        reference, "_path", lambda _job, samples, _base: cache_dir() / "reference" / f"{len(samples)}.f32"
    )
    trained(config_file, tmp_path / "third")
    with pytest.raises(UserError, match=r"before anything was learned, and must be 0\.693147"):
        trained(config_file, tmp_path / "fourth", *goes_on)
    assert not (tmp_path / "fourth" / "checkpoints").exists()
