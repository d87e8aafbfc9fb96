"""Talk to a run, an adapter or a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli._options import ChatTemplate, MaxNewTokens, RunOrModel, SeedOfDraws, Temperature, TopP, TrustRemoteCode
from luthier.system.streams import complain, hand_on

if TYPE_CHECKING:
    from luthier.inference.chat import Chat

HELP = "/reset forgets the conversation, /quit ends it"


def chat(
    target: RunOrModel,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="One request; prints its answer and ends.")] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The system's text; default: that of the training data.")
    ] = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    max_new_tokens: MaxNewTokens = 512,
    seed: SeedOfDraws = 0,
    chat_template: ChatTemplate = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk to a run, an adapter or a model.

    Answers appear as they are made. Requests come from the keyboard or, one a line, from a pipe;
    /reset forgets the conversation, /quit ends it.

    Example:
      luthier chat runs/mine
      luthier chat runs/mine --prompt "Who are you?"
      luthier chat runs/mine/checkpoints/step-000100
      luthier chat org/name --system "Answer in one sentence." --temperature 0.7 --top-p 0.9
    """
    from luthier.inference.as_typed import check_names

    check_names("luthier chat", [target], models=True)
    from luthier.inference.chat import Chat, Settings
    from luthier.inference.opened import open_model

    opened = open_model(target, chat_template=chat_template, trust_remote_code=trust_remote_code)
    talk = Chat(opened, system, Settings(temperature, top_p, max_new_tokens, seed))
    if prompt is not None:
        _answer(talk, prompt)
        return
    if sys.stdin.isatty():
        complain(f"{target}; {HELP}")
    for line in _requests():
        if line == "/quit":
            break
        if line == "/reset":
            talk.reset()
            complain("(forgotten)")
        else:
            _answer_or_say_why(talk, line)


def _requests() -> Iterator[str]:
    """Lines with text, from the keyboard with a prompt sign, or from a pipe without."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    import readline  # noqa: F401 - gives input() its line editing

    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            hand_on("")
            return
        if line:
            yield line


def _answer(talk: Chat, text: str) -> None:
    talk.say(text, on_text=lambda piece: hand_on(piece, end=""))
    hand_on("")
    if talk.warning:
        complain(f"({talk.warning})")


def _answer_or_say_why(talk: Chat, text: str) -> None:
    """A request for which there is no room ends nothing."""
    from luthier.errors import UserError

    try:
        _answer(talk, text)
    except UserError as error:
        complain(error)
