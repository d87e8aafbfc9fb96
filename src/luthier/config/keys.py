"""What is known of every key of the configuration: `luthier explain`, docs/config.md and the JSON Schema read it here.

The meaning of a key is the docstring under it; its type and default are those that pydantic checks.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic_core import PydanticUndefined

from luthier import component
from luthier.component import ComponentConfig, Config
from luthier.config import error_guide
from luthier.config.components import AUTO, COMPONENTS, DEFAULT_KINDS
from luthier.config.documents import short_float
from luthier.config.foreign_keys import generic
from luthier.config.other_tools import NO_SUCH_OBJECTIVE, OBJECTIVES_TO_COME, RENAMED_VALUES
from luthier.config.reading import FILLED_IN
from luthier.config.sections import DataConfig, DataFile, ModelConfig, RunConfig, TrainingConfig
from luthier.errors import UserError

SECTIONS: dict[str, type[Config]] = {
    "": RunConfig,
    "model": ModelConfig,
    "data": DataConfig,
    "data.train": DataFile,
    "training": TrainingConfig,
}
BOUNDS = {Gt: ("above", "gt"), Ge: ("at least", "ge"), Lt: ("below", "lt"), Le: ("at most", "le")}
NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}

SHORTHANDS = {
    ("model",): "text (a path), or a map",
    ("data",): "text (a file), a list of files, or a map",
    ("data", "train"): "one file or a list of files, each text (a path) or a map",
    ("data", "eval"): "number above 0, below 1; or one file or a list of files, as data.train; or null",
    ("report_to",): "{}, or one name",
}
"""Keys that take more than their type says, because bare strings are widened before they are checked."""


@dataclass(frozen=True)
class Key:
    """One key: where it stands, what it takes, what it means."""

    section: str
    """`training`, or empty at the top"""
    name: str
    kind: str
    """the component whose key it is (`lora`), or empty"""
    takes: str
    default: str
    required: bool
    meaning: str

    def as_dict(self) -> dict[str, Any]:
        return {"key": self.dotted, **asdict(self)}

    @property
    def values(self) -> list[str]:
        """The names that it takes."""
        return re.findall(r"[\w-]+", self.takes.partition("one of ")[2].partition(";")[0].partition(", or ")[0])

    @property
    def dotted(self) -> str:
        return f"{self.section}.{self.name}" if self.section else self.name


def keys() -> list[Key]:
    """Every key, in the order in which they are declared; those of components after their section's."""
    found = []
    for section, schema in SECTIONS.items():
        found += list(_keys_of(section, schema, ""))
    for path, family in COMPONENTS.items():
        for kind in component.listing(family):
            found += list(_keys_of(".".join(path), component.load(family, kind).Config, kind))
    return found


def _keys_of(section: str, schema: type[Config], kind: str) -> Iterator[Key]:
    hints = typing.get_type_hints(schema, include_extras=True)
    for name, field in schema.model_fields.items():
        if kind and name == "kind":
            continue
        by_type = takes(hints[name])
        name = field.alias or name
        path = (*section.split("."), name) if section else (name,)
        required = field.is_required() and not (section == "" and name in FILLED_IN)
        yield Key(
            section,
            name,
            kind,
            _takes_shorthand(path, by_type),
            default_of(section, name, field),
            required,
            " ".join((field.description or "").split()),
        )


def _takes_shorthand(path: tuple[str, ...], by_type: str) -> str:
    if path not in COMPONENTS:
        return SHORTHANDS.get(path, "{}").format(by_type)
    kinds = [*AUTO.get(path[-1], "").split(), *component.listing(COMPONENTS[path])]
    return "one of " + ", ".join(kinds) + ", or a map with a kind and the keys of its own"


def default_of(section: str, name: str, field: Any) -> str:
    """The default as YAML writes it; of a key that methods have defaults for, each method's."""
    if section == "" and name in FILLED_IN:
        return FILLED_IN[name]
    if (*section.split("."), name) in COMPONENTS and name in DEFAULT_KINDS:
        return DEFAULT_KINDS[name]
    if section == "training" and (said := _by_method(name)):
        return said
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    return "" if value is PydanticUndefined or isinstance(value, Config) else as_yaml(value)


