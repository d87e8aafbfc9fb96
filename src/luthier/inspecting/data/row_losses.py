"""What training made of each row: its loss at every pass over the data, as `row_losses.jsonl` of the run has it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.data.dataset.prepare import Prepared
from luthier.errors import UserError
from luthier.runs.recorder import read_lines
from luthier.runs.run_folder import ROW_LOSSES

Losses = npt.NDArray[np.float64]

MOVED = 0.1
"""Share of its first loss by which a row's loss must move to have been learned or forgotten."""


def read_row_losses(run: Path, rows: int) -> Losses:
    """[rows, passes] the loss of each row (a sum over the trained tokens of all samples that it gave, in nats) at each pass; NaN
    where it had none.

    A row's first place in the record is its first pass, its second the second, whatever the order of the data was.

    Raises:
        UserError: the run did not record them, or has rows that the data have not.
    """
    lines = [line for line in read_lines(run / ROW_LOSSES) if line.get("rows")]
    if not lines:
        raise UserError(
            f"--after {run}",
            f"there is no {ROW_LOSSES} in it",
            "a run that recorded the loss of each row",
            "train again; every run of supervised fine-tuning records them",
        )
    row = np.concatenate([np.asarray(line["rows"], dtype=np.int64) for line in lines])
    loss = np.concatenate([np.asarray(line["losses"], dtype=np.float64) for line in lines])
    if row.max() >= rows:
        raise UserError(f"--after {run}", f"it learned from row {row.max() + 1:,}", f"the {rows:,} rows of these data")
    order = np.argsort(row, kind="stable")
    begins = np.flatnonzero(np.concatenate([[True], row[order][1:] != row[order][:-1]]))
    lengths = np.diff(np.concatenate([begins, [len(row)]]))
    place = np.arange(len(row)) - np.repeat(begins, lengths)
    out = np.full((rows, int(lengths.max())), np.nan)
    out[row[order], place] = loss[order]
    return out


def check_data(run: Path, prepared: Prepared) -> None:
    """Raises UserError where the run learned from other data than these."""
    try:
        manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--after {run}", f"no manifest.json can be read there: {error}", "a run's folder") from None
    if manifest.get("fingerprints", {}).get("data") != prepared.train.fingerprint:
        raise UserError(
            f"--after {run}",
            "it learned from other data than this configuration gives",
            "the data, the template and the limits of the run",
            f"luthier data --after {run} takes the run's own configuration",
        )


@dataclass(frozen=True)
class Courses:
    """How the loss of each row went, in nats per trained token."""

    losses: Losses
    """[rows, passes]"""
    learned: npt.NDArray[np.bool_]
    """[rows] the last loss is at least a tenth below the first"""
    forgotten: npt.NDArray[np.bool_]
    """[rows] it had been, and rose again by a tenth of the first"""
    never_learned: npt.NDArray[np.bool_]
    """[rows] neither: seen twice or more, and hardly moved, or rose"""

    @property
    def last(self) -> Losses:
        """[rows] at the last pass that had the row; NaN where none had."""
        return _last(self.losses)


def courses(sums: Losses, tokens: npt.NDArray[np.int64]) -> Courses:
    """Tells rows apart by their course.

    Args:
        sums: as `read_row_losses` gives them, [rows, passes].
        tokens: trained tokens of each row, [rows].
    """
    losses = sums / np.maximum(tokens, 1)[:, None]
    seen = (~np.isnan(losses)).sum(1)
    first, last = losses[:, 0], _last(losses)
    lowest = np.where(seen > 0, np.nanmin(np.where(np.isnan(losses), np.inf, losses), axis=1), np.nan)
    several = seen > 1
    margin = MOVED * first
    forgotten = several & (lowest <= first - margin) & (last >= lowest + margin)
    learned = several & (last <= first - margin) & ~forgotten
    return Courses(losses, learned, forgotten, several & ~learned & ~forgotten)


def _last(losses: Losses) -> Losses:
    seen = (~np.isnan(losses)).sum(1)
    found: Losses = losses[np.arange(len(losses)), np.maximum(seen - 1, 0)]
    return found


def as_values(found: Courses, prepared: Prepared) -> dict[str, Any]:
    """Counts, means by pass, and every row's course; `rows` are in the order of the data."""
    seen = ~np.isnan(found.losses)
    means = np.where(seen, found.losses, 0.0).sum(0) / np.maximum(seen.sum(0), 1)
    course = np.select(
        [found.learned, found.forgotten, found.never_learned], ["learned", "forgotten", "never learned"], ""
    )
    return {
        "passes": found.losses.shape[1],
        "mean_by_pass": [float(mean) for mean in means],
        "learned": int(found.learned.sum()),
        "forgotten": int(found.forgotten.sum()),
        "never_learned": int(found.never_learned.sum()),
        "rows": [
            {
                "row": prepared.train.place(index),
                "losses": [None if np.isnan(value) else round(float(value), 6) for value in found.losses[index]],
                "course": str(course[index]),
            }
            for index in range(len(found.losses))
        ],
    }
