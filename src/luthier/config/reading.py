"""The whole YAML file as one frozen, strict tree.

A bare string is a kind (`tuning: lora` = `{kind: lora}`) or a path (`data: x.jsonl` = `{train: [{path: x.jsonl}]}`).
The keys stand in config/sections.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from luthier import component
from luthier.component import ComponentConfig, Config
from luthier.config.combinations import refuse_wrong_combinations, terms_of
from luthier.config.components import AUTO, COMPONENTS, DEFAULT_KINDS, method_defaults
from luthier.config.documents import Document, read_yaml, to_line, to_yaml
from luthier.config.foreign_keys import generic
from luthier.config.plain_yaml import OF_A_PERSON, OF_A_RUN
from luthier.config.problems import (
    COMMAND_LINE,
    FLAG,
    FOREIGN,
    Problem,
    as_user_error,
    checked,
    foreign_keys,
    odd_texts,
    own_flags,
    problems_of,
)
from luthier.config.sections import WITHOUT_WARMUP, DataConfig, DataFile, ModelConfig, RunConfig, TrainingConfig
from luthier.config.translation import as_words, shown, whole
from luthier.errors import UserError, excerpt
from luthier.system.files import MANIFEST
from luthier.system.secrets import held_in
from luthier.system.streams import complain

MOST_WORDS = 1_000
LISTED = "luthier explain lists all keys"
LONGEST_KEY = 1_000
"""Of the command line."""

FILLED_IN = {
    "tuning": DEFAULT_KINDS["tuning"],
    "objective": DEFAULT_KINDS["objective"],
    "output_dir": "runs/<name of the data>",
}
"""Keys of the top that `normalise` fills in, and what docs/config.md says of it."""


@dataclass(frozen=True)
class Typed:
    """What else stands on a command line, as another program takes it. It is wrong, and told with what is to be typed instead."""

    flags: Sequence[tuple[str, str]] = ()
    """(`--learning_rate`, `1e-4`)"""
    wrong: Sequence[UserError] = ()
    """what was found wrong with it"""
    command: str = "luthier train"
    options: Sequence[str] = ()
    """of the command, which stand at the end of the line that is proposed"""


def load(path: str | Path | None = None, overrides: Sequence[str] = (), typed: Typed = Typed()) -> RunConfig:
    """Reads a YAML file, applies `key=value` overrides, fills the method's defaults.

    Args:
        path: the YAML file; None when everything stands in `overrides`.
        overrides: `training.learning_rate=1e-4`, or `learning_rate=1e-4` where the last word is unique. What they leave out of the
            file is said on standard error.
        typed: the rest of the command line.

    Raises:
        UserError: with file and line, what was found, what was expected, and the fix. All problems are listed at once.
    """
    return assemble(_read(Path(path)) if path is not None else Document({}, COMMAND_LINE), overrides, typed)


def _read(path: Path) -> Document:
    """With the limits of a run where the file lies in the folder of one: luthier wrote it."""
    return read_yaml(path, OF_A_RUN if path.with_name(MANIFEST).is_file() else OF_A_PERSON)


def assemble(document: Document, overrides: Sequence[str], typed: Typed = Typed()) -> RunConfig:
    """The run of a document and of overrides. Raises UserError as `load`: with all that is wrong with both."""
    words = len(overrides) + len(typed.flags)
    if words > MOST_WORDS:
        raise UserError(COMMAND_LINE, f"{words:,} words", f"at most {MOST_WORDS:,}; a file holds more")
    wrong = list(typed.wrong)
    for override in overrides:
        try:
            apply_override(document, override)
        except UserError as error:
            wrong.append(error)
    for flag, text in typed.flags:
        try:
            document.flags[tuple(_set_flag(document, flag, text))] = flag
        except UserError as error:
            wrong.append(UserError(f"{COMMAND_LINE}: {flag}", error.found, error.expected, error.fix))
    made = build(document, wrong, typed)
    for line in document.left_out:
        complain(line)
    return made


def parsed(text: str) -> Any:
    """The value of a word of the command line, by YAML's rules; as it stands where it is no YAML."""
    try:
        return Document({}, COMMAND_LINE).parse_value(text, text)
    except UserError:
        return text


