"""Print a chat template, and what it writes."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.system.streams import hand_on


def template_show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A template of `luthier template list`, or a file.")],
) -> None:
    """Print a chat template as it is: its header, then its Jinja. Redirected to a file it is the beginning of your own.

    Example:
      luthier template show chatml
      luthier template show alpaca@stanford > mine.jinja
    """
    from luthier.data.chat.template import read_template

    hand_on(read_template(name, "luthier template show {}")[0], end="")
