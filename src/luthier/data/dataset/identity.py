"""What decides the encoded rows: where all of it is as it was, those of before are taken."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from luthier import component, formats
from luthier.component import ComponentConfig
from luthier.config import RunConfig
from luthier.data.dataset.workers import Encoding
from luthier.data.recognise import Part
from luthier.objectives import Objective

READ_WITH = ("jinja2", "tokenizers", "transformers", "sentencepiece", "pyarrow", "datasets")
"""Packages whose versions may decide the result."""


def identity(config: RunConfig, parts: list[Part], encoding: Encoding) -> dict[str, Any]:
    """All that decides the result: the content of the files, template, tokenizer, options, and the code itself."""
    data, renderer, objective = config.data, encoding.renderer, encoding.objective
    files = [
        (part.purpose, part.source.name, str(part.source.file.format), part.source.fingerprint()) for part in parts
    ]
    return {
        "files": files,
        "options": [
            data.eval if isinstance(data.eval, float) else None,
            data.on_bad_row,
            data.on_long_row,
            [data.max_row_bytes, data.max_row_messages, parts[0].source.limits.settable],  # the last one is in errors
            data.system,
            encoding.limit if objective.pieces is None else None,
        ],
        "objective": config.objective.model_dump(
            mode="json", include=None if objective.encoded_by is None else {"kind", *objective.encoded_by}
        ),
        "template": renderer.template and [renderer.template.fingerprint, renderer.template.from_file],
        "tokenizer": tokenizer_fingerprint(renderer.tokenizer),
        "stop_ids": sorted(renderer.stop_ids),
        "code": _code_fingerprint(objective, [part.source.file.format for part in parts]),
    }


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of what decides a tokenizer's ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = backend.to_str()
    else:  # it is what its class makes of its files and options
        cls, model = type(tokenizer), getattr(tokenizer, "vocab_file", None)
        content = hashlib.sha256(Path(model).read_bytes()).hexdigest() if model else None
        options = {
            key: str(value) for key, value in getattr(tokenizer, "init_kwargs", {}).items() if key != "name_or_path"
        }
        added = sorted((index, repr(token)) for index, token in tokenizer.added_tokens_decoder.items())
        state = json.dumps([sorted(tokenizer.get_vocab().items()), content, options, added, inspect.getsource(cls)])
    named = json.dumps([type(tokenizer).__name__, tokenizer.special_tokens_map], default=str, sort_keys=True)
    return hashlib.sha256((state + named).encode()).hexdigest()


def _code_fingerprint(objective: Objective, given: Sequence[str | ComponentConfig]) -> str:
    """A hash of the source code that encodes: a changed line makes the cache anew, and nobody has to remember a version
    number.
    """
    digest = hashlib.sha256(json.dumps({name: version(name) for name in READ_WITH}).encode())
    for file in _files_that_encode(objective, given):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _files_that_encode(objective: Objective, given: Sequence[str | ComponentConfig]) -> list[Path]:
    """Also those of the classes that an objective is built on, and of the terms of a sum."""
    here = Path(__file__).parent.parent
    files = [*sorted(Path(formats.__file__).parent.glob("*.py")), *sorted(here.rglob("*.py"))]
    files += [here.parent / name for name in ("errors.py", "randomness.py", "system/strict_json.py", "types.py")]
    kinds = [one.kind for one in given if isinstance(one, ComponentConfig)]
    classes = [component.load("formats", kind) for kind in kinds]
    for one in (objective, *getattr(objective, "terms", {}).values()):
        classes += [cls for cls in type(one).__mro__ if cls.__module__ not in ("abc", "builtins", "typing")]
    return [*files, *(Path(name) for cls in classes if (name := inspect.getsourcefile(cls)))]
