"""The runs below a folder, from their files alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.runs.figures import RunFigures, at, read_figures
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
    rank: int | None = None
    learning_rate: float | None = None
    batch: int | None = None
    """rows of a step"""
    rows: int | None = None
    """that are learned from"""
    data: str = ""
    """names of the files"""
    seconds: float | None = None
    """in steps, over all starts"""
    began: str | None = None
    """day and time of this machine, `2026-11-30 08:15`"""

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
        **_more(folder),
    )


def _more(folder: Path) -> dict[str, Any]:
    """What tells runs apart that were tried one after the other."""
    run = read_figures(folder)
    files = at(run.config, "data", "train") or []
    names = [Path(str(at(one, "path") or one)).name for one in files] if isinstance(files, list) else []
    return {
        "rank": at(run.config, "tuning", "r"),
        "learning_rate": at(run.config, "training", "learning_rate"),
        "batch": at(run.config, "training", "global_batch_size"),
        "rows": run.ledger.get("rows_trained"),
        "data": ", ".join(names),
        "seconds": round(run.seconds, 1),
        "began": _began(run),
    }


def _began(run: RunFigures) -> str | None:
    """As the manifest says: a copy of a folder has other times."""
    try:
        return datetime.fromisoformat(str(run.manifest.get("began"))).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError):
        return None
