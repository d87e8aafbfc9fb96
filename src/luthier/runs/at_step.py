"""A run as it was at one of its checkpoints: `RUN/checkpoints/step-000100` is taken wherever a run is.

A checkpoint has the trained weights alone. What they are put into is the run's result, which has all the rest: base,
tokenizer, template, system text.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from luthier.errors import UserError
from luthier.models.adapters import adapter_folder, adapter_hash
from luthier.runs import manifest
from luthier.runs.checkpoint import TENSORS, Checkpoints, Damaged
from luthier.runs.run_folder import ADAPTER, CHECKPOINTS, CONFIG, MODEL
from luthier.system.files import MANIFEST, sha256

POLICY = "model."
"""How the names of a policy's parameters begin before those of its model."""
HALVES = {".lora_A.": 0, ".lora_B.": 1}
"""Of adapters that count from their start: the axis along which the start stands behind what was learned."""


@dataclass(frozen=True)
class AtStep:
    """A checkpoint of a run that has a result."""

    run: Path
    step: int

    @property
    def folder(self) -> Path:
        return self._checkpoints.path(self.step)

    @property
    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.run / CHECKPOINTS, keep=1)

    def weights(self) -> dict[str, torch.Tensor]:
        """What was trained, as it was at this step, by the names of the policy's parameters.

        Raises:
            UserError: the checkpoint is damaged, or of another run.
        """
        try:
            found = self._checkpoints.verified(self.step, str(manifest.read(self.run / MANIFEST).get("id")))
        except Damaged as error:
            others = [str(self._checkpoints.path(step)) for step in self._checkpoints.steps() if step != self.step]
            fix = f"another: {', '.join([*others, str(self.run)])}"
            raise UserError(str(self.folder), f"cannot be used: {error}", "a whole checkpoint", fix) from None
        return dict(found["weights"])

    @torch.no_grad()
    def put_into(self, model: Any, weights: Mapping[str, torch.Tensor]) -> None:
        """Makes of the run's result, as it is loaded, the model of this step.

        Raises:
            UserError: they do not fit together.
        """
        there = dict(model.named_parameters(remove_duplicate=False))
        for name, value in weights.items():
            own = there.get(name.removeprefix(POLICY))
            target = None if own is None else _counted_from_start(name, own.data, value)
            if target is None:
                what = f"its {name.removeprefix(POLICY)} is not in the run's result"
                raise UserError(str(self.folder), what, "a checkpoint of this run", f"luthier chat {self.run}")
            target.copy_(value)


def _counted_from_start(name: str, own: torch.Tensor, value: torch.Tensor) -> torch.Tensor | None:
    """The part of a result's tensor that a checkpoint has: all of it; or, where it is saved as [A; A0] and [B, -B0], the first
    half. None where the shapes are others."""
    if own.shape == value.shape:
        return own
    for part, axis in HALVES.items():
        if part in name and own.shape[axis] == 2 * value.shape[axis]:
            half = own.narrow(axis, 0, value.shape[axis])
            return half if half.shape == value.shape else None
    return None


def at_step(target: str) -> AtStep | None:
    """The checkpoint that `target` names; None where it names something else.

    Raises:
        UserError: there is no such checkpoint, or the run has no result to put it into.
    """
    path = Path(os.path.abspath(Path(target).expanduser()))
    place = path if path.name == CHECKPOINTS else path.parent
    run = place.parent
    if place.name != CHECKPOINTS or not ((run / CONFIG).is_file() and (run / MANIFEST).is_file()):
        return None
    checkpoints = Checkpoints(place, keep=1)
    steps = {checkpoints.path(step): step for step in checkpoints.steps()}
    if path not in steps:
        names = ", ".join(one.name for one in steps) or "none"
        what = "this is the folder of the checkpoints" if path == place else "there is no such checkpoint"
        newest = str(list(steps)[-1]) if steps else str(run)
        raise UserError(target, f"{what}; there are: {names}", "one of these, or the run", newest)
    if not any((run / name).is_dir() for name in (ADAPTER, MODEL)):
        raise UserError(
            target,
            "the run has no result yet, into which the weights of a checkpoint are put",
            "a run that came to its end",
            f"luthier train {run / CONFIG} --resume",
        )
    return AtStep(run, steps[path])


def hash_of_adapter(path: str) -> str:
    """What tells the adapter of RUN, CHECKPOINT or ADAPTER from others. Raises UserError where there is none."""
    found = at_step(path)
    if found is None:
        return adapter_hash(adapter_folder(path))
    own = bytes.fromhex(adapter_hash(adapter_folder(str(found.run))) + sha256(found.folder / TENSORS))
    return hashlib.blake2b(own, digest_size=16).hexdigest()
