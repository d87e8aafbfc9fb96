"""What a run says of itself (RUN/manifest.json), and whether a resume is the same run.

The manifest is the first file that a run writes, and it proves that the folder is a run's. It carries the run's id, which
every checkpoint has too, and a seal.
"""

from __future__ import annotations

import hashlib
import json
import platform
import secrets
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import component
from luthier.config import RunConfig
from luthier.config.documents import read_yaml, to_line
from luthier.config.plain_yaml import OF_A_RUN
from luthier.errors import UserError
from luthier.runs import run_folder
from luthier.runs.recorder import read_lines
from luthier.runs.run_folder import CONFIG, LEDGER, METRICS, REJECTED
from luthier.system.faults import FULL, faults_told
from luthier.system.files import MANIFEST, OURS, as_json, verify, write_file
from luthier.system.words import counted

if TYPE_CHECKING:
    from luthier.data.dataset.prepare import Prepared

NOT_BEGUN = "not begun"
"""The state of a run that has written what it is, and done nothing yet: the next start begins anew in its folder."""

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

LENGTHS = {"training.max_steps", "training.num_train_epochs"}
"""Keys that say how long a run is."""

PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "tokenizers", "safetensors", "numpy")
DONE = "{} is finished already; nothing to do"
OTHER_PLACE = "start again with another output_dir"


