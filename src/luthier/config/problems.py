"""What is wrong with a configuration, in words for the person who wrote it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from luthier import component
from luthier.component import ComponentConfig, Config
from luthier.config.answers import Answer
from luthier.config.components import COMPONENTS
from luthier.config.documents import Document
from luthier.config.foreign_values import kind_as_typed
from luthier.config.other_tools import RENAMED_VALUES, SHARDS, SHARED_BATCHES
from luthier.config.sections import DataConfig, DataFile, ModelConfig, RunConfig, TrainingConfig
from luthier.config.translation import foreign
from luthier.errors import UserError, excerpt

Problem = tuple[tuple[str | int, ...], str, Any, str]
"""Where in the tree, what is wrong, what was found, what was expected."""

FOREIGN = "another tool's name"
FLAG = "a flag"
COMMAND_LINE = "command line"
MOST_SHOWN = 20
"""Of the problems of one configuration; what another tool's keys are called here is told of all."""

EXPECTED = {
    "string": "text",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "tuple": "a list",
    "dictionary or instance of DataFile": "a path, or a map",
    "dictionary or instance of DataConfig": "a path, a list of files, or a map",
    "dictionary or instance of ModelConfig": "a path, or a map",
    "String should have at least 1 character": "a text that is not empty",
    "Tuple should have at least 1 item after validation, not 0": "a list that is not empty",
}
"""pydantic's words: ours."""

BOUNDS = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
    "String should match pattern": "a text of the pattern",
}
"""The same for what stands before a value."""

DEEP = ("data.train", *(".".join(path) for path in COMPONENTS if len(path) == 2))
"""What has keys of its own one level below the keys of a section."""

SECTIONS: dict[str, type[Config]] = {
    "": RunConfig,
    "model": ModelConfig,
    "data": DataConfig,
    "data.train": DataFile,
    "data.eval": DataFile,
    "training": TrainingConfig,
}
"""The classes of the sections whose keys are always the same."""

HANDED_ON = "handed_on"
"""pydantic's type of an error that has our words already."""


def problems_of(error: ValidationError, schema: type[Config], tree: Mapping[str, Any]) -> list[Problem]:
    """(location, what is wrong, what was found, what was expected) for each of pydantic's errors."""
    out: dict[tuple[str | int, ...], tuple[str, Any, str]] = {}
    unknown = 0
    for item in error.errors(include_url=False):
        wrong = {"missing": "missing", "extra_forbidden": "unknown key"}.get(item["type"], "wrong value")
        expected = _expected(item["msg"])
        if item["type"] == HANDED_ON:
            wrong, expected = item["ctx"]["wrong"], item["ctx"]["expected"]
        loc = _location(item["loc"], tree)
        if wrong == "missing":
            loc = (*loc, item["loc"][-1])
        if item["type"] == "extra_forbidden":
            unknown += 1  # of many, a few are shown
            expected = _did_you_mean(loc, schema, tree) if unknown <= 5 * MOST_SHOWN else ""
        known = out.get(loc)
        out[loc] = (wrong, item["input"], f"{known[2]}, or {expected}" if known and known[2] != expected else expected)
    # A value is not blamed for what is wrong with one of its parts.
    whole = {loc[:end] for loc in out for end in range(len(loc))}
    return [(loc, *rest) for loc, rest in out.items() if loc not in whole]


def _location(parts: Sequence[str | int], tree: Mapping[str, Any]) -> tuple[str | int, ...]:
    """The keys and indices among pydantic's location parts, which also name the branches of a union."""
    node: Any = tree
    out: list[str | int] = []
    for part in parts:
        if (isinstance(node, Mapping) and part in node) or (
            isinstance(node, tuple) and isinstance(part, int) and part < len(node)
        ):
            node = node[part]  # type: ignore[index]
            out.append(part)
    return tuple(out)


def _expected(message: str) -> str:
    words = message.removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("a valid ")
    for theirs, ours in BOUNDS.items():
        words = words.replace(theirs, ours)
    return EXPECTED.get(words, "a map" if words.startswith("dictionary") else words)


def _did_you_mean(loc: tuple[str | int, ...], schema: type[Config], tree: Mapping[str, Any]) -> str:
    """The key that an unknown one may stand for: with its section if that is another one, and then only if much like it."""
    sections = {**SECTIONS, **_components_in(tree)}
    here = ".".join(part for part in loc[:-1] if isinstance(part, str))
    own = sections.get(here) if schema is RunConfig else schema
    places: dict[str, list[str]] = {}
    for section, part in sections.items():
        if part is not own:
            for key in _keys(part):
                places.setdefault(key, []).append(f'"{section}.{key}"' if section else f'"{key}" at the top')
    word = str(loc[-1])
    if word not in places and own and (near := component.did_you_mean(word, _keys(own))):
        return near
    meant = difflib.get_close_matches(word, places, n=1, cutoff=0.75)
    return f"did you mean {' or '.join(places[meant[0]])}?" if meant else ""


