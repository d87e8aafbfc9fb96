"""How a run begins, and how a run that goes on comes to the same beginning.

What a policy began with is not computed a second time: a decomposition of a weight is not equal to the bit on two machines,
and a file that was read may be another one now. A run keeps it in RUN/beginning and reads it back, in every process and
at every resume.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from luthier.errors import UserError
from luthier.kernels.lora import starts_of
from luthier.models.adapters import adapter_folder, embedding_rows, load_adapter, new_tokens
from luthier.models.folder import tensors
from luthier.models.headers import Tensor
from luthier.models.new_tokens import refuse_other_tokens
from luthier.models.source import ModelSource
from luthier.policy.policy import Policy
from luthier.runs.at_step import at_step
from luthier.runs.run_folder import BEGINNING
from luthier.system.files import verify, write_folder
from luthier.tuning import Start
from luthier.types import Sample

TENSORS = "tensors.safetensors"


@dataclass(frozen=True, kw_only=True)
class RunStart(Start):
    """What a tuning method may ask for in a run."""

    source: ModelSource
    base: Mapping[str, Any]
    """what is known of the model underneath"""
    samples: Sequence[Sample]
    """what will be learned from"""
    new: Mapping[str, int]
    """tokens that the model does not have, and their ids"""
    tell: Callable[[str], None]

    def rows(self, count: int) -> list[torch.Tensor]:
        count = min(count, len(self.samples))
        return [torch.as_tensor(self.samples[index].input_ids, dtype=torch.int64) for index in range(count)]

    def load(self, model: Any, path: str) -> Any:
        """As `Start.load`.

        Raises:
            UserError: there is no adapter, or it was trained on another base or with other new tokens.
        """
        found = at_step(path)
        folder = adapter_folder(str(found.run) if found is not None else path)
        refuse_other_tokens(path, new_tokens(folder), self.new)
        if embedding_rows(folder) > model.get_input_embeddings().weight.shape[0]:
            raise UserError(
                "tuning.adapter_path",
                f"{path} was trained with new tokens, which this run's tokenizer does not have",
                "the same tokens in data.add_tokens, in the same order",
                "data.add_tokens=[...], as in the config.yaml of that run",
            )
        adapted = load_adapter(model, folder, trainable=True, base=self.base)
        if found is not None:
            found.put_into(adapted, found.weights())
        return adapted

    def stored(self, name: str) -> torch.Tensor:
        # A model without its head is stored without the prefix that the whole one has, or the other way round.
        found = [key for key in self._files if name.endswith(f".{key}") or key.endswith(f".{name}")]
        key = name if name in self._files else found[0] if len(found) == 1 else ""
        if not key or not self._files[key].dtype.startswith(("F", "BF")):
            what = f"hold {key} as {self._files[key].dtype}" if key else f"do not hold {name}"
            raise UserError(
                "model.path",
                f"the files of {self.source.name} {what}",
                "safetensors with the model's own names, in 16 or 32 bits",
                "init_lora_weights=true",
            )
        with safe_open(self._files[key].file, framework="pt") as file:
            weight: torch.Tensor = file.get_tensor(key)
        return weight

    @cached_property
    def _files(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in tensors(self.source.folder, self.source.name)}

    def say(self, text: str) -> None:
        self.tell(text)


def beginning_of(policy: Policy) -> dict[str, torch.Tensor]:
    """What the policy began with, as far as the base's own files do not hold it; call it at step 0.

    That is A0 and B0 of layers that count from them, and where the adapter switched off is not the beginning, the adapter.
    """
    found = starts_of(policy)
    if hasattr(policy.model, "disable_adapter") and not policy.starts_at_base:
        found |= {name: parameter.data for name, parameter in policy.named_parameters() if parameter.requires_grad}
    return found


def keep(run: Path, policy: Policy, run_id: str) -> None:
    """Writes RUN/beginning, if there is something to keep."""
    held = {name: tensor.cpu().contiguous() for name, tensor in beginning_of(policy).items()}
    if held:
        write_folder(run / BEGINNING, lambda folder: save_file(held, folder / TENSORS), {"step": 0, "run": run_id})


def put(run: Path, policy: Policy) -> None:
    """Puts RUN/beginning into a policy: into A0 and B0, and into what it remembers as its reference.

    Raises:
        UserError: it is damaged, or of another configuration.
    """
    starts = starts_of(policy)
    if not starts and policy.initial is None:
        return  # nobody looks back
    wanted = beginning_of(policy)
    if not wanted:
        return  # it began as the base's own files say
    held = read(run)
    if held.keys() != wanted.keys():
        raise UserError(
            str(run / BEGINNING),
            f"holds {len(held)} tensors, the policy began with {len(wanted)} of other names",
            "what this run began with",
            "resume with the config.yaml of the run's folder",
        )
    for name, start in starts.items():
        start.copy_(held[name])
    if policy.initial is not None:
        policy.initial = {name: held[name].to(wanted[name].device) for name in wanted if name not in starts}


def read(run: Path) -> dict[str, torch.Tensor]:
    """What a run began with, by the names of the policy's parameters and buffers.

    Raises:
        UserError: it is not there, or damaged.
    """
    if wrong := verify(run / BEGINNING):
        raise UserError(
            str(run / BEGINNING), wrong, "what the run began with", "copy the run's folder again, or start a new run"
        )
    return load_file(run / BEGINNING / TENSORS)
