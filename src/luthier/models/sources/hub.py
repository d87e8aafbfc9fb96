"""Models of the Hugging Face hub: the right revision, only the files that are needed, and each of them whole.

Mirrors, the token, offline mode, proxies and the cache are huggingface_hub's own settings. What it does not do is done
here: say what is wrong and what to do, never fetch pickles or code, and check the hashes of what has arrived.
"""

from __future__ import annotations

import glob
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import EnvironmentProblem, UserError, excerpt
from luthier.models.folder import PICKLES, no_weights
from luthier.models.sources.hub_record import Record, RemoteFile, commit_of_ref, remember_ref
from luthier.models.sources.pickled import BIN_FILES, convert_folder
from luthier.system.paths import cache_dir, cache_folder
from luthier.system.streams import Say
from luthier.system.words import human_bytes

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
NEVER = (*(f"*{suffix}" for suffix in PICKLES), "*.py", "*.h5", "*.msgpack", "*.gguf", "*.onnx", "consolidated*", "*/*")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAIN = "main"


def is_name(text: str) -> bool:
    """Whether a text could be `org/name` of a hub."""
    return _NAME.fullmatch(text) is not None and ".." not in text and "--" not in text


def is_wanted(file: str, trust_remote_code: bool) -> bool:
    """Whether a file of a hub model is fetched: weights in safetensors, JSON, the tokenizer's files, templates; code
    if trusted."""
    path = Path(file)
    if trust_remote_code and path.suffix == ".py":
        return True
    if path.parent.name == "additional_chat_templates" and path.suffix == ".jinja":
        return True
    if len(path.parts) > 1 or path.name.startswith("consolidated") or path.suffix in PICKLES:
        return False
    return any(path.match(pattern) for pattern in PATTERNS)


def fetch(
    name: str, revision: str | None, trust_remote_code: bool, say: Say, convert: bool = False
) -> tuple[Path, str]:
    """The folder of a hub model at a revision, and the commit that the revision names.

    Where the hub is out of reach (or its offline mode is on) the copy of an earlier download is used, and that is said.

    Args:
        name: org/name.
        revision: branch, tag or commit.
        trust_remote_code: whether Python files are fetched.
        say: gets lines of progress.
        convert: whether pickled weights are fetched and converted, where there are no safetensors.

    Raises:
        UserError: no such name, model or revision; no safetensors.
        EnvironmentProblem: gated, no network and no copy, a damaged download, no space.
    """
    if not is_name(name):
        raise UserError(f"hf:{name}", "this is no name of a model", "hf:org/name", "model=hf:org/name")
    if revision is not None and _COMMIT.fullmatch(revision):  # a commit never changes: nothing to ask
        record = Record.load(name, revision)
        if record is not None and record.is_intact(trust_remote_code):
            return record.folder, revision
        if _converted(name, revision).is_dir():
            return _converted(name, revision), revision
    listed = _list(name, revision)
    if isinstance(listed, str):
        return _from_cache(name, revision, trust_remote_code, listed, say)
    commit, files = listed
    record = Record.load(name, commit)
    if record is None or not record.is_intact(trust_remote_code):
        wanted = [file for file in files if is_wanted(file.name, trust_remote_code)]
        if not any(file.name.endswith(".safetensors") for file in wanted):
            if not _converted(name, commit).is_dir():
                pickled = [file for file in files if Path(file.name).match(BIN_FILES) and "/" not in file.name]
                if not convert or not pickled:
                    raise no_weights(f"hf:{name}", [file.name for file in files], f"hf:{name}")
                _convert(Record(name, commit, Path(), [*wanted, *pickled], trust_remote_code), say)
            remember_ref(name, revision or _MAIN, commit)
            return _converted(name, commit), commit
        record = Record(name, commit, _download(name, commit, wanted, say), wanted, trust_remote_code)
        record.verify()
        record.save()
    remember_ref(name, revision or _MAIN, commit)
    return record.folder, commit


def kept(name: str, revision: str | None = None) -> Path | None:
    """The folder of an earlier download of a revision (default: the main branch), ours or another tool's; nothing is asked of
    the hub."""
    try:
        return _from_cache(name, revision, False, "not asked", lambda text: None)[0]
    except EnvironmentProblem:
        return None


def _converted(name: str, commit: str) -> Path:
    """Where the safetensors of a model lie that was published with pickled weights alone."""
    return cache_dir() / "converted" / name.replace("/", "--") / commit


def _convert(record: Record, say: Say) -> None:
    record.folder = _download(record.name, record.commit, record.files, say)
    record.verify()
    with cache_folder(_converted(record.name, record.commit)) as folder:
        convert_folder(record.folder, folder, f"hf:{record.name}", record.code, say)