def _by_method(name: str) -> str:
    """What tuning methods and objectives say of a key of `training`: `2e-5 (freeze, full), 2e-4 (lora)`, or one for all."""
    kinds: dict[str, list[str]] = {}
    for family in ("tuning", "objectives"):
        for kind in component.listing(family):
            cls = component.load(family, kind)
            if getattr(cls, "is_sum", False):  # its terms' own
                continue
            if (value := cls.defaults.get(name)) is not None:
                kinds.setdefault(as_yaml(value), []).append(kind)
            if (own := getattr(cls, "defaults_of_own_weights", {}).get(name)) is not None:
                kinds.setdefault(as_yaml(own), []).append(f"{kind} without an adapter")
    return ", ".join(kinds) if len(kinds) < 2 else ", ".join(f"{v} ({', '.join(held)})" for v, held in kinds.items())


def as_yaml(value: Any) -> str:
    """A scalar or an empty list as YAML writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return short_float(value)
    return "[" + ", ".join(map(as_yaml, value)) + "]" if isinstance(value, (tuple, list)) else str(value)


def takes(hint: Any) -> str:
    """What a type takes, in words: `whole number, at least 1; or null`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        return _bounded(takes(arguments[0]), arguments[1:])
    if origin in (Union, types.UnionType):
        return "; or ".join(dict.fromkeys(takes(part) for part in arguments))
    if origin is Literal:
        return ("" if len(arguments) == 1 else "one of ") + ", ".join(as_yaml(value) for value in arguments)
    if origin is dict:
        return f"map of {_inner(arguments[0])} to {_inner(arguments[1])}"
    if origin is tuple:
        return f"list of {_inner(arguments[0])}"
    if isinstance(hint, type) and issubclass(hint, ComponentConfig):
        return "a component"
    if isinstance(hint, type) and issubclass(hint, Config):
        return "map"
    return NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _inner(hint: Any) -> str:
    """What a part takes, without what would be read as said of the whole."""
    return takes(hint).replace(", not empty", "")


def _bounded(text: str, metadata: tuple[Any, ...]) -> str:
    parts = [item for entry in metadata for item in getattr(entry, "metadata", [entry])]
    bounds = [
        f"{BOUNDS[type(part)][0]} {as_yaml(getattr(part, BOUNDS[type(part)][1]))}"
        for part in parts
        if type(part) in BOUNDS
    ]
    if any(isinstance(part, MinLen) for part in parts):
        bounds.append("not empty")
    return ", ".join([text, *bounds])


def find(name: str) -> list[Key]:
    """The keys that a dotted name, a last word or a section means; empty where there is none."""
    all_keys = keys()
    exact = [key for key in all_keys if key.dotted == name]
    by_word = [key for key in all_keys if key.name == name]
    members = [key for key in all_keys if key.section == name and name]
    return (exact or by_word) + (members if exact or not by_word else [])


def explain(word: str, others: Mapping[str, str] | None = None) -> str:
    """What a key, another tool's key, an error or a named value means, as a screen of text.

    Args:
        others: names of what is no part of a configuration, in words or with underscores, and what is said of each.

    Raises:
        UserError: it is none of them; names the nearest key.
    """
    if found := find(word):
        return "\n\n".join(_paragraph(key) for key in found)
    if message := generic(word):
        return f"{word} is another tool's name: {message}"
    if word in OBJECTIVES_TO_COME:
        return f"{word} is another tool's objective: {NO_SUCH_OBJECTIVE}"
    for key, values in RENAMED_VALUES.items():
        if word in values:
            return f"{word} is another tool's name: write {key.removesuffix('.kind')}: {values[word]}"
    if message := (others or {}).get(" ".join(word.lower().replace("_", " ").split()).removeprefix("law ")):
        return message
    if message := error_guide.find(word):
        return message
    if holders := [key for key in keys() if word in key.values]:
        return f"{word} is a value of {holders[0].dotted}\n\n" + "\n\n".join(map(_paragraph, holders))
    known = sorted({name for key in keys() for name in (key.name, key.dotted)} | {*error_guide.ERRORS, *(others or {})})
    raise UserError(
        f"luthier explain {word}",
        "no key and no error of this name",
        "luthier explain lists all",
        _meant(word, known),
    )


