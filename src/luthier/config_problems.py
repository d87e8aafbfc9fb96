"""What is wrong with a configuration, in words for the person who wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from luthier import component
from luthier.component import Config
from luthier.config_names import RENAMED_VALUES
from luthier.config_sections import DataConfig, DataFile, ModelConfig, RunConfig, TrainingConfig
from luthier.config_yaml import Document
from luthier.errors import UserError, excerpt

Problem = tuple[tuple[str | int, ...], str, Any, str]
"""Where in the tree, what is wrong, what was found, what was expected."""

EXPECTED = {
    "string": "text",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "tuple": "a list",
    "dictionary or instance of DataFile": "a path, or a map",
    "String should have at least 1 character": "a text that is not empty",
    "Tuple should have at least 1 item after validation, not 0": "a list that is not empty",
}
"""pydantic's words: ours."""


def problems_of(error: ValidationError, schema: type[Config], tree: Mapping[str, Any]) -> list[Problem]:
    """(location, what is wrong, what was found, what was expected) for each of pydantic's errors."""
    out: dict[tuple[str | int, ...], tuple[str, Any, str]] = {}
    for item in error.errors(include_url=False):
        wrong = {"missing": "missing", "extra_forbidden": "unknown key"}.get(item["type"], "wrong value")
        loc = _location(item["loc"], tree)
        if wrong == "missing":
            loc = (*loc, item["loc"][-1])
        expected = item["msg"].removeprefix("Input should be ").removeprefix("a valid ")
        expected = EXPECTED.get(expected, expected)
        if wrong == "unknown key":
            expected = component.did_you_mean(str(loc[-1]), sorted(_all_keys(schema)))
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


def _all_keys(schema: type[Config]) -> set[str]:
    keys = {field.alias or name for name, field in schema.model_fields.items()}
    if schema is RunConfig:
        for part in (ModelConfig, DataConfig, DataFile, TrainingConfig):
            keys |= set(part.model_fields)
    return keys


def as_user_error(document: Document, problems: list[Problem]) -> UserError:
    lines = []
    for loc, wrong, found, expected in sorted(problems, key=lambda problem: document.line(problem[0])):
        name = ".".join(str(part) for part in loc)
        text = f"{document.place(loc)}: {name}: {wrong}"
        if wrong == "wrong value":
            text += f", found {excerpt(found)}"
        if isinstance(found, str) and (ours := RENAMED_VALUES.get(name, {}).get(found)):
            text += f", another tool's name: write {ours}"
        elif expected and wrong == "unknown key":
            text += f"; {expected}"
        elif wrong == "missing":
            text += f"; luthier explain {'.'.join(part for part in loc if isinstance(part, str))} says what it is"
        elif expected:
            text += f", expected {expected}"
        lines.append(text)
    return UserError("", "\n".join(lines), "", "luthier explain KEY says what a key takes")


def refuse_wrong_combinations(document: Document, config: RunConfig) -> None:
    training = config.training
    if config.data.eval is None:
        for key, value in (
            ("eval_steps", training.eval_steps),
            ("early_stopping_patience", training.early_stopping_patience),
            ("load_best_checkpoint", training.load_best_checkpoint or None),
        ):
            if value is not None:
                raise UserError(
                    document.place(("training", key)),
                    f"training.{key} without held-out data",
                    "data.eval",
                    f"write data.eval: 0.05, or leave {key} out",
                )
    if config.model.quantization is not None and config.tuning.kind in ("full", "freeze"):
        raise UserError(
            document.place(("tuning",)),
            f"tuning: {config.tuning.kind} of a quantized model",
            "weights that can be trained",
            "tuning=lora, or leave model.quantization out",
        )
    if (
        isinstance(training.warmup_steps, int)
        and training.max_steps is not None
        and training.warmup_steps >= training.max_steps
    ):
        raise UserError(
            document.place(("training", "warmup_steps")),
            f"{training.warmup_steps} warm-up steps of {training.max_steps} steps",
            "fewer warm-up steps than steps",
            "warmup_steps=0.03",
        )
