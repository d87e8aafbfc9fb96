"""List the runs in a folder: model, method, rank, rate, data, steps, time, losses, state."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli._options import AsJson
from luthier.system.streams import show

COLUMNS = (
    "run",
    "model",
    "method",
    "rank",
    "batch",
    "rate",
    "rows",
    "steps",
    "time",
    "loss",
    "eval loss",
    "state",
    "began",
)
WIDEST = 10_000


def runs(
    folder: Annotated[Path, typer.Argument(help="The folder that holds the runs.")] = Path("runs"),
    json: AsJson = False,
) -> None:
    """List the runs in a folder: model, method, rank, rate, data, steps, time, losses, state.

    Example:
      luthier runs
      luthier runs runs/trials --json
    """
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    from luthier.cli._shared import print_json
    from luthier.runs.listing import list_runs
    from luthier.runs.screen import duration
    from luthier.system.console import Screen

    found = list_runs(folder)
    if json:
        print_json([run.as_dict() for run in found])
        return
    if not found:
        show(f"no runs in {folder}")
        return
    table = Table(*COLUMNS, box=None, header_style="bold")
    for run in found:
        total = f"/{run.total_steps}" if run.total_steps else ""
        rate = "-" if run.learning_rate is None else f"{run.learning_rate:g}"
        table.add_row(
            *map(
                Text,
                (
                    run.run,
                    run.model,
                    run.method,
                    *(str(value) if value is not None else "-" for value in (run.rank, run.batch)),
                    rate,
                    f"{run.data} {'-' if run.rows is None else f'{run.rows:,}'}",
                    f"{run.steps}{total}",
                    duration(run.seconds),
                    _figure(run.loss),
                    _figure(run.eval_loss),
                    run.state,
                    run.began or "-",
                ),
            )
        )
    screen = Screen()
    if not screen.is_terminal:  # a pipe has no width, and names are not cut for one
        screen.width = max(
            screen.width, Measurement.get(screen, screen.options.update(max_width=WIDEST), table).maximum
        )
    screen.print(table)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
