"""List the chat templates that come with luthier."""

from __future__ import annotations

from typing import Annotated

import typer


def template_list(as_json: Annotated[bool, typer.Option("--json", help="Print for programs.")] = False) -> None:
    """List the chat templates that come with luthier: how they take a system text, tools and thoughts, and where they are from.

    A name without a version is the version marked with *.

    Example:
      luthier template list
      luthier train mine.yaml chat_template=alpaca@stanford
    """
    from dataclasses import asdict

    from luthier.cli._shared import print_json
    from luthier.data.template_library import library

    facts = [one.facts for one in library().values()]
    if as_json:
        print_json([{"chat_template": one.full_name, **asdict(one)} for one in facts])
        return
    width = max(len(one.full_name) for one in facts) + 1
    print(f"{'name':<{width}}  {'system':<7}  {'tools':<5}  {'thoughts':<8}  source")
    for one in facts:
        name = one.full_name + "*" * one.default
        tools = "yes" if one.tools else "no"
        print(f"{name:<{width}}  {one.system:<7}  {tools:<5}  {one.thinking:<8}  {one.source}")
