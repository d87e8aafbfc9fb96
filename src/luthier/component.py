"""The folder is the registry.

`load("tuning", "lora")` imports `luthier/tuning/lora.py` and returns the one class that it exports in `__all__`.
`load("tuning", "their_package.module:Class")` takes someone else's. There is no list to edit.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from luthier.errors import UserError, excerpt
from luthier.system.modules import import_named

ROOT = Path(__file__).parent
LONGEST_PART = 255
"""Of a path, in bytes: what file systems take."""


class Config(BaseModel):
    """Base of every piece of configuration: frozen, strict, and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


def _place(path: str) -> str:
    if "\0" in path:
        raise ValueError("a path without a NUL character")
    if any(len(part.encode("utf-8", "surrogatepass")) > LONGEST_PART for part in path.split("/")):
        raise ValueError(f"a path whose parts have at most {LONGEST_PART} bytes each")
    return os.path.expanduser(path)


Place = Annotated[str, Field(min_length=1, max_length=4_000), AfterValidator(_place)]
"""A path or a name; `~` is the user's home, as in a shell."""


class ComponentConfig(Config):
    """Configuration of a component; its other keys are those of the component that `kind` names."""

    kind: str
    """Which component: the name of a file in its folder, or `package.module:Class`."""


def listing(family: str) -> list[str]:
    """The kinds of a family, which are the files of its folder."""
    return sorted(path.stem for path in (ROOT / family).glob("*.py") if not path.stem.startswith("_"))


@cache
def load(family: str, kind: str) -> type[Any]:
    """The class of the component `kind` of `family`.

    Raises:
        UserError: there is no such component; names the nearest ones.
    """
    module_name, _, class_name = kind.partition(":")
    if class_name:
        return _of_family(family, _class_of(import_named(module_name, f"kind {kind!r}"), class_name, kind), kind)
    if kind not in listing(family):
        raise UserError(
            family,
            f"there is no {excerpt(kind)}",
            "one of " + ", ".join(listing(family)),
            did_you_mean(kind, listing(family)),
        )
    module = importlib.import_module(f"luthier.{family}.{kind}")
    (name,) = module.__all__
    return _class_of(module, name, kind)


def about(family: str, kind: str) -> str:
    """What a component is, in the first line of its file."""
    return (inspect.getdoc(inspect.getmodule(load(family, kind))) or "").partition("\n")[0]


def make(family: str, config: ComponentConfig) -> Any:
    """The component that a piece of configuration names, made of it."""
    return load(family, config.kind)(config)


def _class_of(module: Any, name: str, kind: str) -> type[Any]:
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        raise UserError(f"kind {kind!r}", f"{module.__name__} has no class {name!r}", "package.module:Class")
    return found


def _of_family(family: str, found: type[Any], kind: str) -> type[Any]:
    """The class of another package, if it is what its family asks for: the contract is the first one in the folder's file."""
    contracts = vars(importlib.import_module(f"luthier.{family}")).values()
    protocols = [one for one in contracts if Protocol in getattr(one, "__bases__", ())]
    contract = next(one for one in protocols if one.__module__.endswith(family))
    asked = [name for name, value in vars(contract).items() if callable(value) and not name.startswith("_")]
    lacking = [name for name in asked if not callable(getattr(found, name, None))]
    config = getattr(found, "Config", None)
    if not (inspect.isclass(config) and issubclass(config, ComponentConfig)):
        lacking = ["Config", *lacking]
    if lacking:
        raise UserError(
            f"kind {kind!r}",
            f"this class is none of {family}: it has no {', no '.join(lacking)}",
            f"a class as src/luthier/{family}/__init__.py describes it, with a Config of its own",
            f"one of {', '.join(listing(family))}",
        )
    return found


def nearest(word: str, known: list[str], most: int = 5) -> list[str]:
    """The known words that are nearest to a word, the nearest first: spelt nearly so, or with the word in them."""
    near = difflib.get_close_matches(word, known, n=most, cutoff=0.6)
    inside = sorted((name for name in known if word.lower() in name.lower()), key=len)
    return list(dict.fromkeys([*near, *inside]))[:most]


def did_you_mean(word: str, known: list[str]) -> str:
    """'did you mean "lora"?', or nothing where no known word is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.65)
    return f'did you mean "{near[0]}"?' if near else ""
