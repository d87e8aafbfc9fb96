"""What is wrong with a configuration, in words for the person who wrote it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from luthier import component
from luthier.component import ComponentConfig, Config
from luthier.config.components import COMPONENTS, default_component
from luthier.config.documents import Document, to_line
from luthier.config.other_tools import RENAMED_VALUES, foreign_key
from luthier.config.sections import WITHOUT_WARMUP, DataConfig, DataFile, ModelConfig, RunConfig, TrainingConfig
from luthier.errors import UserError, excerpt

Problem = tuple[tuple[str | int, ...], str, Any, str]
"""Where in the tree, what is wrong, what was found, what was expected."""

FOREIGN = "another tool's name"

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
    for item in error.errors(include_url=False):
        wrong = {"missing": "missing", "extra_forbidden": "unknown key"}.get(item["type"], "wrong value")
        expected = _expected(item["msg"])
        if item["type"] == HANDED_ON:
            wrong, expected = item["ctx"]["wrong"], item["ctx"]["expected"]
        loc = _location(item["loc"], tree)
        if wrong == "missing":
            loc = (*loc, item["loc"][-1])
        if item["type"] == "extra_forbidden":
            expected = _did_you_mean(loc, schema, tree)
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
    """The keys that another tool uses, each with what is written here."""
    sections: list[tuple[tuple[str, ...], Any]] = [((), document.tree)]
    sections += [((key,), value) for key, value in document.tree.items() if isinstance(value, Mapping)]
    return [
        ((*path, key), FOREIGN, section[key], message)
        for path, section in sections
        for key in section
        if not (path == () and key in RunConfig.model_fields)
        and isinstance(key, str)
        and (message := foreign_key(key, document.tree))
    ]


def as_user_error(document: Document, problems: list[Problem]) -> UserError:
    """One error for all problems, in the order of the file's lines."""
    ordered = sorted(_without_echoes(problems), key=lambda problem: document.order(problem[0]))
    lines = [f"{document.place(problem[0])}: {_in_words(problem)}" for problem in ordered]
    keys = [_dotted(loc) for loc, wrong, *_ in ordered if wrong not in (FOREIGN, "missing", "unknown key")]
    unknown = any(wrong == "unknown key" for _, wrong, *_ in ordered)
    fix = f"luthier explain {keys[0]}" if keys else "luthier explain lists all keys" if unknown else ""
    return UserError("", "\n".join(lines), "", fix)


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
    answered = {message.removeprefix("write ") for _, wrong, _, message in problems if wrong == FOREIGN}
    answered |= {name.partition(".")[0] for name in answered & {"model.path", "data.train"}}
    answered |= {f"{name}.path" for name in answered & {"model"}}
    return [
        (loc, wrong, found, expected)
        for loc, wrong, found, expected in problems
        if wrong == FOREIGN or not (loc in foreign or (wrong == "missing" and ".".join(map(str, loc)) in answered))
    ]


def _in_words(problem: Problem) -> str:
    loc, wrong, found, expected = problem
    if wrong == FOREIGN:
        return f"{loc[-1]} is another tool's name: {expected}"
    text = f"{'.'.join(map(str, loc))}: {wrong}"
    if wrong == "wrong value":
        text += f", found {excerpt(_with_lists(found))}"
    if isinstance(found, str) and (ours := RENAMED_VALUES.get(".".join(map(str, loc)), {}).get(found)):
        return f"{text}, another tool's name: write {ours}"
    if wrong == "missing":
        return f"{text}; luthier explain {_dotted(loc)} says what it is"
    if not expected:
        return text
    return f"{text}; {expected}" if wrong == "unknown key" else f"{text}, expected {expected}"