def _meant(word: str, known: list[str]) -> str:
    """The known names that a word may stand for: `batch` is no misspelt `path`, but a part of `global_batch_size`."""
    holding = [name for name in known if len(word) > 2 and word in re.split(r"[._ ]", name)]
    if not holding:
        return component.did_you_mean(word, known)
    return f"did you mean {' or '.join(json.dumps(name) for name in sorted(holding, key=len)[:3])}?"


def _paragraph(key: Key) -> str:
    title = key.dotted + (f" (kind: {key.kind})" if key.kind else "")
    default = "none; it is required" if key.required else key.default or "that of each of its keys"
    schema = component.load(_family(key.section), key.kind).Config if key.kind else SECTIONS[key.section]
    source = f"{schema.__module__}, class {schema.__qualname__}"
    family = COMPONENTS.get(tuple(key.dotted.split("."))) if not key.kind else None
    kinds = [f"\n    {kind}: {component.about(family, kind)}" for kind in component.listing(family)] if family else []
    return f"{title}\n  {key.meaning}\n  takes: {key.takes}{''.join(kinds)}\n  default: {default}\n  source: {source}"


def _family(section: str) -> str:
    return COMPONENTS[tuple(section.split("."))]


def overview() -> str:
    """All keys, a line each."""
    all_keys = keys()
    width = max(len(key.dotted) for key in all_keys) + 2
    return "\n".join(f"{key.dotted:<{width}}{_first_sentence(key.meaning)}" for key in all_keys)


def _first_sentence(text: str) -> str:
    end = text.find(". ")
    return text if end < 0 else text[: end + 1]


def markdown() -> str:
    """docs/config.md: every key in tables, section by section."""
    lines = [
        "# The configuration",
        "",
        "Generated from docstrings (`src/luthier/config/sections.py` and the components) by `make docs`; do not edit.",
        "",
        "The file is YAML 1.2. Unknown and duplicate keys are errors. A bare string is a kind (`tuning: lora` is",
        "`{kind: lora}`) or a path (`model: org/name`, `data: train.jsonl`). On the command line the last word is",
        "enough where it is unique: `luthier train mine.yaml learning_rate=1e-4`. There `model=NAME` and `data=FILE` set",
        "`model.path` and `data.train` and keep the other keys of the file's section; a map (`model={path: NAME}`) and",
        "another kind (`tuning=full` over a `lora`) replace the section, and what is left out by it is said.",
        "`luthier explain KEY` prints the same text, and `luthier config schema` prints a JSON Schema for editors.",
    ]
    kinds = [(".".join(path), kind) for path, family in COMPONENTS.items() for kind in component.listing(family)]
    groups: dict[tuple[str, str], list[Key]] = {
        place: [] for place in [*((section, "") for section in SECTIONS), *kinds]
    }
    for key in keys():
        groups[key.section, key.kind].append(key)
    for (section, kind), members in groups.items():
        title = f"`{section}`" if section else "The top"
        if section == "data.train":
            title = "Each file of `data.train` and `data.eval`"
        lines += ["", f"## {title}" + (f", `kind: {kind}`" if kind else "")]
        lines += ["", component.about(_family(section), kind)] if kind else []
        lines += ["", "| key | takes | default | meaning |", "|---|---|---|---|"] if members else []
        lines += [
            f"| `{key.name}` | {_cell(key.takes)} | {_default_cell(key)} | {_cell(key.meaning)} |" for key in members
        ]
    return "\n".join(lines) + "\n"


def _default_cell(key: Key) -> str:
    return "required" if key.required else _cell(key.default)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
