"""Measure a run or a model on rows: those that the run held out, or a file's."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli._options import (
    MOST_ROWS,
    AsJson,
    ChatTemplate,
    DropBadRows,
    Limit,
    MaxNewTokens,
    RunOrModel,
    SeedOfDraws,
    TrustRemoteCode,
)


def eval(
    target: RunOrModel,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Rows in any format of training data; or '{path: FILE, format: ...}'. "
            "Default: the rows that the run itself held out.",
            show_default=False,
        ),
    ] = None,
    limit: Limit = None,
    generate: Annotated[
        int,
        typer.Option(
            min=0, max=MOST_ROWS, help="For how many rows the model answers, to count exact matches; 0 for none."
        ),
    ] = 100,
    max_new_tokens: MaxNewTokens = 512,
    seed: SeedOfDraws = 0,
    chat_template: ChatTemplate = None,
    drop_bad_rows: DropBadRows = False,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure a run or a model on the rows that the run held out, or on a file.

    NLL, perplexity, token accuracy and exact match of generated answers, each with a 95 % interval over rows. Of a run that learned
    from pairs or judged answers also its objective's loss, accuracy and margin. Of a reward model: how often the better answer of a
    pair gets the higher score, also by which of the two is longer, and by how much.

    Example:
      luthier eval runs/mine
      luthier eval runs/mine --data held_out.jsonl --limit 100
      luthier eval org/name --data held_out.jsonl --generate 0 --json
    """
    from luthier.cli._shared import print_json
    from luthier.inference.as_typed import check_names

    check_names("luthier eval", [target], "--data", data, models=True)
    from luthier.inference import measures
    from luthier.system.console import Screen

    found = measures.measure_target(
        target,
        data,
        answered=generate,
        max_new_tokens=max_new_tokens,
        limit=limit,
        chat_template=chat_template,
        seed=seed,
        drop_bad_rows=drop_bad_rows,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        print_json(found.as_dict())
    else:
        Screen().print(measures.render(found))
