"""Base and tuned model side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli._options import (
    AsJson,
    DropBadRows,
    Limit,
    MaxNewTokens,
    RunOrAdapter,
    SeedOfDraws,
    Temperature,
    TrustRemoteCode,
)


def compare(
    target: RunOrAdapter,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A request; may be given several times.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A text file (a request a line), or rows in any format of training data, "
            "whose last answers are the references; or '{path: FILE, format: ...}'.",
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The system's text, for requests; default: that of the training data."),
    ] = None,
    limit: Limit = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    seed: SeedOfDraws = 0,
    drop_bad_rows: DropBadRows = False,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Base and tuned model side by side.

    The base is what the run began from: the tuned model with what was learned switched off, or with the adapter that it
    went on from. Where the file has reference answers, their negative log-likelihood and the exact matches are compared
    with paired 95 % intervals, and "no detectable difference" is a verdict.

    Example:
      luthier compare runs/mine --prompt "Who are you?" --prompt "What can you do?"
      luthier compare runs/mine --prompts held_out.jsonl --json
    """
    from luthier.cli._shared import print_json
    from luthier.inference import comparison
    from luthier.system.console import Screen

    found = comparison.compare_target(
        target,
        prompt or [],
        prompts,
        system=system,
        limit=limit,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        drop_bad_rows=drop_bad_rows,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        print_json(found.as_dict())
    else:
        Screen().print(comparison.render(found))
