"""What several commands need."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.system.streams import show


def split_config_and_overrides(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The configuration file, which stands first if there is one, and the `key=value` overrides.

    Raises:
        UserError: a word that is neither.
    """
    rest = list(arguments)
    path = None
    if rest and is_config(rest[0]):
        path = Path(rest.pop(0))
    for word in rest:
        if "=" not in word:
            where = "one configuration file, before the overrides" if is_config(word) else "CONFIG.yaml, then key=value"
            raise UserError(
                "command line",
                f"{word!r} is neither a configuration file nor key=value",
                where,
                "luthier train mine.yaml learning_rate=1e-4",
            )
    return path, rest


def is_config(word: str) -> bool:
    """Whether a word of the command line names a YAML file."""
    return word.endswith((".yaml", ".yml")) or Path(word).is_file()


def print_json(value: Any) -> None:
    """Prints for programs: indented JSON, text as it is, no colours."""
    show(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def tokenizer_of(model: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model, from wherever `model.path` may point to. Raises as `resolve` does."""
    from luthier.models.load import load_tokenizer
    from luthier.models.sources.resolve import resolve

    source = resolve(model, trust_remote_code=trust_remote_code)
    return load_tokenizer(source.adapter or source.folder, trust_remote_code)
