"""What is said of a format that reads a column which no row has."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.dataset.test_prepare import refused, run


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("columns", "fix"),
    [
        (
            "instruction: question, output: answr",
            'did you mean "answer"? format: {kind: alpaca, instruction: question, output: answer}',
        ),
        (
            "instruction: qestion, output: answer",
            'did you mean "question"? format: {kind: alpaca, instruction: question, output: answer}',
        ),
        ("output: answer", "format: {kind: alpaca, instruction: question, input: null, output: answer}"),
    ],
)
def test_a_format_of_a_column_that_no_row_has_is_answered_with_the_one_that_works(columns: str, fix: str) -> None:
    rows = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(30)]
    given = f"data.train=[{{path: train.jsonl, format: {{kind: alpaca, {columns}}}}}]"
    for policy in ("error", "drop"):
        assert refused(rows, given, f"on_bad_row={policy}").endswith(f"fix: {fix}")
    works = fix.partition("format: ")[2]
    assert len(run(None, f"data.train=[{{path: train.jsonl, format: {works}}}]").train) == 30
    one_bad = refused([*rows, {"question": "a"}], f"data.train=[{{path: train.jsonl, format: {works}}}]")
    assert "format:" not in one_bad
    assert "on_bad_row=drop" in one_bad


def test_a_name_of_a_megabyte_is_not_proposed_back() -> None:
    long = "answe" + "r" * 1_000_000
    text = refused(
        [{"question": "a", long: "b"}] * 3,
        "data.train=[{path: train.jsonl, format: {kind: alpaca, instruction: question, output: answer}}]",
    )
    assert "did you mean" not in text
    assert len(text) < 5_000