def _components_in(tree: Mapping[str, Any], above: str = "") -> dict[str, type[Config]]:
    """The classes of the components of a tree, by their places, but for those of files."""
    found: dict[str, type[Config]] = {}
    for name, part in tree.items():
        if isinstance(part, ComponentConfig):
            found[above + name] = type(part)
        elif isinstance(part, Mapping) and name != "data":
            found |= _components_in(part, f"{above}{name}.")
    return found


def _keys(schema: type[Config]) -> list[str]:
    return [field.alias or name for name, field in schema.model_fields.items()]


def checked(family: str, kind: str, value: Mapping[str, Any]) -> tuple[ComponentConfig | None, list[Problem]]:
    """The Config of the component `kind`, and what is wrong with it, placed within `value`."""
    try:
        schema = component.load(family, kind).Config
    except UserError as error:
        return None, [(("kind",), error.found, kind, "; ".join(filter(None, (error.expected, error.fix))))]
    try:
        return schema.model_validate(dict(value)), []
    except ValidationError as error:
        return None, problems_of(error, schema, value)


def handed_on(problems: list[Problem]) -> ValidationError:
    """Problems that a validator found in parts of its value, for pydantic to carry to `problems_of` with their places."""
    return ValidationError.from_exception_data(
        "",
        [
            {
                "type": PydanticCustomError(HANDED_ON, "{expected}", {"wrong": wrong, "expected": expected}),
                "loc": loc,
                "input": found,
            }
            for loc, wrong, found, expected in problems
        ],
    )


def foreign_keys(document: Document) -> list[Problem]:
    """The keys that another tool uses, each with what is written here; what was found is the answer."""
    return [
        (path, FOREIGN, found, found.words(document.place(path) == COMMAND_LINE))
        for path, found in foreign(document.tree, document.from_command_line).items()
    ]


def own_flags(document: Document) -> list[Problem]:
    """Keys of ours that were typed as flags are, each with the word to type."""
    answered = foreign(document.tree, document.from_command_line)
    found: list[Problem] = []
    for path in document.flags:
        if path not in answered:
            answer = Answer({".".join(map(str, path)): _at(document.tree, path)})
            found.append((path, FLAG, answer, answer.words(True)))
    return found


def _at(tree: Any, path: Sequence[str | int]) -> Any:
    for part in path:
        tree = tree[part]
    return tree


def as_user_error(
    document: Document, problems: list[Problem], others: Sequence[UserError] = (), fix: str = ""
) -> UserError:
    """One error for all problems, in the order of the file's lines.

    Args:
        others: what is wrong with words of the command line that are no key of the tree.
        fix: what mends all of it; default: which key to look up.
    """
    typed = list(document.flags)

    def order(problem: Problem) -> tuple[bool, int, int]:
        return *document.order(problem[0]), typed.index(problem[0]) if problem[0] in typed else -1

    ordered = sorted(_without_echoes(problems), key=order)
    if not document.flags and len(ordered) + len(others) == 1 and (alone := _alone(document, ordered, others, fix)):
        return alone
    ours = [problem for problem in ordered if problem[1] not in (FOREIGN, FLAG)]
    left_out = {id(problem) for problem in ours[MOST_SHOWN:]}
    shown = [problem for problem in ordered if id(problem) not in left_out]
    lines = [f"{document.place(problem[0])}: {_in_words(problem, document)}" for problem in shown]
    lines += and_more(len(left_out))
    if document.flags:
        lines.insert(0, f"{COMMAND_LINE}: keys are written KEY=VALUE here, not --KEY VALUE")
    lines += [_in_a_line(error) for error in others[:MOST_SHOWN]] + and_more(len(others[MOST_SHOWN:]))
    keys = [_dotted(loc) for loc, wrong, *_ in ordered if wrong not in (FOREIGN, FLAG, "missing", "unknown key")]
    unknown = any(wrong == "unknown key" for _, wrong, *_ in ordered)
    kinds = [_instead(problem) * (document.place(problem[0]) == COMMAND_LINE) for problem in ordered]
    if kinds and all(kinds) and not others:
        return UserError("", "\n".join(lines), "", fix or " ".join(kinds))
    looked_up = f"luthier explain {keys[0]}" if keys else "luthier explain lists all keys" if unknown else ""
    return UserError("", "\n".join(lines), "", fix or looked_up)


