"""A model's settings (config.json and what lies beside it) as they were written by whoever made it: nothing in them may name code to
be fetched or run, or a file outside of the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.errors import UserError, excerpt
from luthier.models import architectures
from luthier.models.files import is_plain, refuse_stub
from luthier.system.strict_json import is_nested

_IMPLEMENTATIONS = (
    "_attn_implementation",
    "attn_implementation",
    "_experts_implementation",
    "experts_implementation",
)
"""Keys with a name of transformers' own, or with `org/name` for code of the hub."""
_FETCHED = {
    "custom_generate": "names code that would be run to generate",
    "custom_pipelines": "names code that would be run in place of the model",
    "kernel_config": "names code of a hub",
    "use_kernels": "would have code of a hub fetched",
    "transformers_weights": "names other weights than those that are checked",
    "_adapter_model_path": "names other weights than those that are checked",
    "use_pretrained_backbone": "would have other weights fetched",
    "_auto_class": "has code copied to what is made of the model",
}
"""Keys that have something fetched, read or run beside what the user named, and how that is said."""
_SAID_OF_ITSELF = ("_name_or_path", "_model_name_or_path")
"""Where a config was; nothing is read there."""
_WORDS = ("label2id", "task_specific_params")
"""Maps whose keys are words of a task, whichever they are."""


def read_json(file: Path, name: str) -> dict[str, Any]:
    """A JSON object from a file of a model."""
    refuse_stub(file, name)
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            str(file), f"cannot be read as JSON: {error}", "a JSON object", "download the model again"
        ) from None
    if is_nested(tree):  # which libraries walk over by recursion
        raise UserError(str(file), "is nested too deeply", "a model's settings", "download the model again")
    if not isinstance(tree, dict):
        raise UserError(str(file), f"holds {excerpt(tree)}", "a JSON object", "download the model again")
    return tree


def check_config(folder: Path, name: str, trust_remote_code: bool) -> None:
    """config.json: there, JSON, of a known type, and asking for no code."""
    file = folder / "config.json"
    if not file.is_file():
        found = "no config.json" if any(folder.iterdir()) else "nothing: it is empty"
        raise UserError(
            name,
            f"the folder {folder} holds {found}",
            "config.json, safetensors and a tokenizer",
            "name the folder that save_pretrained wrote, or download the model again",
        )
    config = read_json(file, name)
    if not isinstance(config.get("model_type"), str) and "auto_map" not in config:
        raise UserError(
            str(file),
            "has no model_type",
            'for example "model_type": "llama"',
            "copy config.json from the model's page",
        )
    if config.get("model_type") not in architectures.model_types():
        refuse_code(config, file, name, trust_remote_code)
    _refuse_hostile(config, file, trust_remote_code)
    if (generation := folder / "generation_config.json").is_file():
        _refuse_hostile(read_json(generation, name), generation, trust_remote_code)


def check_tokenizer_settings(file: Path, name: str, trust_remote_code: bool, *, is_native: bool) -> None:
    """tokenizer_config.json: asking for no code (which is not needed where the tokenizer is ours), and for no file elsewhere.

    Raises:
        UserError: names the key.
    """
    settings = read_json(file, name)
    if not is_native:
        refuse_code(settings, file, name, trust_remote_code)
    named = settings.get("fast_tokenizer_files") or []
    if not isinstance(named, list) or not all(isinstance(part, str) and is_plain(part) for part in named):
        raise _hostile(file, "fast_tokenizer_files", named, "names files that are read as the tokenizer")
    if settings.get("init_inputs"):
        raise _hostile(file, "init_inputs", settings["init_inputs"], "would be given to the tokenizer as files")


def _refuse_hostile(config: dict[str, Any], file: Path, trust_remote_code: bool) -> None:
    """Keys with which a config takes a decision that is the user's: which code runs, and which files are read."""
    for path, section in _sections(config):
        for key, value in section.items():
            if why := _hostility(key, value, trust_remote_code, top=not path):
                raise _hostile(file, path + key, value, why)


def _hostility(key: str, value: Any, trust_remote_code: bool, top: bool) -> str:
    """Why a key may not stand in a config; nothing where it may."""
    if key.endswith("_implementation_internal") or (key in _IMPLEMENTATIONS and not _is_of_no_hub(value)):
        return "names an implementation, which may be code of a hub"
    if key == "auto_map" and not top:
        return "names Python code for a part of the model"
    if key == "trust_remote_code" and value and not trust_remote_code:
        return "would have code run that comes with a model: that is for the user to say"
    if key in _FETCHED and value not in (None, False):
        return _FETCHED[key]
    if key.startswith("_") and key not in _SAID_OF_ITSELF and isinstance(value, str | list) and "/" in str(value):
        return "is a setting of transformers' own, which no model has to say"
    return ""


def _hostile(file: Path, key: str, value: Any, why: str) -> UserError:
    last = key.rpartition(".")[2]
    return UserError(
        f"{file}: {key}", f"{excerpt(value)} {why}", "a config without this key", f"remove {last} from {file}"
    )


def _is_of_no_hub(value: Any) -> bool:
    values = value.values() if isinstance(value, dict) else [value]
    return all(item is None or (isinstance(item, str) and "/" not in item) for item in values)


def refuse_methods(config: dict[str, Any], file: Path, kind: type) -> None:
    """Refuses keys that are methods of the class of configs, at any depth: as attributes of a config they would take their place.

    Raises:
        UserError: names the key.
    """
    for path, section in _sections(config):
        if path.rpartition(".")[0].rpartition(".")[2] in _WORDS:
            continue
        if methods := [key for key in section if key == "__dict__" or callable(getattr(kind, key, None))]:
            raise UserError(
                f"{file}: {path}{methods[0]}",
                "would replace a part of the program",
                "a setting",
                f"remove {methods[0]} from {file}",
            )


def _sections(tree: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each map of a tree, in lists too, with the path that leads to its keys; however deeply they are nested."""
    left = [("", tree)]
    while left:
        path, part = left.pop()
        if isinstance(part, dict):
            yield path, part
        inner = part.items() if isinstance(part, dict) else enumerate(part)
        left += [(f"{path}{key}.", value) for key, value in inner if isinstance(value, dict | list)]


def refuse_code(config: dict[str, Any], file: Path, name: str, trust_remote_code: bool) -> None:
    """Raises UserError where a file names Python code that is not trusted, or lies in another repository."""
    if "auto_map" not in config:
        return
    if not trust_remote_code:
        raise UserError(
            str(file),
            "auto_map: this model wants to run Python code that comes with it",
            "a model that transformers knows itself",
            f"read the .py files of {name}; if you trust them: luthier ... --trust-remote-code",
        )
    if "--" in json.dumps(config["auto_map"]):
        raise _hostile(
            file,
            "auto_map",
            config["auto_map"],
            "names code of another repository, which is not the one that is trusted",
        )
