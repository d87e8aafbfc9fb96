"""Arguments and options that several commands take, each described once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

MOST_ROWS = 1_000_000_000

ConfigAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CONFIG.yaml|KEY=VALUE",
        show_default=False,
        help="The configuration, and keys that override it.",
    ),
]
RunOrAdapter = Annotated[
    str,
    typer.Argument(
        metavar="RUN|CHECKPOINT|ADAPTER", help="A run's folder, RUN/checkpoints/step-N, or an adapter's folder."
    ),
]
RunOrModel = Annotated[
    str,
    typer.Argument(
        metavar="RUN|CHECKPOINT|ADAPTER|MODEL",
        help="A run's folder, one of its checkpoints (RUN/checkpoints/step-000100), an adapter's folder, or any model.",
    ),
]
NewFolder = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new or empty folder.")]
WrittenDtype = Annotated[
    str | None,
    typer.Option(help="Of the written weights: float32, bfloat16, float16. Default: as the base's are stored."),
]
MergedInto = Annotated[
    str,
    typer.Option(
        metavar="BASE",
        help="Where the adapter was trained on a quantized base: 16bit merges into the unquantized one, dequantized into "
        "the values that it was trained on.",
    ),
]
ChatTemplate = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="A chat template that comes with luthier, or a Jinja file; default: the model's own.",
        show_default=False,
    ),
]
DropBadRows = Annotated[bool, typer.Option("--drop-bad-rows", help="Leave out rows that cannot be used.")]


def _number(value: float) -> float:
    """nan is neither too small nor too large."""
    if math.isnan(value):
        raise typer.BadParameter("nan is not a number")
    return value


MaxNewTokens = Annotated[int, typer.Option(min=1, max=1_000_000, help="Most tokens of an answer.")]
Temperature = Annotated[
    float, typer.Option(min=0.0, max=1_000.0, callback=_number, help="0 takes the most likely token.")
]
TopP = Annotated[
    float,
    typer.Option(
        min=1e-6, max=1.0, callback=_number, help="Draws among the most likely tokens of this total probability."
    ),
]
SeedOfDraws = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the draws and of the intervals.")]
Limit = Annotated[int | None, typer.Option(min=1, max=MOST_ROWS, help="Only the first so many rows.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print for programs.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]
Unproven = Annotated[
    bool, typer.Option("--unproven", help="Do not ask llama.cpp whether it reads prompts as they were trained.")
]
