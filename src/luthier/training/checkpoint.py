"""Atomic save, verified load; safetensors and JSON only.

A checkpoint is a folder that is whole or absent (`system/files.py`). Loading verifies; a damaged checkpoint is named and the next older
one is used; none left is an error, never a silent fresh start.

`pack` and `unpack` are here because what torch has (`torch.save`, also with `weights_only`, and the metadata of
`torch.distributed.checkpoint`) is pickled, and because equal states must be equal files: a test holds a resumed run's against an
unbroken one's, byte for byte.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from luthier.errors import EnvironmentProblem, UserError
from luthier.system.files import MANIFEST, verify, write_folder, write_json

PREFIX = "step-"
TENSORS, STATE = "tensors.safetensors", "state.json"


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


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


class Checkpoints:
    """The checkpoints of a run: `RUN/checkpoints/step-000100/`."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, oldest first."""
        found = self.folder.glob(f"{PREFIX}*") if self.folder.exists() else []
        return sorted(int(path.name.removeprefix(PREFIX)) for path in found if path.name.removeprefix(PREFIX).isdigit())

    def path(self, step: int) -> Path:
        return self.folder / f"{PREFIX}{step:06d}"

    def save(self, step: int, state: Mapping[str, Any], manifest: Mapping[str, Any], best_step: int | None) -> Path:
        """Writes `state` (a tree with tensors), re-reads it, then deletes the oldest beyond `keep` (never the best).

        Raises:
            EnvironmentProblem: it could not be written, or did not read back; older ones are untouched.
        """
        target = self.path(step)
        if target.exists() and verify(target) is None:
            return target  # a run that went back to an older one comes to the same state again
        tensors: dict[str, torch.Tensor] = {}
        packed = pack(dict(state), tensors)

        def fill(folder: Path) -> None:
            save_file(tensors, folder / TENSORS)
            write_json(folder / STATE, packed)

        write_folder(target, fill, {**manifest, "step": step})
        if wrong := verify(target):
            raise EnvironmentProblem(
                str(target), f"was written but does not read back: {wrong}", "a disk that keeps what it is given"
            )
        for old in [other for other in self.steps() if other not in (best_step, step)][: -(self.keep - 1) or None]:
            shutil.rmtree(self.path(old))
        return target

    def load(self, step: int) -> dict[str, Any]:
        """The state saved at `step`; call `verify` first."""
        folder = self.path(step)
        state: dict[str, Any] = unpack(
            json.loads((folder / STATE).read_text(encoding="utf-8")), load_file(folder / TENSORS)
        )
        return state

    def newest_valid(self, say: Callable[[str], None]) -> int:
        """The newest checkpoint whose files are whole; damaged ones are named.

        Raises:
            UserError: there is none.
        """
        damaged = []
        for step in reversed(self.steps()):
            wrong = verify(self.path(step))
            if wrong is None:
                if strange := sorted(set(_names(self.path(step))) - {MANIFEST, TENSORS, STATE}):
                    say(f"{self.path(step)}: {', '.join(strange)} was not written by this run and is not opened")
                return step
            damaged.append(f"{self.path(step)}: {wrong}")
            say(f"damaged checkpoint {damaged[-1]}; the next older one is tried")
        found = "; ".join(damaged) if damaged else "there is no checkpoint yet"
        raise UserError(
            str(self.folder),
            found,
            "a whole checkpoint",
            "start again with another output_dir, or without --resume in an empty one",
        )
