"""Look at the machine, and prove how a model may be trained on it."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli._options import AsJson, TrustRemoteCode
from luthier.system.streams import show


def doctor(
    target: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL|CONFIG.yaml]",
            show_default=False,
            help="Also examine this model, or that of a configuration.",
        ),
    ] = "",
    json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Look at the machine, and prove how a model may be trained on it.

    Prints machine, versions, device and dtype with the reason. For a model, a small random twin of it shows whether
    rows may lie one after the other without padding, and that micro-batches and layout do not change the gradient.
    Ends with exit code 3 where a check fails.

    Example:
      luthier doctor
      luthier doctor org/name
      luthier doctor mine.yaml --json
    """
    from luthier import config
    from luthier.cli._shared import is_config, print_json
    from luthier.inference.as_typed import check_names

    checked = config.load(target) if is_config(target) and not target.endswith(".gguf") else None
    if target and checked is None:
        check_names("luthier doctor", [target], models=True)
    from luthier.inspecting.doctor import as_text, examine

    found = examine(checked.model.path if checked else target or None, checked, trust_remote_code)
    if json:
        print_json(found)
    else:
        show(as_text(found))
    if not all(check["passed"] for check in found.get("checks", [])):
        raise typer.Exit(3)
