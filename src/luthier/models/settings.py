"""A model's settings (config.json and what lies beside it) as they were written by whoever made it: nothing in them may name code to
be fetched or run, or a file outside of the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.errors import UserError, excerpt
from luthier.models import architectures
from luthier.models.files import refuse_stub

_ATTENTION_KEYS = ("_attn_implementation_internal", "_attn_implementation", "attn_implementation")
_KNOWN_ATTENTION = frozenset({None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"})


def read_json(file: Path, name: str) -> dict[str, Any]:
    """A JSON object from a file of a model."""
    refuse_stub(file, name)
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            str(file), f"cannot be read as JSON: {error}", "a JSON object", "download the model again"
        ) from None
    if not isinstance(tree, dict):
        raise UserError(str(file), f"holds {excerpt(tree)}", "a JSON object", "download the model again")
    return tree


def check_config(folder: Path, name: str, trust_remote_code: bool) -> None:
    """config.json: there, JSON, of a known type, and asking for no code."""
    file = folder / "config.json"
    if not file.is_file():
        found = "no config.json" if any(folder.iterdir()) else "nothing: it is empty"
        raise UserError(
            name,
            f"the folder {folder} holds {found}",
            "config.json, safetensors and a tokenizer",
            "name the folder that save_pretrained wrote, or download the model again",
        )
    config = read_json(file, name)
    if not isinstance(config.get("model_type"), str) and "auto_map" not in config:
        raise UserError(
            str(file),
            "has no model_type",
            'for example "model_type": "llama"',
            "copy config.json from the model's page",
        )
    if config.get("model_type") not in architectures.model_types():
        refuse_code(config, file, name, trust_remote_code)
    for path, section in _sections(config, ""):
        for key in _ATTENTION_KEYS:
            if key in section and (key == _ATTENTION_KEYS[0] or not _plain_attention(section[key])):
                raise UserError(
                    f"{file}: {path}{key}",
                    f"{excerpt(section[key])} names an implementation of attention, which may be code of a hub",
                    "a config without this key",
                    f"remove {key} from {file}",
                )


def _plain_attention(value: Any) -> bool:
    values = value.values() if isinstance(value, dict) else [value]
    return all(isinstance(item, str | None) and item in _KNOWN_ATTENTION for item in values)


def _sections(tree: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, tree
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _sections(value, f"{path}{key}.")


def refuse_code(config: dict[str, Any], file: Path, name: str, trust_remote_code: bool) -> None:
    if "auto_map" in config and not trust_remote_code:
        raise UserError(
            str(file),
            "auto_map: this model wants to run Python code that comes with it",
            "a model that transformers knows itself",
            f"read the .py files of {name}; if you trust them: luthier ... --trust-remote-code",
        )
