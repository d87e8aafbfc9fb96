"""Another tool's configuration as a whole in our words: a file to write, or a line to type."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.component import Config
from luthier.config.answers import Answer, as_word, keys_of_family
from luthier.config.components import COMPONENTS
from luthier.config.documents import Document
from luthier.config.foreign_keys import answer, generic
from luthier.config.foreign_values import answer_value, anywhere, ours
from luthier.config.sections import (
    WITHOUT_WARMUP,
    DataConfig,
    DataFile,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)
from luthier.errors import UserError

Loc = tuple[str | int, ...]

ORDER = ("model", "data", "tuning", "objective", "training", "distributed", "report_to", "seed", "output_dir")
SECTIONS: dict[str, type[Config]] = {"model": ModelConfig, "data": DataConfig, "training": TrainingConfig}
PLACES = {"model": {"path": "MODEL"}, "data": {"train": "FILE"}}
"""What stands for what nobody has said."""
OF_HELD_OUT = ("eval_steps", "early_stopping_patience", "load_best_checkpoint")
"""Keys that ask for held-out rows."""
HELD_OUT = 0.05
"""The share that is proposed where nothing is held out, and one of those keys is there."""


@dataclass(frozen=True)
class Whole:
    """A configuration in our words."""

    tree: dict[str, Any]
    notes: list[tuple[str, str]]
    """(key, what is to be known) of what was put in or left out, though nobody has said so"""


def foreign(tree: Mapping[str, Any], typed: Collection[Loc] = ()) -> dict[tuple[str, ...], Answer]:
    """Each key of another tool, at the top, in a section or in a map of another tool's own, and each value of another tool's
    of a key of ours, and what it becomes.

    Args:
        typed: the places of what the command line has, which overrides the file.
    """
    names = {str(path[-1]) for path in typed}
    sections: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), tree)]
    sections += [((key,), value) for key, value in tree.items() if isinstance(value, Mapping)]
    out = {}
    for path, section in sections:
        for key, value in section.items():
            if isinstance(key, str):
                own = _is_own(path, key)
                found = answer_value(".".join((*path, key)), value) if own else answer(key, value, tree, names)
                if found is not None:
                    out[(*path, key)] = found
    return out


def _is_own(path: tuple[str, ...], key: str) -> bool:
    """Whether a key is one of ours where it stands."""
    if not path:
        return key in RunConfig.model_fields
    if path[0] in SECTIONS:
        return key in SECTIONS[path[0]].model_fields
    return path in COMPONENTS and key in keys_of_family(COMPONENTS[path])


def whole(
    tree: Mapping[str, Any],
    wrong: Callable[[Mapping[str, Any]], Sequence[Loc] | None],
    typed: Collection[Loc] = (),
) -> Whole | None:
    """The tree with all keys of other tools in our words, and ours where they belong; None where no run can be made of it.

    Args:
        wrong: the places of unknown keys in a tree, which are left out; None where something else is wrong with it.
        typed: the places of what the command line has, which overrides the file, in whosever words.
    """
    answers = foreign(tree, typed)
    if any(found.stops for found in answers.values()):
        return None
    document = Document({}, "")
    overridden = {_dotted(path) for path in typed if path not in answers}
    try:
        for path, value in _own(tree, set(answers)):
            document.set(path, value)
        for place in sorted(answers, key=lambda place: place in typed):
            for dotted, value in answers[place].sets.items():
                if place in typed or dotted not in overridden:
                    document.set(dotted.split("."), copy.deepcopy(value))
    except UserError:
        return None
    evaluates = not any(anywhere(tree, name) in ("no", False) for name in ("eval_strategy", "evaluation_strategy"))
    out, notes = _settled({**PLACES, **document.tree}, evaluates)
    unknown = wrong(out)
    while unknown:
        for loc in unknown:
            _remove(out, loc)
            dotted = ".".join(map(str, loc))
            if any(dotted in found.sets for found in answers.values()):
                notes.append((dotted, "nothing has such a key in this configuration; it is left out"))
        unknown = wrong(out)
    if unknown is None:
        return None
    return Whole({key: out[key] for key in sorted(out, key=_place)}, notes)


def _dotted(path: Loc) -> str:
    """The key that a word of the command line sets: `tuning=full` the kind, `model=x` the path."""
    short: dict[tuple[str, ...], str] = {("model",): "model.path", ("data",): "data.train"}
    names = tuple(map(str, path))
    return f"{'.'.join(names)}.kind" if names in COMPONENTS else short.get(names, ".".join(names))


def _own(tree: Mapping[str, Any], answered: set[tuple[str, ...]]) -> Iterator[tuple[list[str], Any]]:
    """What is written in our words, with a key that stands at the top and belongs to one section in that; kinds first, for the
    keys of a component are put beside its kind."""
    for key in sorted(tree, key=_place):
        value = tree[key]
        if (key,) in answered:
            continue
        if isinstance(value, Mapping):
            inner = {name: value[name] for name in value if (key, name) not in answered}
            if key in RunConfig.model_fields and inner:
                if key in SECTIONS:
                    yield from (([key, name], ours(f"{key}.{name}", value[name])) for name in inner)
                else:
                    yield [key], inner
        elif key in RunConfig.model_fields:
            yield [key], value
    for key in tree:
        if key not in RunConfig.model_fields and (key,) not in answered and (path := _belongs(key)):
            yield path, ours(".".join(path), tree[key])


def _belongs(key: str) -> list[str]:
    """Where a key of ours belongs that stands at the top: in a section, or beside the kind of a component."""
    for section, schema in SECTIONS.items():
        if key in schema.model_fields:
            return [section, key]
    if key in DataFile.model_fields:
        return []
    for path, family in COMPONENTS.items():
        if path[0] != "data" and key in keys_of_family(family):
            return [*path, key]
    return []


def is_key(name: str) -> bool:
    """Whether it is a key of a configuration, ours or another tool's."""
    return bool(generic(name) or name in RunConfig.model_fields or name in DataFile.model_fields or _belongs(name))


