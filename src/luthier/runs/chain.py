"""A run whose model is a run before it that made an adapter: what it takes from there, said in a configuration's own words.

`model: runs/sft` under `tuning: lora` is the base of that run, its adapter to go on from, and the words in which conversations
were put to it. Where the adapter is merged first, the tokenizer of the merged model carries these words.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from luthier import component
from luthier import config as configuration
from luthier.config import RunConfig
from luthier.data.chat.library import is_name
from luthier.errors import UserError
from luthier.models.source import OF_SCORES
from luthier.models.sources.resolve import base_of, is_adapter, is_run, result_of
from luthier.runs.run_folder import CHECKPOINTS, CONFIG
from luthier.system.strict_json import map_in

WORDS = ("chat_template", "on_system", "enable_thinking")
"""Keys of `data` that decide together what a template does."""
TEMPLATE, ORIGIN = "chat_template.jinja", "luthier.json"


def going_on(config: RunConfig) -> RunConfig:
    """The configuration, with what it leaves out as it was in the run that is its model: system text, and where that run's adapter is
    gone on from base, quantization, template and new tokens.

    Raises:
        UserError: an adapter is to be gone on from, and cannot be; or the run has no result yet.
    """
    folder = _result_at(config.model.path)
    if folder is None:
        return config
    before = configuration.load(folder.parent / CONFIG) if is_run(folder.parent) else None
    if before is not None and _is_of_scores(before) and not _is_of_scores(config):
        what = f"{config.model.path} learned to score answers, and has no words of its own"
        raise UserError("model.path", what, "a model of words", f"model={shlex.quote(before.model.path)}")
    said = config.data.model_fields_set
    words: dict[str, Any] = {} if "system" in said else {"system": _system_of(folder, before)}
    if not is_adapter(folder) or not _goes_on(config, folder):
        return _with(config, data=words)
    if getattr(config.tuning, "adapter_path", None) is not None:
        what = f"{config.model.path} is an adapter, and tuning.adapter_path names one"
        raise UserError("model.path", what, "one adapter", "model=BASE, or leave tuning.adapter_path out")
    if "chat_template" not in said:
        words |= _template_of(folder, before)
    if before is not None and "add_tokens" not in said:
        words["add_tokens"] = before.data.add_tokens
    name, revision = base_of(folder)
    held = config.model.quantization or (before.model.quantization if before is not None else None)
    return _with(
        config,
        model={"path": name, "revision": revision, "quantization": held, "adapter": "auto"},
        tuning={"adapter_path": config.model.path},
        data=words,
    )


def _system_of(result: Path, before: RunConfig | None) -> str | None:
    """The text that the conversations had which had none, else the one that all had by themselves."""
    if before is not None and before.data.system is not None:
        return before.data.system
    found = map_in(result / ORIGIN).get("system")
    return found if isinstance(found, str) else None


def _template_of(adapter: Path, before: RunConfig | None) -> dict[str, Any]:
    """Of a run as it was named there, so that it is the same to the letter; else the one that is saved with the adapter."""
    saved = {"chat_template": str(adapter / TEMPLATE)} if (adapter / TEMPLATE).is_file() else {}
    if before is None:
        return saved
    named = before.data.chat_template
    if named != "auto" and not is_name(named) and not Path(named).is_file():
        return saved
    return {name: getattr(before.data, name) for name in WORDS}


def _result_at(path: str) -> Path | None:
    """The folder with the result of a run, that of a checkpoint's run, or an adapter, that lies here; None for anything else."""
    folder = Path(path).expanduser()
    if folder.parent.name == CHECKPOINTS and is_run(folder.parent.parent):
        folder = folder.parent.parent
    if not folder.is_dir():
        return None
    made = result_of(folder) or folder
    return made.resolve() if is_adapter(made) or is_run(made.parent) else None


def _goes_on(config: RunConfig, adapter: Path) -> bool:
    """Whether an adapter that is the model is gone on from. Raises UserError where it should be and cannot."""
    if config.model.adapter == "merge":
        return False
    takes: bool = component.load("tuning", config.tuning.kind).makes_adapter
    scores = _is_of_scores(config)
    if takes and scores == _gives_scores(adapter):
        return True
    if config.model.adapter == "continue":
        kinds = {True: "scores", False: "words"}
        what, need = f"an adapter is to be gone on from, under tuning: {config.tuning.kind}", "tuning: lora"
        if takes:
            what, need = f"an adapter for {kinds[not scores]} is to be gone on from", f"one for {kinds[scores]}"
        raise UserError(
            "model.adapter", what, need, "model.adapter=merge" if takes else "tuning=lora, or model.adapter=merge"
        )
    return False


def _is_of_scores(config: RunConfig) -> bool:
    """Whether what is made gives scores, and no words."""
    return "value" in component.load("objectives", config.objective.kind).wants


def _gives_scores(adapter: Path) -> bool:
    return bool(map_in(adapter / "adapter_config.json").get("task_type") == OF_SCORES)


def _with(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    changed = {name: getattr(config, name).model_copy(update=keys) for name, keys in sections.items()}
    return config.model_copy(update=changed)
