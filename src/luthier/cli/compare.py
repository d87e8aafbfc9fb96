"""Base and tuned model side by side, or several runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli._options import (
    AsJson,
    ChatTemplate,
    DropBadRows,
    Limit,
    MaxNewTokens,
    SeedOfDraws,
    Temperature,
    TrustRemoteCode,
)
from luthier.system.streams import show

if TYPE_CHECKING:
    from luthier.inference.asked import Asked


Judge = Annotated[
    str | None,
    typer.Option(metavar="RUN", help="A reward run that scores the answers; its tokenizer and template are theirs."),
]
Page = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Of several runs: write a page instead of text.")
]


def compare(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|CHECKPOINT|ADAPTER [RUN|CHECKPOINT...]",
            help="What is compared with its base; or several runs, or checkpoints of runs, with each other.",
        ),
    ],
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
    chat_template: ChatTemplate = None,
    drop_bad_rows: DropBadRows = False,
    judge: Judge = None,
    html: Page = None,
    force: Annotated[bool, typer.Option("--force", help="With --html: write over a file that is no page.")] = False,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Base and tuned model side by side, or several runs.

    The base is what the run began from: the tuned model with what was learned switched off, or with the adapter that it
    went on from. Where the file has reference answers, their negative log-likelihood and the exact matches are compared
    with paired 95 % intervals, and "no detectable difference" is a verdict. With --judge the scores of all answers are, too.

    Several runs: what differs in their configuration, data and versions, their curves, the loss on the rows that they held
    out (paired by row where these are the same), and their answers.

    Example:
      luthier compare runs/mine --prompt "Who are you?" --prompt "What can you do?"
      luthier compare runs/mine --prompts held_out.jsonl --json
      luthier compare runs/a runs/b --prompt "Who are you?" --html compared.html
      luthier compare runs/mine --prompts held_out.jsonl --judge runs/judge
    """
    from luthier.inference.asked import Asked

    how: dict[str, Any] = {"system": system, "limit": limit, "max_new_tokens": max_new_tokens, "seed": seed}
    how |= {"temperature": temperature, "chat_template": chat_template, "drop_bad_rows": drop_bad_rows}
    asked = Asked(tuple(prompt or ()), prompts, **how, trust_remote_code=trust_remote_code, judge=judge)
    _check(targets, asked)
    if len(targets) == 1:
        _with_its_base(targets[0], asked, html, as_json)
    else:
        _with_each_other(targets, asked, html, force, as_json)


def _check(targets: list[str], asked: Asked) -> None:
    from luthier.inference.as_typed import check_names

    words = [word for text in asked.prompts for word in ("--prompt", text)]
    check_names("luthier compare", targets, "--prompts", asked.path, others=words)
    if asked.judge is not None:
        check_names(f"luthier compare {shlex.join(targets)} --judge", [asked.judge], models=True)
    asked.refuse_wrong(targets[0] if len(targets) == 1 else "")


def _with_its_base(target: str, asked: Asked, html: Path | None, as_json: bool) -> None:
    from luthier.cli._shared import print_json
    from luthier.errors import UserError

    if html is not None:
        raise UserError("--html", f"is of several runs, {target} is one", "two or more runs", "--json, or leave it out")
    from luthier.inference import comparison
    from luthier.system.console import Screen

    found = comparison.compare_target(target, asked)
    if as_json:
        print_json(found.as_dict())
    else:
        Screen().print(comparison.render(found))


def _with_each_other(targets: list[str], asked: Asked, html: Path | None, force: bool, as_json: bool) -> None:
    from luthier.cli._shared import print_json
    from luthier.reporting.pages import check_place

    if html is not None:
        check_place(html, [Path(name) for name in (*targets, *([asked.path] if asked.path is not None else []))], force)
    from luthier.inference.side_by_side import compare_runs
    from luthier.reporting.run.compared import render_text, write_compared
    from luthier.system.console import Screen

    found = compare_runs(targets, asked)
    if html is not None:
        write_compared(found, html)
    if as_json:
        print_json(found.as_dict())
    elif html is not None:
        show(f"the comparison is in {html}")
    else:
        Screen().print(render_text(found))
