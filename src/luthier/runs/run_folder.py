"""A run's folder: who may write it, what it says of itself, and whether a resume is the same run."""

from __future__ import annotations

import fcntl
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from luthier.config import RunConfig
from luthier.config.documents import read_yaml
from luthier.errors import EnvironmentProblem, UserError
from luthier.system.files import MANIFEST, as_json, is_leftover, is_still, settle, write_file, write_json
from luthier.system.words import counted

if TYPE_CHECKING:
    from luthier.data.dataset.prepare import Prepared

CONFIG, LEDGER, REJECTED, LOCK = "config.yaml", "ledger.json", "rejected.jsonl", ".lock"
BEFORE_THE_MANIFEST = {CONFIG, LEDGER, REJECTED, LOCK}
"""What may lie in the folder of a run that was killed before it began."""

ASKED_ANEW = ("max_tokens_per_micro_batch", "activation_checkpointing")
"""Decisions that a resume may ask for anew, where there was no room for the old ones: they change rounding only."""

MAY_CHANGE = (
    "output_dir",
    "report_to",
    "training.logging_steps",
    "training.save_steps",
    "training.save_total_limit",
    "training.load_best_checkpoint",
    "training.sample_prompts",
    *(f"training.{name}" for name in ASKED_ANEW),
)
"""Keys that a resume may have other values of: they do not touch the mathematics of a step."""

PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "tokenizers", "safetensors", "numpy")