def _list(name: str, revision: str | None) -> tuple[str, list[RemoteFile]] | str:
    """The commit and its files; or, where the hub cannot be asked, why."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]

    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
    except OfflineModeIsEnabled:
        return "the hub's offline mode is on (HF_HUB_OFFLINE)"
    except HfHubHTTPError as error:
        problem = _refusal(name, revision, error)
        if isinstance(problem, str):
            return problem
        raise problem from None
    except HTTPError as error:
        return f"the hub is out of reach: {excerpt(str(error), 120)}"
    return _commit(info, name), [_remote(sibling) for sibling in info.siblings or []]


def _commit(info: ModelInfo, name: str) -> str:
    if info.sha is None or not _COMMIT.fullmatch(info.sha):
        raise EnvironmentProblem(
            f"hf:{name}", f"the hub names no commit ({excerpt(info.sha)})", "a hub's answer", "check HF_ENDPOINT"
        )
    return info.sha


def _remote(sibling: RepoSibling) -> RemoteFile:
    lfs = sibling.lfs
    return RemoteFile(
        sibling.rfilename,
        sibling.size,
        lfs.sha256 if lfs is not None else None,
        sibling.blob_id if lfs is None else None,
    )


def _refusal(name: str, revision: str | None, error: Any) -> UserError | EnvironmentProblem | str:
    """What an HTTP error of the hub means; a text where a copy of an earlier download may serve instead."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return EnvironmentProblem(
            f"hf:{name}",
            "the model is gated: it is for accounts that accepted its terms",
            "your account's access",
            f"accept the terms on the model's page (hf.co/{name}), then: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(
            f"hf:{name}",
            f"there is no revision {revision!r}",
            "a branch, a tag or a commit of this model",
            "leave model.revision out, or look at the model's history on the hub",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(
            f"hf:{name}",
            "there is no such model on the hub, or it is private",
            "org/name as the hub writes it",
            "check the name; for a private model: hf auth login",
        )
    status = error.response.status_code
    if status >= 500 or status in (408, 429):
        return f"the hub answers with status {status}"
    return EnvironmentProblem(
        f"hf:{name}",
        f"the hub refuses with status {status}: {excerpt(str(error.server_message or ''), 120)}",
        "an answer",
        "hf auth whoami shows which account is used",
    )


def _download(name: str, commit: str, wanted: list[RemoteFile], say: Say) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]

    size = sum(file.size or 0 for file in wanted)
    _check_space(Path(constants.HF_HUB_CACHE), name, commit, wanted)
    say(f"hf:{name}: {len(wanted)} files, {human_bytes(size)}, commit {commit[:12]}; downloading what is not here yet")
    try:
        return Path(
            snapshot_download(name, revision=commit, allow_patterns=[glob.escape(file.name) for file in wanted])
        )
    except HfHubHTTPError as error:
        problem = _refusal(name, commit, error)
        raise (_broken(name, problem) if isinstance(problem, str) else problem) from None
    except LocalEntryNotFoundError as error:
        raise _broken(name, str(error.__cause__ or error)) from None
    except (HTTPError, OSError) as error:
        raise _broken(name, str(error)) from None


def _broken(name: str, why: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"hf:{name}",
        f"the download broke off: {excerpt(why, 200)}",
        "a network, and space on the disk",
        f"luthier download hf:{name}; files that are complete are not fetched again",
    )


def _check_space(cache: Path, name: str, commit: str, wanted: list[RemoteFile]) -> None:
    snapshot = cache / f"models--{name.replace('/', '--')}" / "snapshots" / commit
    need = sum(file.size or 0 for file in wanted if not (snapshot / file.name).exists())
    existing = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if need > free:
        raise EnvironmentProblem(
            f"hf:{name}",
            f"{human_bytes(need)} to download, {human_bytes(free)} free in {existing}",
            "space for the files",
            "HF_HOME=/path/with/space luthier ...",
        )


def _from_cache(name: str, revision: str | None, trust_remote_code: bool, why: str, say: Say) -> tuple[Path, str]:
    """The copy of an earlier download, ours or another tool's."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    commit = revision if revision and _COMMIT.fullmatch(revision) else commit_of_ref(name, revision or _MAIN)
    record = Record.load(name, commit) if commit is not None else None
    if record is not None and record.folder.is_dir():
        record.verify()
        folder = record.folder
    elif commit is not None and _converted(name, commit).is_dir():
        folder = _converted(name, commit)
    else:
        code = ("*.py",) if trust_remote_code else ()
        never = [pattern for pattern in NEVER if pattern not in code]
        try:
            folder = Path(
                snapshot_download(
                    name,
                    revision=revision,
                    local_files_only=True,
                    allow_patterns=[*PATTERNS, *code],
                    ignore_patterns=never,
                )
            )
        except LocalEntryNotFoundError:
            raise EnvironmentProblem(
                f"hf:{name}",
                f"{why}, and there is no whole copy of {revision or _MAIN} on this machine",
                "a network, or a copy",
                f"luthier download hf:{name}, where there is a network; or HF_ENDPOINT=https://a.mirror",
            ) from None
    say(f"hf:{name}: {why}; using the copy of commit {folder.name[:12]}")
    return folder, folder.name