def _with_lists(value: Any) -> Any:
    """The value as it was written: the file has lists where the checked tree has tuples."""
    if isinstance(value, Mapping):
        return {key: _with_lists(item) for key, item in value.items()}
    return [_with_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def terms_of(objective: ComponentConfig) -> tuple[ComponentConfig, ...]:
    """The terms of a sum of objectives; of any other, itself."""
    terms: tuple[ComponentConfig, ...] = cast("Any", objective).terms if _is_sum(objective) else (objective,)
    return terms


def _is_sum(objective: ComponentConfig) -> bool:
    return bool(component.load("objectives", objective.kind).is_sum)


def weighted_sum(objective: ComponentConfig, before: Sequence[Any] = (), after: Sequence[Any] = ()) -> str:
    """The override for a weighted sum of an objective, or of its terms, with more terms before and after them."""
    terms = [term.model_dump(exclude_unset=True) for term in terms_of(objective)]
    terms = [{key: value for key, value in term.items() if (key, value) != ("weight", 1)} for term in terms]
    own = objective.model_dump(exclude_unset=True, exclude={"kind", "terms"}) if _is_sum(objective) else {}
    kinds = [kind for kind in component.listing("objectives") if component.load("objectives", kind).is_sum]
    return f"objective={to_line({'kind': kinds[0], 'terms': [*before, *terms, *after], **own})}"


def refuse_wrong_combinations(document: Document, config: RunConfig) -> None:
    """Raises UserError where keys are right one by one and wrong together; all such pairs at once."""
    found = sorted(_wrong_combinations(config), key=lambda one: document.order(one[0]))
    errors = [UserError(document.place(path), *words) for path, *words in found]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise UserError("", "\n".join(map(str, errors)))


def _wrong_combinations(config: RunConfig) -> Iterator[tuple[tuple[str | int, ...], str, str, str]]:
    """(where, what was found, what was expected, the remedy)"""
    training = config.training
    yield from _idle_weights(config.data)
    yield from _nothing_to_learn_from(config.objective)
    if config.data.eval is None:
        for key, value in (
            ("eval_steps", training.eval_steps),
            ("early_stopping_patience", training.early_stopping_patience),
            ("load_best_checkpoint", training.load_best_checkpoint or None),
        ):
            if value is not None:
                yield (
                    ("training", key),
                    f"training.{key} without held-out data",
                    "data.eval",
                    f"write data.eval: 0.05, or leave {key} out",
                )
    if config.model.quantization is not None and not component.load("tuning", config.tuning.kind).makes_adapter:
        yield (
            ("tuning",),
            f"tuning: {config.tuning.kind} of a quantized model",
            "weights that can be trained",
            "tuning=lora, or leave model.quantization out",
        )
    if training.lr_scheduler_type == WITHOUT_WARMUP and training.warmup_steps:
        yield (
            ("training", "warmup_steps"),
            f"warmup_steps: {training.warmup_steps:g} with lr_scheduler_type: {WITHOUT_WARMUP}, which has no warm-up",
            "a schedule that has one",
            "lr_scheduler_type=constant_with_warmup, or leave warmup_steps out",
        )
    if (
        isinstance(training.warmup_steps, int)
        and training.max_steps is not None
        and training.warmup_steps >= training.max_steps
    ):
        yield (
            ("training", "warmup_steps"),
            f"{training.warmup_steps} warm-up steps of {training.max_steps} steps",
            "fewer warm-up steps than steps",
            "warmup_steps=0.03",
        )


def _nothing_to_learn_from(objective: ComponentConfig) -> Iterator[tuple[tuple[str | int, ...], str, str, str]]:
    """Objectives that say nothing of the answers, with none beside them that does."""
    kinds = [term.kind for term in terms_of(objective)]
    usual = [component.load("objectives", kind).only_as_term for kind in kinds]
    if None in usual:
        return
    found = f"{' and '.join(kinds)} alone: nothing would be learned from the answers"
    beside = default_component("objective")
    if _is_sum(objective):
        fix = weighted_sum(objective, before=[{"kind": beside.kind}])
    else:
        term = objective.model_dump(exclude_unset=True) | {"weight": usual[0]}
        fix = weighted_sum(ComponentConfig(kind=beside.kind), after=[term])
    yield ("objective",), found, f"a term beside {beside.kind}", fix


def _idle_weights(data: DataConfig) -> Iterator[tuple[tuple[str | int, ...], str, str, str]]:
    """Weights that nothing would ask for. A weight of 1 says nothing, and stands in every resolved configuration."""
    held_out = data.eval if isinstance(data.eval, tuple) else ()
    for purpose, files in (("train", data.train), ("eval", held_out)):
        for index, file in enumerate(files):
            if file.weight == 1 or (purpose == "train" and data.mixing != "concatenate"):
                continue
            found = f"weight: {file.weight:g} of {file.path}, which is not mixed with other files by weights"
            expected = (
                "data.mixing: first_exhausted or all_exhausted" if purpose == "train" else "no weight in data.eval"
            )
            fix = (
                "write data.mixing: first_exhausted, or leave weight out" if purpose == "train" else "leave weight out"
            )
            yield ("data", purpose, index, "weight"), found, expected, fix
