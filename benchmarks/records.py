"""Where benchmarks keep what they measured: `make docs` makes docs/claims.md of it."""

from __future__ import annotations

import datetime
import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figure:
    claim: str
    """what was measured"""
    value: float | str
    unit: str


def record(name: str, figures: Iterable[Figure], *, command: str, device: str, commit: str | None = None) -> None:
    """Writes results/NAME.json.

    Args:
        command: what anyone types to measure the same.
        device: what it ran on.
        commit: of the code that was measured; default: the one that is checked out.
    """
    lines = [
        {
            "claim": figure.claim,
            "figure": figure.value,
            "unit": figure.unit,
            "command": command,
            "measured": datetime.date.today().isoformat(),
            "device": device,
            "commit": commit or checked_out(),
        }
        for figure in figures
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


def checked_out() -> str:
    """The commit whose code is measured."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def device_of(run: Path) -> str:
    """What a run on a CPU ran on, for `record`."""
    decisions = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["decisions"]
    return f"{decisions['threads']} CPU threads, {decisions['dtype']}"
