"""An answer to another tool's key: what is to be written in its place, in a file and on the command line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from luthier import component
from luthier.component import Config
from luthier.config.components import COMPONENTS
from luthier.config.documents import short_float, to_line
from luthier.config.sections import DataConfig, ModelConfig, RunConfig, TrainingConfig

PLAIN = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:=@%+,[]")
"""Characters that a word of the command line may have without quotes."""


@dataclass(frozen=True)
class Answer:
    """What is to be written in the place of a key."""

    sets: Mapping[str, Any] = field(default_factory=dict)
    """our dotted keys and their values"""
    says: str = ""
    """what is to be known beside; where nothing is set, what to do instead"""
    value: str = ""
    """of a key that is ours, and has a value that is another tool's"""
    stops: bool = False
    """whether there is nothing here that does the same, so that no whole configuration can be made"""

    def words(self, on_the_command_line: bool = False) -> str:
        """`write tuning.r: 8`, or `write r=8`, and what is to be known."""
        if not self.sets:
            return self.says
        if on_the_command_line:
            written = self.as_words()
        else:
            written = " and ".join(
                f"{key.removesuffix('.kind')}: {as_value(value)}" for key, value in self.sets.items()
            )
        return f"write {written}" + (f" ({self.says})" if self.says else "")

    def as_words(self) -> str:
        """What is set, as a shell takes it."""
        return " ".join(as_word(key, value) for key, value in self.sets.items())


def as_value(value: Any) -> str:
    """A value as an override has it, without blanks that a shell would split at, where it has none itself."""
    if isinstance(value, (list, tuple)) and not any(isinstance(item, (Mapping, list, tuple)) for item in value):
        return f"[{','.join(map(as_value, value))}]"
    if isinstance(value, (Mapping, list, tuple)):
        return to_line(value)
    return short_float(value) if isinstance(value, float) else to_line([value])[1:-1]


def as_word(dotted: str, value: Any) -> str:
    """`r=8`, as a shell takes it."""
    text = f"{short_name(dotted)}={as_value(value)}"
    return text if not set(text) - PLAIN else shlex.quote(text)


def short_name(dotted: str) -> str:
    """What is enough of a key's name on the command line: the last word where one section alone has it."""
    section, _, last = dotted.rpartition(".")
    if last == "kind" or dotted == "model.path":
        return short_name(section)
    alone = [name for name, keys in _sections().items() if last in keys] == [section]
    return last if alone and dotted != "data.train" else dotted


@cache
def _sections() -> dict[str, set[str]]:
    """The keys of each section, with those of all kinds of a component."""
    schemas: dict[str, type[Config]] = {
        "": RunConfig,
        "model": ModelConfig,
        "data": DataConfig,
        "training": TrainingConfig,
    }
    out = {name: set(schema.model_fields) for name, schema in schemas.items()}
    for path, family in COMPONENTS.items():
        if path[:2] != ("data", "train"):
            out[".".join(path)] = keys_of_family(family)
    return out


def keys_of_family(family: str) -> set[str]:
    """The keys of all kinds of a component."""
    return {key for kind in component.listing(family) for key in component.load(family, kind).Config.model_fields}