def _set_flag(document: Document, typed: str, text: str) -> list[str]:
    """Sets the key of `--key value`; returns where."""
    key = typed.lstrip("-").replace("-", "_")
    value = parsed(text)
    path = key.split(".")
    if len(path) == 1 and key not in RunConfig.model_fields:
        path = _unique_leaf(document, key, text, value)
    document.set(path, value)
    return path


def from_dict(tree: Mapping[str, Any]) -> RunConfig:
    """The same checks for what a command makes of its arguments."""
    return build(Document(dict(tree), COMMAND_LINE))


def data_entry(text: str) -> Any:
    """What stands for a file in a configuration, as a command names it: a path, or the map `{path: ..., format: ...}`.

    Raises:
        UserError: the map cannot be read.
    """
    if not (text.lstrip().startswith("{") and text.rstrip().endswith("}")):
        return text
    try:
        return Document({}, COMMAND_LINE).parse_value(text, text)
    except UserError as error:
        raise UserError(error.where, error.found, "a path, or {path: FILE, format: ...}") from None


def data_file(text: str) -> DataFile:
    """The file that a command names.

    Raises:
        UserError: the map is none of a file.
    """
    return from_dict({"model": "unused", "output_dir": "unused", "data": {"train": [data_entry(text)]}}).data.train[0]


def build(document: Document, wrong: Sequence[UserError] = (), typed: Typed = Typed()) -> RunConfig:
    """Checks the tree of a document and makes the RunConfig of it.

    Args:
        wrong: what was found wrong before, which is told with the rest.
        typed: the line that it is wrong in.
    """
    _refuse_secrets(document)
    if odd := odd_texts(document.tree):
        raise as_user_error(document, odd)
    config, problems = _validated(document.tree)
    problems += foreign_keys(document) + own_flags(document)
    if config is None or problems or wrong:
        fix, notes = _in_our_words(document, problems, typed)
        raise as_user_error(document, problems, [*wrong, *notes], fix)
    refuse_wrong_combinations(document, config)
    return _with_method_defaults(config)


def _refuse_secrets(document: Document) -> None:
    """A run keeps its configuration, and shows it to trackers: no value in it may be a secret. Raises UserError."""
    left: list[tuple[tuple[str | int, ...], Any]] = [((), document.tree)]
    while left:
        path, value = left.pop()
        if isinstance(value, Mapping):
            left += [((*path, key), inner) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            left += [((*path, index), inner) for index, inner in enumerate(value)]
        elif isinstance(value, str) and (what := held_in(value)):
            raise UserError(
                f"{document.place(path)}: {'.'.join(map(str, path))}",
                f"holds {what if what.startswith('a ') else 'the value of ' + what}",
                "no secrets: a run writes its configuration into its folder",
                "leave it out; tokens are read from the environment (HF_TOKEN) or from what hf auth login keeps",
            )


def _validated(written: Mapping[str, Any]) -> tuple[RunConfig | None, list[Problem]]:
    """The configuration of a tree, and what is wrong with single keys."""
    tree, problems = normalise(written), list[Problem]()
    for path, parent, family in _component_places(tree):
        value = parent.get(path[-1])
        if value is not None and value != AUTO.get(str(path[-1])):
            parent[path[-1]], found = _build_component(path, family, value)
            problems += found
    try:
        return RunConfig.model_validate(tree), problems
    except ValidationError as error:
        return None, problems + problems_of(error, RunConfig, tree)


def _in_our_words(document: Document, problems: Sequence[Problem], line: Typed) -> tuple[str, list[UserError]]:
    """Where keys of another tool are among what is wrong: the whole configuration, as a line to type where nothing of it is
    wrong in the file, else as a file; and what is to be known of it."""
    answers = {loc: found for loc, wrong, found, _ in problems if wrong in (FOREIGN, FLAG)}
    found = whole(document.tree, _unknown_keys, document.from_command_line) if answers else None
    if found is None:
        return "", []
    tree, notes = found.tree, [UserError(*note) for note in found.notes]
    if all(document.place(loc) == COMMAND_LINE for loc in answers):
        typed = {".".join(map(str, loc)) for loc in document.from_command_line if loc not in answers}
        typed |= {dotted for found in answers.values() for dotted in found.sets} | {key for key, _ in found.notes}
        alone = document.source == COMMAND_LINE
        words = [*([] if alone else [document.source]), *as_words(tree, None if alone else typed)]
        return " ".join([line.command, *words, *line.options]), notes
    return f"as a whole, in luthier's words:\n\n{to_yaml(shown(tree))}", notes


def _unknown_keys(tree: Mapping[str, Any]) -> list[tuple[str | int, ...]] | None:
    """The places of keys that nothing knows; None where something else is wrong, too."""
    config, problems = _validated(tree)
    if any(wrong != "unknown key" for _, wrong, *_ in problems):
        return None
    if config is not None:
        try:
            refuse_wrong_combinations(Document(dict(tree), ""), config)
        except UserError:
            return None
    return [loc for loc, *_ in problems]


def _component_places(tree: dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], dict[Any, Any], str]]:
    """(where a component may stand, the map that holds it, the folder of its kinds), with each file of a list."""
    data = tree.get("data")
    for path, family in COMPONENTS.items():
        if path[0] != "data":
            parent = tree if len(path) == 1 else tree.get(path[0])
            if isinstance(parent, dict):
                yield path, parent, family
            continue
        for purpose in ("train", "eval"):
            files = data.get(purpose) if isinstance(data, dict) else None
            for index, file in enumerate(files if isinstance(files, tuple) else ()):
                if isinstance(file, dict):
                    yield ("data", purpose, index, path[-1]), file, family


