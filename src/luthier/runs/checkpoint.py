"""Atomic save, verified load; safetensors and JSON only.

A checkpoint is a folder that is whole or absent (`system/files.py`). Loading verifies; a damaged checkpoint is named and the next older
one is used; none left is an error, never a silent fresh start.

`pack` and `unpack` are here because what torch has (`torch.save`, also with `weights_only`, and the metadata of
`torch.distributed.checkpoint`) is pickled, and because equal states must be equal files: a test holds a resumed run's against an
unbroken one's, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from luthier.errors import EnvironmentProblem
from luthier.system.files import MANIFEST, OURS, as_json, remove_folder, require_room, verify, write_folder
from luthier.system.owners import refuse_foreign

PREFIX = "step-"
TENSORS, STATE = "tensors.safetensors", "state.json"
OTHER_RUN = "it is of another run"


def pack(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON of a tree of dicts, lists, tuples and scalars, with its tensors moved to `tensors` and named in their place."""
    if isinstance(tree, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = tree.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"dict": [[pack(key, tensors), pack(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return {type(tree).__name__: [pack(value, tensors) for value in tree]}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"a checkpoint cannot hold a {type(tree).__name__}")


def unpack(packed: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of `pack`."""
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {unpack(key, tensors): unpack(value, tensors) for key, value in content}
    values = [unpack(value, tensors) for value in content]
    return tuple(values) if kind == "tuple" else values


def _name(step: int) -> str:
    return f"{PREFIX}{step:06d}"


def _step_of(name: str) -> int | None:
    """The step, where it is just the name that luthier gives."""
    digits = name.removeprefix(PREFIX)
    return int(digits) if digits.isascii() and digits.isdigit() and _name(int(digits)) == name else None


class Damaged(Exception):
    """A checkpoint that cannot be gone on from; its text says why."""


class Checkpoints:
    """The checkpoints of a run: `RUN/checkpoints/step-000100/`."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self.passed_over = set[int]()
        """steps whose checkpoints cannot be gone on from: they stay, and none is deleted in their favour"""

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, oldest first."""
        folders = [path for path in self.places() if path.is_dir() and not path.is_symlink()]
        return sorted(step for path in folders if (step := _step_of(path.name)) is not None)

    def path(self, step: int) -> Path:
        return self.folder / _name(step)

    def places(self) -> list[Path]:
        """What lies under a name that luthier gives a checkpoint, whatever it is."""
        there = self.folder.iterdir() if self.folder.is_dir() else iter(())
        return [path for path in there if _step_of(path.name) is not None]

    def save(self, step: int, state: Mapping[str, Any], manifest: Mapping[str, Any], best_step: int | None) -> Path:
        """Writes `state` (a tree with tensors), re-reads it, then deletes the oldest beyond `keep` (never the best).

        Raises:
            EnvironmentProblem: it could not be written, or did not read back; older ones are untouched.
        """
        target = self.path(step)
        if target.exists() and self.wrong_with(step, manifest.get("run")) is None:
            return target  # a run that went back to an older one comes to the same state again
        tensors: dict[str, torch.Tensor] = {}
        packed = pack(dict(state), tensors)
        content = as_json(packed)
        require_room(
            target,
            sum(tensor.nbytes for tensor in tensors.values()) + len(content),
            f"the checkpoint of step {step}",
            "free space, then luthier train ... --resume",
        )

        def fill(folder: Path) -> None:
            save_file(tensors, folder / TENSORS)
            (folder / STATE).write_bytes(content)

        write_folder(target, fill, {**manifest, "step": step})
        if wrong := self.wrong_with(step, manifest.get("run")):
            raise EnvironmentProblem(
                str(target), f"was written but does not read back: {wrong}", "a disk that keeps what it is given"
            )
        self.passed_over.discard(step)
        self.prune(step, best_step)
        return target

    def prune(self, step: int, best_step: int | None) -> None:
        """Deletes the oldest beyond `keep`; never that of `step`, the newest, and never the best."""
        older = [other for other in self.steps() if other not in (best_step, step, *self.passed_over)]
        for old in older[: -(self.keep - 1) or None]:
            remove_folder(self.path(old))

    def wrong_with(self, step: int, run: str | None = None) -> str | None:
        """Why the checkpoint of `step` cannot be gone on from, by its files; None where it can.

        Args:
            run: the id of the run that must have written it; any, where it is not known.
        """
        folder = self.path(step)
        if wrong := verify(folder):
            return wrong
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if missing := [name for name in (TENSORS, STATE) if name not in manifest["files"]]:
            return f"{MANIFEST} does not have {missing[0]}"
        if run is not None and manifest.get("run") != run:
            return OTHER_RUN
        if manifest.get("step") != step:
            return f"it is of step {manifest.get('step')}"
        return None

    def verified(self, step: int, run: str) -> dict[str, Any]:
        """The state saved at `step` by the run of that id.

        Raises:
            Damaged: as `load`, or its files are not what was written.
        """
        if wrong := self.wrong_with(step, run):
            raise Damaged(wrong)
        return self.load(step)

    def load(self, step: int) -> dict[str, Any]:
        """The state saved at `step`, of a checkpoint that was verified.

        Raises:
            Damaged: it is no state.
            UserError: it is of another user of the machine.
            OSError: it cannot be read.
        """
        folder = self.path(step)
        for path in (folder, folder / STATE, folder / TENSORS):
            refuse_foreign(path)
        try:
            packed = json.loads((folder / STATE).read_text(encoding="utf-8"))
            state = unpack(packed, load_file(folder / TENSORS))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            raise Damaged(f"{STATE} is no state of a run ({type(error).__name__})") from None
        if not isinstance(state, dict):
            raise Damaged(f"{STATE} is no state of a run")
        return state

    def strangers(self) -> list[str]:
        """What lies among the checkpoints, or in one, and was not written by luthier; none of it is opened."""
        if not self.folder.is_dir():
            return []
        inside = {MANIFEST, TENSORS, STATE}
        others = [path for path in self.folder.iterdir() if _step_of(path.name) is None]
        others += [path for step in self.steps() for path in self.path(step).iterdir() if path.name not in inside]
        return sorted(str(path) for path in others if not path.name.startswith(OURS))