def _place(key: str) -> int:
    return ORDER.index(key) if key in ORDER else len(ORDER)


def _settled(tree: dict[str, Any], evaluates: bool) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """With our values in the place of other tools', and without keys that nothing would ask for; and what is to be said of it.

    Args:
        evaluates: whether rows are held out where a key asks for it.
    """
    document = Document({key: dict(value) if isinstance(value, Mapping) else value for key, value in tree.items()}, "")
    for path, found in foreign(document.tree).items():
        if found.value:
            _remove(document.tree, path)
            for dotted, value in found.sets.items():
                document.set(dotted.split("."), value)
    training, data = document.tree.get("training"), document.tree.get("data")
    if not isinstance(training, dict):
        return document.tree, []
    notes = []
    if training.get("lr_scheduler_type") == WITHOUT_WARMUP and training.pop("warmup_steps", None):
        notes.append(("training.warmup_steps", f"{WITHOUT_WARMUP} has no warm-up; it is left out"))
    asking = [key for key in OF_HELD_OUT if training.get(key)]
    if not asking or (isinstance(data, dict) and data.get("eval") is not None):
        return document.tree, notes
    if evaluates:
        document.set(["data", "eval"], HELD_OUT)
        words = f"nothing is held out, and {' and '.join(asking)} asks for it: {HELD_OUT} is added"
        notes.append(("data.eval", f"{words}; or leave {' and '.join(asking)} out"))
    for key in () if evaluates else asking:
        del training[key]
        notes.append((f"training.{key}", "nothing is evaluated; it is left out"))
    return document.tree, notes


def _remove(tree: dict[str, Any], loc: Loc) -> None:
    node: Any = tree
    for part in loc[:-1]:
        node = node[part]
    del node[loc[-1]]


def shown(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A whole configuration as a person writes it."""
    return {key: _short(value, key) for key, value in tree.items()}


def _short(value: Any, key: str) -> Any:
    """`lora` for `{kind: lora}`, `x` for `{path: x}`."""
    if isinstance(value, Mapping):
        value = {name: _short(part, name) for name, part in value.items()}
        if list(value) in (["kind"], ["path"]):
            return next(iter(value.values()))
        if key == "data" and list(value) == ["train"] and not isinstance(value["train"], Mapping):
            return value["train"]
    return value


def as_words(tree: Mapping[str, Any], only: set[str] | None = None) -> list[str]:
    """A whole configuration as the command line takes it, each word as a shell does.

    Args:
        only: the dotted keys that are wanted; default: all.
    """

    def wanted(dotted: str) -> bool:
        return only is None or any(dotted == name or dotted.startswith(f"{name}.") for name in only)

    return [as_word(dotted, value) for dotted, value in _leaves(tree, ()) if wanted(dotted)]


def _leaves(value: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for key, part in value.items():
        path = (*above, key)
        if isinstance(part, Mapping) and (len(path) == 1 or path in COMPONENTS):
            yield from _leaves(part, path)
        else:
            yield ".".join(path), part