@contextmanager
def locked(folder: Path, resume: bool, enabled: bool) -> Iterator[None]:
    """Makes the folder, keeps a second run out of it, and takes an empty one away again.

    Raises:
        UserError: it holds something already (without resume), or nothing (with it), or another run is writing it.
        EnvironmentProblem: it cannot be written.
    """
    if not enabled:
        yield
        return
    created = [path for path in [folder, *folder.parents] if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            "output_dir", f"{folder} is or lies under a file", "a folder", "choose another output_dir"
        ) from None
    except OSError as error:
        raise EnvironmentProblem(
            "output_dir",
            f"{folder} cannot be written: {error.strerror}",
            "a writable folder",
            "choose another output_dir",
        ) from None
    try:
        with lock:
            _lock(lock, folder)
            try:
                _check_content(folder, resume)
                yield
            finally:
                (folder / LOCK).unlink(missing_ok=True)
    finally:
        for path in created:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _lock(lock: IO[str], folder: Path) -> None:
    """Takes the lock, and makes sure that it is still the file of that name: who held it before took the file away."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        current = is_still(lock, folder / LOCK)
    except BlockingIOError:
        current = False
    except OSError as error:
        found = f"{folder} cannot be locked: {error.strerror}"
        raise EnvironmentProblem("output_dir", found, "a file system with locks", "choose another output_dir") from None
    if not current:
        fix = "wait for it, or choose another output_dir"
        raise UserError("output_dir", f"another run is writing {folder}", "one run a folder", fix)


def _check_content(folder: Path, resume: bool) -> None:
    is_run = (folder / MANIFEST).is_file()
    content = {path.name for path in folder.iterdir() if not is_leftover(path.name)}
    if resume and not is_run:
        raise UserError("output_dir", f"{folder} holds no run to resume", "the folder of a run", "leave --resume out")
    if not resume and not content <= BEFORE_THE_MANIFEST:
        state = _read(folder / MANIFEST).get("state", "unknown") if is_run else ""
        found = (
            f"{folder} holds a run already ({state})"
            if is_run
            else f"{folder} is not empty ({', '.join(sorted(content)[:3])})"
        )
        fix = f"add --resume to go on, or output_dir={folder}-2" if is_run else f"output_dir={folder}-2"
        raise UserError("output_dir", found, "a new or empty folder", fix)


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            str(path), f"cannot be read: {error}", "the manifest of a run", "start again with another output_dir"
        ) from None
    if not isinstance(tree, dict):
        raise UserError(str(path), "is no JSON object", "the manifest of a run", "start again with another output_dir")
    return tree


def previous(folder: Path, config: RunConfig) -> dict[str, Any]:
    """The manifest of the run that is resumed.

    Raises:
        UserError: the configuration changed in a way that changes the mathematics; with each difference.
    """
    old = _flat(read_yaml(folder / CONFIG).tree)
    new = _flat(config.model_dump(mode="json"))
    changed = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(MAY_CHANGE)
    ]
    if changed:
        lines = "\n".join(f"  {key}: {old.get(key)!r} -> {new.get(key)!r}" for key in changed)
        raise UserError(
            "--resume",
            f"the configuration is not that of the run in {folder}:\n{lines}",
            "the same configuration",
            f"luthier train {folder / CONFIG} --resume, or another output_dir",
        )
    return _read(folder / MANIFEST)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping):
        return {
            key: value
            for name, item in tree.items()
            for key, value in _flat(item, f"{prefix}.{name}" if prefix else name).items()
        }
    if isinstance(tree, list):
        return {
            key: value for index, item in enumerate(tree) for key, value in _flat(item, f"{prefix}[{index}]").items()
        }
    return {prefix: tree}


def manifest(
    config: RunConfig,
    data: Prepared,
    base: Mapping[str, Any],
    *,
    decisions: Mapping[str, Any],
    hardware: Mapping[str, Any],
    total_steps: int,
    processes: int,
    trained: str,
    trained_tensors: Mapping[str, int],
    adapter: str | None,
) -> dict[str, Any]:
    """What a run says of itself: versions, fingerprints, hardware, decisions."""
    held_out = data.eval.fingerprint if data.eval is not None else None
    on = f" on {config.model.quantization.kind}" if config.model.quantization is not None else ""
    return {
        "luthier": version("luthier"),
        "state": "running",
        "method": f"{config.objective.kind}, {config.tuning.kind}{on}",
        "trained": trained,
        "base": dict(base),
        "total_steps": total_steps,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "fingerprints": {
            "data": data.train.fingerprint,
            "held_out": held_out,
            "template": data.template.fingerprint if data.template else None,
            "base": base.get("weights_hash"),
            "adapter": adapter,
        },
        "template_clock": data.template.clock if data.template else None,
        "hardware": dict(hardware),
        "decisions": dict(decisions),
        "processes": processes,
        "trained_tensors": dict(trained_tensors),
    }


def begin(
    folder: Path,
    config: RunConfig,
    data: Prepared,
    new: dict[str, Any],
    before: Mapping[str, Any] | None,
    say: Callable[[str], None],
) -> None:
    """Writes the run's description; for a resume compares it with the one that is there.

    Raises:
        UserError: data, template or base are not those of the run.
    """
    if before is not None:
        changed = [name for name, value in new["fingerprints"].items() if before["fingerprints"].get(name) != value]
        if changed:
            raise UserError(
                "--resume",
                f"the {' and the '.join(changed)} changed since the run began",
                "what the run began with",
                "put it back, or start again with another output_dir",
            )
        other = [
            f"{name} {before['versions'].get(name)} -> {value}"
            for name, value in new["versions"].items()
            if before["versions"].get(name) != value
        ]
        if other or before["hardware"] != new["hardware"]:
            say(
                f"the environment changed ({', '.join(other) or 'other hardware'}): the run goes on, but not to the same bits"
            )
        now = {**new["decisions"], "processes": new["processes"]}
        for name in ("processes", *ASKED_ANEW):
            if before["decisions"][name] != now[name]:
                say(f"{name} {now[name]} instead of {before['decisions'][name]}: the same mathematics, other bits")
        settle(folder)
        settle(folder / "checkpoints")
    else:
        write_json(folder / LEDGER, data.ledger.as_dict())
        if data.rejected:
            lines = (json.dumps(row, ensure_ascii=False, default=str) for row in data.rejected)
            (folder / REJECTED).write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
            say(f"{counted(len(data.rejected), 'row')} that cannot be used: written to {folder / REJECTED}")
        (folder / CONFIG).write_text(config.resolved_yaml(), encoding="utf-8")
    _replace(folder / MANIFEST, new)


def set_state(folder: Path, state: str, enabled: bool = True) -> None:
    """Notes in the manifest how the run stands: running, stopped, failed, finished."""
    if enabled and (folder / MANIFEST).is_file():
        _replace(folder / MANIFEST, _read(folder / MANIFEST) | {"state": state})


def _replace(path: Path, tree: Mapping[str, Any]) -> None:
    write_file(path, as_json(dict(tree)))
