"""Say what a key of the configuration, an error or a law means."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli._options import AsJson
from luthier.system.streams import show


def explain(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY|ERROR|LAW]",
            show_default=False,
            help="A key, an exit code, words of an error, or a law of encoded rows. Without it: a list of all.",
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Say what a key of the configuration, an error or a law means: type, default, meaning, and where it stands.

    Other tools' names are answered with ours.

    Example:
      luthier explain
      luthier explain learning_rate
      luthier explain data.on_long_row
      luthier explain lora_rank
      luthier explain exit 4
      luthier explain marks change nothing
    """
    from luthier.cli._shared import print_json
    from luthier.config import error_guide, keys
    from luthier.data.chat import laws

    key = " ".join(words or [])
    if json and (found := keys.find(key) if key else keys.keys()):
        print_json([known.as_dict() for known in found])
        return
    if key:
        show(keys.explain(key, laws.explained()))
    else:
        show("\n\n".join([keys.overview(), error_guide.overview(), laws.overview()]))
