"""The runs below a folder, from their files alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.runs.recorder import read_lines
from luthier.runs.run_folder import CONFIG, LOCK, METRICS
from luthier.system.files import is_locked


@dataclass(frozen=True)
class RunLine:
    """What a run's files say of it. A figure is None where there is none yet."""

    run: str
    model: str
    method: str
    state: str
    """not begun, running, interrupted (killed), trained, stopped, failed, finished, or damaged"""
    steps: int
    total_steps: int | None
    loss: float | None
    """of the last step"""
    eval_loss: float | None
    """of the last evaluation"""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def list_runs(folder: Path) -> list[RunLine]:
    """Runs in `folder` and in the folders below it, by name; `folder` may be a run itself.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(str(folder), "there is no such folder", "a folder that holds runs", "luthier runs FOLDER")
    manifests = [
        folder / "manifest.json",
        *sorted(folder.glob("*/manifest.json")),
        *sorted(folder.glob("*/*/manifest.json")),
    ]
    return [read_run(path.parent) for path in manifests if path.is_file() and (path.parent / CONFIG).is_file()]


def read_run(folder: Path) -> RunLine:
    """One run's line; a manifest that cannot be read gives the state `damaged`."""
    lines = read_lines(folder / METRICS) if (folder / METRICS).is_file() else []
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval_loss" in line]
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        state, model, method, total = (
            manifest["state"],
            manifest["base"]["name"],
            manifest["method"],
            manifest["total_steps"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        state, model, method, total = "damaged", "", "", None
    if state in ("running", "trained") and not is_locked(folder / LOCK):
        state = "interrupted"
    return RunLine(
        str(folder),
        model,
        method,
        state,
        steps[-1]["step"] if steps else 0,
        total,
        steps[-1]["loss"] if steps else None,
        evaluations[-1]["eval_loss"] if evaluations else None,
    )
