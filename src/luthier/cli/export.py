"""Write a run as a folder that other tools load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    target: Annotated[str, typer.Argument(metavar="RUN|ADAPTER", help="A run's folder, or an adapter's.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new or empty folder.")],
    to: Annotated[str, typer.Option(metavar="KIND", help="merged: a plain model; adapter: a PEFT folder.")] = "merged",
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
    """Write a run as a folder that other tools load.

    The folder is read back and compared with the run before it gets its name; the drift is printed. Where llama.cpp is
    installed (luthier's extra llama-cpp), its prompt ids of 200 conversations must be those of training.

    Example:
      luthier export runs/mine --to merged --output mine-merged
      luthier export runs/mine --to adapter --output mine-adapter
    """
    import sys
    from dataclasses import asdict

    from luthier.cli._shared import print_json
    from luthier.exporting import export as write

    settings = {} if dtype is None else {"dtype": dtype}
    done = write(
        target,
        to,
        output,
        settings=settings,
        base=base,
        unproven=unproven,
        trust_remote_code=trust_remote_code,
        say=lambda text: print(text, file=sys.stderr),
    )
    if as_json:
        print_json(asdict(done))
        return
    print(done.as_text())
