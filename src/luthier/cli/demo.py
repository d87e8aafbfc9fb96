"""Tune a small model to write luthier's YAML, and see what it could do before and can do after."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="The run's folder; the data lie beside it, in DIR-data.")
    ] = Path("runs/demo"),
) -> None:
    """Tune a small model to write luthier's YAML, and see what it could do before and can do after.

    The model has 135 million weights and comes from the package index; docs/claims.md says how long it took where.
    A demo that was interrupted goes on where it was.

    Example:
      luthier demo
      luthier demo --output runs/my-demo
    """
    from luthier.demo import flow

    flow.demo(output)