def _build_component(path: tuple[str | int, ...], family: str, value: Any) -> tuple[ComponentConfig, list[Problem]]:
    """The component's own Config; a placeholder and the problems where it is not valid."""
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(kind, str):
        kinds = "one of " + ", ".join(component.listing(family))
        wrong = "missing" if isinstance(value, Mapping) and kind is None else "wrong value"
        return ComponentConfig(kind=""), [((*path, "kind"), wrong, value, kinds)]
    built, problems = checked(family, kind, value)
    return built or ComponentConfig(kind=kind), [((*path, *loc), *rest) for loc, *rest in problems]


def normalise(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Bare strings become maps, lists become tuples, absent kinds their default."""
    out = {key: _tuples(value) for key, value in tree.items()}
    if isinstance(out.get("model"), str):
        out["model"] = {"path": out["model"]}
    data = out.get("data")
    if isinstance(data, (str, tuple)):
        data = {"train": data}
    if isinstance(data, Mapping):
        out["data"] = data = dict(data)
        for key in ("train", "eval"):
            if isinstance(data.get(key), (str, Mapping)):
                data[key] = (data[key],)
            if isinstance(data.get(key), tuple):
                data[key] = tuple({"path": item} if isinstance(item, str) else item for item in data[key])
    out.setdefault("training", {})
    for path, parent, _ in _component_places(out):
        name = str(path[-1])
        default = DEFAULT_KINDS.get(name)
        value = parent.get(name, default)
        if isinstance(value, str) and value != AUTO.get(name):
            parent[name] = {"kind": value}
        elif isinstance(value, dict) and default is not None:
            value.setdefault("kind", default)
    if isinstance(out.get("report_to"), str):
        out["report_to"] = (out["report_to"],)
    if "output_dir" not in out:
        out["output_dir"] = _default_output_dir(data.get("train") if isinstance(data, Mapping) else None)
    return out


def _default_output_dir(train: Any) -> str:
    """`runs/tickets` for `data/tickets.csv` or `hf:org/tickets`; `runs/mine` where the data have no plain name."""
    first = train[0].get("path") if isinstance(train, tuple) and train and isinstance(train[0], Mapping) else None
    stem = PurePosixPath(first).stem if isinstance(first, str) else ""
    return f"runs/{stem}" if re.fullmatch(r"[\w-][\w.-]*", stem) else "runs/mine"


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def schema_of(tree: Mapping[str, Any]) -> dict[str, type[Config]]:
    """The classes that describe each section of a normalised tree; '' is the top."""
    sections: dict[str, type[Config]] = {
        "": RunConfig,
        "model": ModelConfig,
        "data": DataConfig,
        "training": TrainingConfig,
    }
    for path, parent, family in _component_places(dict(tree)):
        node = parent.get(path[-1])
        if isinstance(node, Mapping) and isinstance(node.get("kind"), str) and path[0] != "data":
            kind = node["kind"]
            if ":" not in kind and kind not in component.listing(family):  # it is told with all that is wrong
                kind = next(iter(component.nearest(kind, component.listing(family), 1)), None)
            if kind is not None:
                sections[".".join(map(str, path))] = component.load(family, kind).Config
    return sections


def apply_override(document: Document, override: str) -> None:
    """Sets `a.b=value`, or `b=value` where only one section has a key b."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")) or len(key) > LONGEST_KEY:
        raise UserError(COMMAND_LINE, f"{excerpt(override)} is not key=value", "for example learning_rate=1e-4")
    value = document.parse_value(text, override)
    path = key.split(".")
    if len(path) == 1 and key not in RunConfig.model_fields:
        path = _unique_leaf(document, key, text, value)
    document.set(path, value)