def previous(folder: Path, config: RunConfig, resume: bool) -> dict[str, Any] | None:
    """The manifest of the run that goes on; None where one begins in the folder.

    Raises:
        UserError: there is something else in the folder; or a run, and none is to go on; or the configuration changed in a
            way that changes the mathematics, with each difference; or what the run wrote is no longer what it wrote.
    """
    found = read(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    if found is None:
        run_folder.check_free(folder)
        return None
    state = found.get("state")
    if "luthier" not in found or not isinstance(state, str):
        raise UserError(
            "output_dir", f"the {MANIFEST} in {folder} is not of a run", "a new folder, or a run", OTHER_PLACE
        )
    if state == NOT_BEGUN:
        run_folder.check_free(folder, (*run_folder.FILES, run_folder.BEGINNING, *run_folder.OF_TRACKERS))
        run_folder.check_own(folder)
        return None
    if not resume:
        fix = f"add --resume to go on, or output_dir={run_folder.another(folder)}"
        raise UserError("output_dir", f"{folder} holds a run already ({state})", "a new or empty folder", fix)
    run_folder.check_own(folder)
    if sealed(found) != found:
        raise UserError(str(folder / MANIFEST), "is not what the run wrote", "it as it was", OTHER_PLACE)
    _check_config(found, folder, config)
    return found


def refuse_used(config: RunConfig) -> None:
    """What `previous` says of a run that is not to go on, for those who ask before anything is imported or written. It is asked
    again when the folder is held.

    Raises:
        UserError: the folder holds something else, or a run.
    """
    folder = Path(config.output_dir)
    with suppress(OSError):  # whoever makes the folder says it better
        if folder.is_dir():
            previous(folder, config, resume=False)


def is_complete(config: RunConfig) -> bool:
    """Whether the run that is to go on is finished, with its result and its report, and nothing is left aside that is to be
    cleared; for those who ask before anything is imported.

    Raises:
        UserError: as `previous`.
    """
    folder = Path(config.output_dir)
    try:
        found = previous(folder, config, resume=True) if folder.is_dir() else None
        if found is None or found["state"] != "finished" or not (folder / run_folder.REPORT).is_file():
            return False
        aside = [path for place in (folder, folder / run_folder.CHECKPOINTS) for path in place.glob(f"{OURS}*")]
        return not aside and has_result(config, lambda _: None)
    except OSError:  # whoever opens the folder says it better
        return False


def has_result(config: RunConfig, say: Callable[[str], None]) -> bool:
    """Whether the result of a finished run is there, as it was written."""
    makes_adapter = component.load("tuning", config.tuning.kind).makes_adapter
    place = Path(config.output_dir) / (run_folder.ADAPTER if makes_adapter else run_folder.MODEL)
    if wrong := verify(place):
        say(f"{place}: {wrong}; it is written again")
    return wrong is None


def read(path: Path) -> dict[str, Any]:
    """A manifest as it stands.

    Raises:
        UserError: it cannot be read, or is no JSON object.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(str(path), f"cannot be read: {error}", "the manifest of a run", OTHER_PLACE) from None
    if not isinstance(tree, dict):
        raise UserError(str(path), "is no JSON object", "the manifest of a run", OTHER_PLACE)
    return tree


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """With a hash over everything but the state: a resume goes on with what stands there, so it must be what was written."""
    content = {name: value for name, value in manifest.items() if name not in ("state", "seal")}
    return {**manifest, "seal": _digest(json.dumps(content, sort_keys=True).encode())}


def _check_config(found: Mapping[str, Any], folder: Path, config: RunConfig) -> None:
    if (folder / CONFIG).is_file() and _digest((folder / CONFIG).read_bytes()) != found["config"]:
        what = "was changed since the run began"
        fix = f"put it back; to train with other values: luthier train {folder / CONFIG} output_dir={run_folder.another(folder)}"
        raise UserError(str(folder / CONFIG), what, "what the run wrote", fix)
    old = flat(read_yaml(folder / CONFIG, OF_A_RUN).tree)
    new = flat(config.model_dump(mode="json"))
    changed = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(MAY_CHANGE)
    ]
    if changed:
        lines = "\n".join(f"  {key}: {old.get(key)!r} -> {new.get(key)!r}" for key in changed)
        fix = f"luthier train {folder / CONFIG} --resume, or another output_dir"
        if found["state"] == "finished" and set(changed) <= LENGTHS:
            fix = f"to train on from its result: {_further(folder, config, old, found)}"
        raise UserError(
            "--resume",
            f"the configuration is not that of the run in {folder}:\n{lines}",
            "the same configuration",
            fix,
        )


def _further(folder: Path, config: RunConfig, old: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The line that begins a run at the result of one that is finished, of as many more steps as were asked for."""
    done, training = int(found["total_steps"]), config.training
    if training.max_steps is not None:
        more = training.max_steps - done
        length = [f"training.max_steps={more if more > 0 else training.max_steps}"]
    else:
        epochs = training.num_train_epochs or 0
        rest = epochs - _epochs(folder, old)
        length = [f"training.num_train_epochs={rest if rest > 0 else epochs:g}"]
        length += ["training.max_steps=null"] if old.get("training.max_steps") is not None else []
    makes_adapter = (folder / run_folder.ADAPTER).is_dir()
    start = _from_adapter(folder, config) if makes_adapter else f"model.path={folder / run_folder.MODEL}"
    words = [str(folder / CONFIG), start, f"output_dir={run_folder.another(folder)}", *length]
    return f"luthier train {shlex.join(words)}"


def _epochs(folder: Path, old: Mapping[str, Any]) -> float:
    """How many a finished run has seen."""
    lines = [line for line in read_lines(folder / METRICS) if isinstance(line.get("epoch"), (int, float))]
    return float(lines[-1]["epoch"] if lines else old.get("training.num_train_epochs") or 0)


def _from_adapter(folder: Path, config: RunConfig) -> str:
    """The override that goes on from a run's adapter. One that began as something else than zero is saved with another rank
    and beginning than the configuration has: then the keys that belong to the adapter are left out."""
    from luthier.tuning.lora import OF_THE_ADAPTER

    own = config.tuning.model_dump(mode="json", exclude_defaults=True)
    if "init_lora_weights" not in own:
        return f"tuning.adapter_path={folder}"
    kept = {name: value for name, value in own.items() if name not in OF_THE_ADAPTER}
    return f"tuning={to_line({'kind': config.tuning.kind, **kept, 'adapter_path': str(folder)})}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a tree of maps and lists by their dotted names."""
    if isinstance(tree, Mapping):
        return {
            key: value
            for name, item in tree.items()
            for key, value in flat(item, f"{prefix}.{name}" if prefix else name).items()
        }
    if isinstance(tree, list):
        return {
            key: value for index, item in enumerate(tree) for key, value in flat(item, f"{prefix}[{index}]").items()
        }
    return {prefix: tree}


def describe(
    config: RunConfig,
    data: Prepared,
    base: Mapping[str, Any],
    *,
    before: Mapping[str, Any] | None,
    decisions: Mapping[str, Any],
    hardware: Mapping[str, Any],
    total_steps: int,
    processes: int,
    trained: str,
    trained_tensors: Mapping[str, int],
    adapter: str | None,
    teacher: str | None = None,
) -> dict[str, Any]:
    """What a run says of itself: versions, fingerprints, hardware, decisions. `before`: of the run that goes on."""
    held_out = data.eval.fingerprint if data.eval is not None else None
    on = f" on {config.model.quantization.kind}" if config.model.quantization is not None else ""
    manifest = {
        "luthier": version("luthier"),
        "id": before["id"] if before is not None else secrets.token_hex(8),
        "state": NOT_BEGUN if before is None else "running",
        "began": before.get("began") if before is not None else datetime.now(UTC).isoformat(timespec="seconds"),
        "method": f"{config.objective.kind}, {config.tuning.kind}{on}",
        "trained": trained,
        "base": dict(base),
        "total_steps": total_steps,
        "config": before["config"] if before is not None else _digest(config.resolved_yaml().encode()),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "fingerprints": {
            "data": data.train.fingerprint,
            "held_out": held_out,
            "template": data.template.fingerprint if data.template else None,
            "base": base.get("weights_hash"),
            "adapter": adapter,
            "teacher": teacher,
        },
        "template_clock": data.template.clock if data.template else None,
        "hardware": dict(hardware),
        "decisions": dict(decisions),
        "processes": processes,
        "trained_tensors": dict(trained_tensors),
    }
    return sealed(manifest)


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
        EnvironmentProblem: the folder cannot be written.
    """
    if before is not None:
        _compare(before, new, say)
    with faults_told(folder, *run_folder.WRITABLE):
        write_file(folder / MANIFEST, as_json(new))
        run_folder.keep_spare(folder)
        if before is not None:
            return
        for name in run_folder.RECORD:  # of a start that came no further than this
            (folder / name).unlink(missing_ok=True)
        write_file(folder / LEDGER, as_json(data.ledger.as_dict()))
        if data.rejected:
            lines = (json.dumps(row, ensure_ascii=False, default=str) for row in data.rejected)
            text = "\n".join(lines) + "\n"
            write_file(folder / REJECTED, text.encode("utf-8", errors="backslashreplace"))
            say(f"{counted(len(data.rejected), 'row')} that cannot be used: written to {folder / REJECTED}")
        write_file(folder / CONFIG, config.resolved_yaml().encode())


def _compare(before: Mapping[str, Any], new: Mapping[str, Any], say: Callable[[str], None]) -> None:
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
        what = ", ".join(other) or "other hardware"
        say(f"the environment changed ({what}): the run goes on, but not to the same bits")
    now = {**new["decisions"], "processes": new["processes"]}
    then = {**before["decisions"], "processes": before["processes"]}
    for name in ("processes", *ASKED_ANEW):
        if then[name] != now[name]:
            say(f"{name} {now[name]} instead of {then[name]}: the same mathematics, other bits")


def set_state(folder: Path, state: str) -> None:
    """Notes in the manifest how the run stands: running, trained, stopped, failed, finished. A run that has not begun and ends
    is one that the next start begins anew.

    Raises:
        OSError, UserError: it cannot be noted.
    """
    found = read(folder / MANIFEST)
    if found["state"] == NOT_BEGUN and state in ("failed", "stopped"):
        return
    content = as_json(found | {"state": state})
    try:
        write_file(folder / MANIFEST, content)
    except OSError as error:
        if error.errno not in FULL:
            raise
        run_folder.free_spare(folder)  # which makes room
        write_file(folder / MANIFEST, content)
    if state == "finished":
        run_folder.free_spare(folder)
