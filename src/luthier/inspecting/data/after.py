"""`luthier data --after RUN`: what the run made of each row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from luthier.data.dataset.prepare import Prepared
from luthier.inference.opened import open_model
from luthier.inspecting.data import row_losses, suspects
from luthier.runs.figures import read_figures
from luthier.runs.run_folder import SUSPECTS
from luthier.runs.screen import duration
from luthier.system.progress import Progress
from luthier.system.words import counted

SHOWN_SUSPECTS = 20
"""At least so many are listed; else a fiftieth of the rows."""
SCORING_IS_FASTER = 2.0
"""Than training, per token: there is no backward pass (an estimate)."""


def after_run(
    run: Path,
    prepared: Prepared,
    examined_rows: int,
    say: Callable[[str], None],
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """The course of each row's loss, and the rows whose answer probably belongs elsewhere.

    Args:
        examined_rows: about how many rows at most the run's model is asked; 0: none.
        say: gets what it will cost, before.

    Raises:
        UserError: the run learned from other data, or recorded no losses.
    """
    row_losses.check_data(run, prepared)
    samples = prepared.train
    losses = row_losses.read_row_losses(run, samples.examples)
    found = row_losses.courses(losses, samples.by_example(samples.trained))
    out = {"run": str(run), **row_losses.as_values(found, prepared), "examined": 0, "suspects": []}
    rows = suspects.candidates(prepared.train, found.last, examined_rows) if examined_rows else None
    if rows is None or len(rows) < 2:
        return out
    key = suspects.key_of(run, prepared.train.fingerprint, rows)
    examined = suspects.kept(run, key)
    if examined is None:
        say(_cost(run, prepared, rows))
        with Progress() as progress:
            policy = open_model(str(run), trust_remote_code=trust_remote_code).policy()
            told = partial(_told, progress, 2 * len(rows))
            examined = suspects.examine(policy, prepared.train, rows, told)
        suspects.keep(run, key, examined)
    scores = examined.scores
    worst = sorted(range(len(rows)), key=lambda place: -scores[place])
    out["examined"] = len(rows)
    out["suspects"] = [
        {
            **out["rows"][int(rows[place])],
            "score": round(float(scores[place]), 6),
            "own_prompt": round(float(examined.own[place] / examined.tokens[place]), 6),
            "other_prompt": round(float(examined.other[place] / examined.tokens[place]), 6),
        }
        for place in worst[: max(SHOWN_SUSPECTS, len(rows) // 50)]
    ]
    return out


def _told(progress: Progress, answers: int, done: int) -> None:
    progress(f"{done:,} of {answers:,} answers scored", done / answers)


def _cost(run: Path, prepared: Prepared, rows: Any) -> str:
    tokens = suspects.tokens_to_score(prepared.train, rows)
    speed = read_figures(run).tokens_per_s
    time = f", about {duration(tokens / speed / SCORING_IS_FASTER)} at the speed of the run" if speed else ""
    return (
        f"asking the run's model about {counted(len(rows), 'row')}, {counted(tokens, 'token')}{time}; "
        f"kept in {run / SUSPECTS} (--suspects 0 leaves it out)"
    )
