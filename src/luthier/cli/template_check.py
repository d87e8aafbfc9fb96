"""Check a chat template against every shape of conversation."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.system.streams import show

REFUSED_EXIT_CODE = 2


def template_check(
    template: Annotated[
        str, typer.Argument(metavar="FILE|NAME|auto", help="A Jinja file, a name, or `auto`: that of --model.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Whose tokenizer is used. Without it: one made of bytes and the template's tokens."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print for programs.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False,
) -> None:
    """Check a chat template: each shape of conversation passes all laws, or is refused with the reason.

    A refusal is no fault where the template's header does not claim the shape (tools, thoughts, a system text): rows of that
    shape cannot be trained with it. The exit code is 2 where a shape is refused that it claims, or any other one.

    Example:
      luthier template check mine.jinja
      luthier template check mine.jinja --model org/name
      luthier template check auto --model org/name --json
    """
    from dataclasses import asdict

    from luthier.cli._shared import print_json, tokenizer_of
    from luthier.data.chat.check import checked_by_name
    from luthier.data.chat.template import read_all

    read_all(template)  # before a tokenizer is fetched and transformers is imported
    outcomes = checked_by_name(template, tokenizer_of(model, trust_remote_code) if model is not None else None)
    faults = [outcome.shape for outcome in outcomes if outcome.claimed and not outcome.passed]
    if as_json:
        print_json([asdict(outcome) for outcome in outcomes])
    else:
        for outcome in outcomes:
            note = outcome.reason if not outcome.passed else ""
            note = f"as {outcome.samples} samples, one an answer" if outcome.samples > 1 else note
            verdict = "pass   " if outcome.passed else "refused"
            show(f"{verdict}  {outcome.shape}" + (f": {note}" if note else ""))
        show(f"{sum(outcome.passed for outcome in outcomes)} of {len(outcomes)} shapes pass")
        if faults:
            show(f"claimed, but refused: {'; '.join(faults)}")
    if faults:
        raise typer.Exit(REFUSED_EXIT_CODE)