def _unique_leaf(document: Document, key: str, text: str, value: Any) -> list[str]:
    tree = normalise(document.tree)
    sections = schema_of(tree)
    found = [section for section, schema in sections.items() if section and key in schema.model_fields]
    if len(found) == 1:
        return [*found[0].split("."), key]
    if found:
        places = " or ".join(f"{section}.{key}" for section in found)
        raise UserError(COMMAND_LINE, f"{key} is a key of several sections", places, f"write {places}")
    if generic(key):
        return [key]  # it is told with all that is wrong
    if key in DataFile.model_fields:
        raise UserError(
            f"command line: {key}",
            "a key of each file, not of the data as a whole",
            "the file that it belongs to",
            _of_a_file(document, key, text, value),
        )
    if of_others := _of_another_kind(sections, key):
        raise UserError(f"command line: {key}", *of_others, f"leave {key} out")
    known = [name for schema in sections.values() for name in schema.model_fields]
    raise UserError(
        f"command line: {key}", "there is no such key", "", component.did_you_mean(key, known) or LISTED
    )


def _of_another_kind(sections: Mapping[str, type[Config]], key: str) -> tuple[str, str] | None:
    """(what was found, what was expected) for a key that other kinds of a component have than the one that is chosen."""
    for path, family in COMPONENTS.items():
        schemas = {kind: component.load(family, kind).Config for kind in component.listing(family)}
        holders = [kind for kind, schema in schemas.items() if key in schema.model_fields]
        here = ".".join(path)
        if holders and here in sections:
            chosen = next(kind for kind, schema in schemas.items() if schema is sections[here])
            return f"{here}: {chosen} has no such key", "one that has it: " + ", ".join(holders)
    return None


def _of_a_file(document: Document, key: str, text: str, value: Any) -> str:
    """What gives a key to a file of `data.train`: to the first of several."""
    data = document.tree.get("data")
    train = data.get("train") if isinstance(data, Mapping) else data
    files = train if isinstance(train, list) else [train or "FILE"]
    first, *others = files or ["FILE"]
    first = {**(first if isinstance(first, Mapping) else {"path": first}), key: value}
    if key != "weight":
        return f"data.train={to_line([first, *others])}" if isinstance(train, list) else f"data.train.{key}={text}"
    mixed = isinstance(data, Mapping) and data.get("mixing", "concatenate") != "concatenate"
    line = f"data.train={to_line([first, *(others or ['OTHER'])])}" + ("" if mixed else " data.mixing=first_exhausted")
    return line if others else f"leave weight out; it needs several files and data.mixing: {line}"


def _with_method_defaults(config: RunConfig) -> RunConfig:
    chosen = method_defaults(config.tuning.kind, [term.kind for term in terms_of(config.objective)])
    if config.training.lr_scheduler_type == WITHOUT_WARMUP:
        chosen["warmup_steps"] = 0
    if config.data.eval is not None:
        chosen["eval_steps"] = 0.1
    filled = {key: value for key, value in chosen.items() if getattr(config.training, key) is None}
    return config.model_copy(update={"training": config.training.model_copy(update=filled)})
