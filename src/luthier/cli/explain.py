"""Say what a key of the configuration or an error means."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli._options import AsJson


def explain(
    key: Annotated[
        str,
        typer.Argument(
            metavar="[KEY|ERROR]",
            show_default=False,
            help="A key, an exit code or words of an error. Without it: a list of all.",
        ),
    ] = "",
    json: AsJson = False,
) -> None:
    """Say what a key of the configuration or an error means: type, default, meaning, and where it stands.

    Other tools' names are answered with ours.

    Example:
      luthier explain
      luthier explain learning_rate
      luthier explain data.on_long_row
      luthier explain lora_rank
      luthier explain "exit 4"
    """
    from luthier.cli._shared import print_json
    from luthier.config import error_guide, keys

    if json and (found := keys.find(key) if key else keys.keys()):
        print_json([known.as_dict() for known in found])
        return
    print(keys.overview() + "\n\n" + error_guide.overview() if not key else keys.explain(key))
