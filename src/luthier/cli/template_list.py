"""List the chat templates that come with luthier."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import Annotated

import typer

from luthier.system.streams import show

NARROWEST = 24
"""Columns that a source gets on the narrowest terminal."""
LEGEND = """
name      * marks the version that the name alone stands for
system    own: a system text has a turn of its own; folded: it stands in the first request; refused: such rows cannot be used
tools     whether tools on offer, calls and results can be shown
thoughts  kept: shown in every answer; stripped: not in answers before the last request; no: not shown
luthier template show NAME prints one, with its tokens"""


def template_list(as_json: Annotated[bool, typer.Option("--json", help="Print for programs.")] = False) -> None:
    """List the chat templates that come with luthier: how they take a system text, tools and thoughts, and where they are from.

    On a terminal the lines are wrapped to its width; a file or a pipe gets a line each.

    Example:
      luthier template list
      luthier train mine.yaml chat_template=alpaca@stanford
    """
    from dataclasses import asdict

    from luthier.cli._shared import print_json
    from luthier.data.chat.library import library

    facts = [one.facts for one in library().values()]
    if as_json:
        print_json([{"chat_template": one.full_name, **asdict(one)} for one in facts])
        return
    width = max(len(one.full_name) for one in facts) + 1
    head = f"{'name':<{width}}  {'system':<7}  {'tools':<5}  {'thoughts':<8}  "
    room = max(shutil.get_terminal_size().columns - len(head), NARROWEST) if sys.stdout.isatty() else None
    show(f"{head}source")
    for one in facts:
        name = one.full_name + "*" * one.default
        tools = "yes" if one.tools else "no"
        first, *more = textwrap.wrap(one.source, room) if room else [one.source]
        show(f"{name:<{width}}  {one.system:<7}  {tools:<5}  {one.thinking:<8}  {first}")
        for line in more:
            show(" " * len(head) + line)
    show(LEGEND)