def _alone(document: Document, ordered: list[Problem], others: Sequence[UserError], whole: str) -> UserError | None:
    """The only thing that is wrong with the command line, with the word to type instead.

    Args:
        whole: the line that works, where it is known.
    """
    if others:
        return others[0]
    loc, wrong, found, words = ordered[0]
    if wrong != FOREIGN or found.value or document.place(loc) != COMMAND_LINE:
        return None
    if not found.sets and SHARDS in words and whole.startswith("luthier train "):
        return UserError(
            f"{COMMAND_LINE}: {loc[-1]}", FOREIGN, SHARED_BATCHES, f"torchrun --nproc-per-node 2 -m {whole}"
        )
    if not found.sets:
        return UserError(f"{COMMAND_LINE}: {loc[-1]}", FOREIGN, "", words)
    expected = ", ".join(found.sets) + (f" ({found.says})" if found.says else "")
    return UserError(f"{COMMAND_LINE}: {loc[-1]}", FOREIGN, expected, found.as_words())


def _in_a_line(error: UserError) -> str:
    """An error among others: what is to be written stands behind what is wrong."""
    expected = f", expected {error.expected}" if error.expected else ""
    return f"{error.where}: {error.found}{expected}" + (f"; {error.fix}" if error.fix else "")


def and_more(count: int) -> list[str]:
    return [f"and {count:,} more"] if count else []


def odd_texts(value: Any, path: tuple[str | int, ...] = ()) -> list[Problem]:
    """Texts and keys that no file and no tokenizer takes: with a NUL, or with half of a character, which YAML can write."""
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            return [(path, "wrong value", value, "text without NUL and without halves of characters (surrogates)")]
        return []
    if isinstance(value, Mapping):
        keys = [problem for key in value for problem in odd_texts(key, (*path, str(key)))]
        return keys or [problem for key, item in value.items() for problem in odd_texts(item, (*path, key))]
    if isinstance(value, (list, tuple)):
        return [problem for index, item in enumerate(value) for problem in odd_texts(item, (*path, index))]
    return []


def _dotted(loc: tuple[str | int, ...]) -> str:
    """The declared key that holds a place, as `luthier explain` takes it."""
    parts = [part for part in loc if isinstance(part, str)]
    if parts[:2] == ["data", "eval"] and len(parts) > 2:
        parts[1] = "train"
    if parts[:2] == ["objective", "terms"] and len(parts) > 2 and parts[2] not in ("kind", "weight"):
        parts = ["objective", parts[2]]
    depth = 4 if parts[:3] == ["data", "train", "format"] else 3 if ".".join(parts[:2]) in DEEP else 2
    return ".".join(parts[:depth]).removesuffix(".kind")


def _without_echoes(problems: list[Problem]) -> list[Problem]:
    """Another tool's key is not unknown as well, and what is to be written in its place is not missing as well."""
    foreign = {loc for loc, wrong, *_ in problems if wrong == FOREIGN}
    answered = {dotted for _, wrong, answer, _ in problems if wrong == FOREIGN for dotted in answer.sets}
    return [
        problem
        for problem in problems
        if problem[1] == FOREIGN
        or not (
            any(problem[0][: len(loc)] == loc for loc in foreign)
            or (problem[1] == "missing" and _needed(problem[0]) in answered)
        )
    ]


def _needed(loc: tuple[str | int, ...]) -> str:
    """What has to be there for a section that is missing."""
    dotted = ".".join(map(str, loc))
    return {"model": "model.path", "data": "data.train"}.get(dotted, dotted)


def _in_words(problem: Problem, document: Document) -> str:
    loc, wrong, found, expected = problem
    if wrong in (FOREIGN, FLAG) and loc in document.flags:
        return f"{document.flags[loc]}: {expected}"
    if wrong == FOREIGN:
        if found.value:
            return f"{'.'.join(map(str, loc))}: {found.value} is another tool's value: {expected}"
        return f"{loc[-1]} is another tool's name: {expected}"
    text = f"{'.'.join(map(str, loc))}: {wrong}"
    if wrong == "wrong value":
        text += f", found {excerpt(_with_lists(found))}"
    if isinstance(found, str) and (ours := RENAMED_VALUES.get(".".join(map(str, loc)), {}).get(found)):
        typed = _instead(problem) if document.place(loc) == COMMAND_LINE else ""
        return f"{text}, another tool's name: write {typed or ours}"
    if wrong == "missing":
        return f"{text}; luthier explain {_dotted(loc)} says what it is"
    if not expected:
        return text
    return f"{text}; {expected}" if wrong == "unknown key" else f"{text}, expected {expected}"


def _instead(problem: Problem) -> str:
    """The override for a kind that there is not; "" for all else."""
    loc, wrong, found, expected = problem
    if loc[-1] != "kind" or not wrong.startswith("there is no") or any(isinstance(part, int) for part in loc):
        return ""
    return kind_as_typed(".".join(map(str, loc)), found, expected)


def _with_lists(value: Any) -> Any:
    """The value as it was written: the file has lists where the checked tree has tuples."""
    if isinstance(value, Mapping):
        return {key: _with_lists(item) for key, item in value.items()}
    return [_with_lists(item) for item in value] if isinstance(value, (list, tuple)) else value
