"""Show where two chat templates part on one row, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from luthier.system.streams import show

if TYPE_CHECKING:
    from rich.text import Text

    from luthier.data.chat.difference import Stretch


def template_diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A name, a Jinja file, or `auto`: that of --model.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    row: Annotated[
        str | None,
        typer.Option(
            "--row", metavar="FILE:LINE", help="The row, as in `luthier data`. Without it: a small conversation."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Whose tokenizer is used. Without it: one of words.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print for programs.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False,
) -> None:
    """Show where two chat templates part on one row, token by token.

    What only A writes is red, or [-so-]; what only B writes is green, or {+so+}; what is trained is bold, or <<so>>; ≠x: x is learned
    where another token stands, the one that follows. A row that is trained one answer at a time has a line for each.

    Example:
      luthier template diff alpaca@stanford alpaca@llamafactory
      luthier template diff auto chatml --model org/name --row train.jsonl:17
    """
    from dataclasses import asdict

    from luthier.cli._shared import print_json, tokenizer_of
    from luthier.data.chat.difference import default_conversation, difference, holdable, row_at
    from luthier.data.chat.template import read_all
    from luthier.system.console import Screen
    from luthier.system.words import counted

    read_all(first, second)  # before a tokenizer is fetched and transformers is imported
    conversation = row_at(row) if row is not None else default_conversation()
    tokenizer = tokenizer_of(model, trust_remote_code) if model is not None else None
    conversation, left_out = holdable(first, second, conversation, tokenizer)
    stretches = difference(first, second, conversation, tokenizer)
    counts = {side: sum(len(one.ids) for one in stretches if one.side == side) for side in ("both", "first", "second")}
    same = not counts["first"] and not counts["second"]
    if as_json:
        print_json(
            {"same": same, "tokens": counts, "not_compared": left_out, "stretches": [asdict(one) for one in stretches]}
        )
        return
    console = Screen(highlight=False, soft_wrap=True)
    console.print(as_text(stretches, console.is_terminal and not console.no_color))
    for note in left_out:
        show(note)
    parted = f"{counted(counts['both'], 'token')} in both, {counts['first']} only in {first}, {counts['second']} only in {second}"
    equal = f"{first} and {second} are equal on {row or 'the small conversation'}: the same tokens, trained alike"
    show(equal if same else parted)


def as_text(stretches: list[Stretch], colour: bool) -> Text:
    """The stretches one after the other, marked by colour or by brackets. Line ends are written as ↵."""
    from rich.text import Text

    from luthier.inspecting.data.token_view import INSTEAD

    styles = {"both": "", "first": "red", "second": "green"}
    brackets = {"both": ("", ""), "first": ("[-", "-]"), "second": ("{+", "+}")}
    out, sample = Text(), 0
    for one in stretches:
        out.append("\n\n" if one.sample != sample else "")
        sample = one.sample
        learned = INSTEAD + one.instead if one.instead is not None else ""
        words = one.text.replace("\n", "↵\n")
        if colour:
            out.append(learned, style=f"bold {styles[one.side]}".strip())
            out.append(words, style=f"{'bold' if one.trained else ''} {styles[one.side]}".strip())
        else:
            left, right = brackets[one.side]
            learned = f"<<{learned}>>" if learned else ""
            out.append(f"{left}{learned}<<{words}>>{right}" if one.trained else f"{left}{learned}{words}{right}")
    return out
