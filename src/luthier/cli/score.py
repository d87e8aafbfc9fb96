"""Score the answers of a file's rows by a reward model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli._options import ChatTemplate, DropBadRows, Limit, RunOrModel, TrustRemoteCode
from luthier.system.streams import show


def score(
    target: RunOrModel,
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Rows with answers, in any format of training data; or '{path: FILE, format: ...}'.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the lines there; default: they are printed."),
    ] = None,
    limit: Limit = None,
    chat_template: ChatTemplate = None,
    drop_bad_rows: DropBadRows = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Score the answers of a file's rows by a reward model.

    A line of JSON for each row, in the order of the file: {"row": "FILE:LINE", "scores": [...]}, one score for each answer: of a
    preference the best first, of a conversation that of its last answer.

    Example:
      luthier score runs/judge --data answers.jsonl
      luthier score runs/judge --data pairs.jsonl -o scores.jsonl --limit 100
    """
    from luthier.config import data_file
    from luthier.inference.as_typed import check_names

    check_names("luthier score", [target], "--data", data, models=True)
    from luthier.inference import rewards
    from luthier.system.words import counted

    if output is not None:
        rewards.check_output(output, [Path(target), Path(data_file(data).path)], force)
    found = rewards.score_target(
        target,
        data,
        limit=limit,
        chat_template=chat_template,
        drop_bad_rows=drop_bad_rows,
        trust_remote_code=trust_remote_code,
    )
    if output is None:
        for line in found.lines():
            show(line)
        return
    rewards.write_scores(found, output)
    dropped = f" ({found.dropped:,} dropped)" if found.dropped else ""
    show(f"{output}: the scores of {counted(len(found.rows), 'row')}{dropped}")
