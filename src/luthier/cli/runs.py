"""List the runs in a folder: model, method, steps, losses, state."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli._options import AsJson
from luthier.system.streams import show


def runs(
    folder: Annotated[Path, typer.Argument(help="The folder that holds the runs.")] = Path("runs"),
    json: AsJson = False,
) -> None:
    """List the runs in a folder: model, method, steps, losses, state.

    Example:
      luthier runs
      luthier runs runs/trials --json
    """
    from rich.table import Table

    from luthier.cli._shared import print_json
    from luthier.runs.listing import list_runs
    from luthier.system.console import Screen

    found = list_runs(folder)
    if json:
        print_json([run.as_dict() for run in found])
        return
    if not found:
        show(f"no runs in {folder}")
        return
    table = Table("run", "model", "method", "steps", "loss", "eval loss", "state", box=None, header_style="bold")
    for run in found:
        total = f"/{run.total_steps}" if run.total_steps else ""
        table.add_row(
            run.run, run.model, run.method, f"{run.steps}{total}", _figure(run.loss), _figure(run.eval_loss), run.state
        )
    Screen().print(table)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
