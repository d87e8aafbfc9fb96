"""What is said while data are read and encoded, on a screen that is no terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from luthier import component, config
from luthier.data.dataset.prepare import prepare
from luthier.data.dataset.progress import RowProgress
from tests.helpers import tokenizers


def test_a_long_file_is_told_of_before_its_first_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which every look takes four seconds."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    row = json.dumps({"instruction": "a" * 50, "output": "b"}) + "\n"
    Path("train.jsonl").write_text("\n" * (40 << 20) + row * 600)
    wanted = config.load(None, ["model=m", "data=train.jsonl", "data.train.num_samples=600", "num_workers=0"])
    objective = component.make("objectives", wanted.objective)
    written, ticks = io.StringIO(), iter(range(0, 4_000_000, 4))
    with RowProgress(Console(file=written, width=200), lambda: float(next(ticks))) as progress:
        prepare(wanted, tokenizers.chatml(), context_length=None, objective=objective, watch=progress)
    progress.reading("train.jsonl", 1.0)
    said = written.getvalue().splitlines()
    told = [line for line in said if line.startswith("reading train.jsonl, ")]
    shares = [int(line.split()[-1].removesuffix("%")) for line in told]
    assert len(told) > 5
    assert any(0 < share < 100 for share in shares)
    assert said[-1].startswith("512 rows encoded, "), "rows say more; the next line is not due yet"
