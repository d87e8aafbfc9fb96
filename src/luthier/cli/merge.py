"""The same as `export --to merged`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def merge(
    target: Annotated[str, typer.Argument(metavar="RUN|ADAPTER", help="A run's folder, or an adapter's.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new or empty folder.")],
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the written weights: float32, bfloat16, float16. Default: as the base's are stored."),
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            help="16bit: merge into the unquantized base although the adapter was trained on a quantized one."
        ),
    ] = "as trained",
    as_json: Annotated[bool, typer.Option("--json", help="Print for programs.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False,
    unproven: Annotated[
        bool, typer.Option("--unproven", help="Do not ask llama.cpp whether it reads prompts as they were trained.")
    ] = False,
) -> None:
    """The same as `luthier export --to merged`.

    Example:
      luthier merge runs/mine --output mine-merged
    """
    from luthier.cli.export import export

    export(target, output, "merged", dtype, base, as_json, trust_remote_code, unproven)
