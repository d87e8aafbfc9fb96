"""Architectures that transformers lacks. One folder each, named like the `model_type` of its config.json:

    config.py     the configuration (no torch)
    model.py      the causal language model, an ordinary model of transformers
    tokenizer.py  the tokenizer of the published files

Each file exports its class in `__all__`; there is no list to edit. `watch()`, called by `import luthier`, makes them
known to AutoConfig, AutoTokenizer and AutoModelForCausalLM at the moment that transformers itself is imported, and
imports nothing before. A model's module is imported when a model is first asked for: commands that need a tokenizer
alone do not wait for it.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

_AUTO = "transformers.models.auto"


@cache
def model_types() -> tuple[str, ...]:
    """The architectures of this folder."""
    return tuple(sorted(file.parent.name for file in Path(__file__).parent.glob("*/model.py")))


def tokenizer_class(model_type: str) -> Any:
    """The tokenizer of an architecture of this folder."""
    return _exported(model_type, "tokenizer")


def watch() -> None:
    """From here on, transformers' Auto classes know these architectures, whichever is imported first."""
    registrations: dict[str, Callable[[Any], None]] = {
        f"{_AUTO}.configuration_auto": _register_configs,
        f"{_AUTO}.tokenization_auto": _register_tokenizers,
        f"{_AUTO}.modeling_auto": _register_models,
    }
    waiting = {}
    for name, register in registrations.items():
        if name in sys.modules:
            register(sys.modules[name])
        else:
            waiting[name] = register
    if waiting and not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(waiting))


def _exported(model_type: str, part: str) -> Any:
    module = importlib.import_module(f"{__name__}.{model_type}.{part}")
    (name,) = module.__all__
    return getattr(module, name)


def _register_configs(auto: Any) -> None:
    for name in model_types():
        auto.AutoConfig.register(name, _exported(name, "config"), exist_ok=True)


def _register_tokenizers(auto: Any) -> None:
    """The published folders name another class, or one that comes as code: those names must not win."""
    for name in model_types():
        found = _exported(name, "tokenizer")
        auto.AutoTokenizer.register(_exported(name, "config"), found, exist_ok=True)
        auto.TOKENIZER_MAPPING_NAMES[name] = found.__name__
        if (corrected := getattr(auto, "MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS", None)) is not None:
            corrected.add(name)


def _register_models(auto: Any) -> None:
    for name in model_types():
        config = _exported(name, "config")
        auto.AutoModelForCausalLM.register(config, _OnDemand(name, (), {"config_class": config}), exist_ok=True)


class _OnDemand(type):
    """Stands for a model's class, and imports it when something of it is first asked for."""

    def __getattr__(cls, attribute: str) -> Any:
        return getattr(_exported(cls.__name__, "model"), attribute)


class _AfterImport:
    """A finder that calls a function with a module right after it was imported.

    Without the base class that finders have by custom: it adds no method that is needed, and every command would wait for its import.
    """

    def __init__(self, waiting: dict[str, Callable[[Any], None]]) -> None:
        self.waiting = waiting

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self.waiting:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        after, loader = self.waiting[name], spec.loader
        run = loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            after(module)
            del self.waiting[name]  # not before: a look for the module, or an import that fails, does not use it up

        loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec
