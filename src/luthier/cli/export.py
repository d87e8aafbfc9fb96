"""Write a run as a folder that other tools load."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli._options import AsJson, MergedInto, NewFolder, RunOrAdapter, TrustRemoteCode, Unproven, WrittenDtype
from luthier.system.streams import complain, show


def export(
    target: RunOrAdapter,
    output: NewFolder,
    to: Annotated[str, typer.Option(metavar="KIND", help="merged: a plain model; adapter: a PEFT folder.")] = "merged",
    dtype: WrittenDtype = None,
    base: MergedInto = "as trained",
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
    unproven: Unproven = False,
) -> None:
    """Write a run as a folder that other tools load.

    The folder is read back and compared with the run before it gets its name; the drift is printed. Where llama.cpp is
    installed (luthier's extra llama-cpp), its prompt ids of 200 conversations must be those of training.

    Example:
      luthier export runs/mine --to merged --output mine-merged
      luthier export runs/mine --to adapter --output mine-adapter
    """
    from dataclasses import asdict

    from luthier.cli._shared import print_json
    from luthier.inference.as_typed import check_export, check_names

    check_export(target, to, output)
    check_names("luthier export", [target], others=["--to", to, "--output", str(output)])
    from luthier.inference.verified_export import export as write

    settings = {} if dtype is None else {"dtype": dtype}
    done = write(
        target,
        to,
        output,
        settings=settings,
        base=base,
        unproven=unproven,
        trust_remote_code=trust_remote_code,
        say=complain,
    )
    if as_json:
        print_json(asdict(done))
        return
    show(done.as_text())
