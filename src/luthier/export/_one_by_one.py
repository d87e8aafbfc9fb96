"""An adapter merged into the weights of its base one layer at a time, by peft, as it merges them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

from luthier.models.stored import Change, NotByName, Read, Stored, own_weights


def merging(stored: Stored, dtype: torch.dtype | None) -> list[Change]:
    """What becomes of the weights that the adapters of a model touch, and of those that have new rows.

    The model must still hold its weights in float32: they are compared with what is read from the files.

    Args:
        dtype: of the written weights; None: each as its base's is stored.

    Raises:
        NotByName: a weight is not in the files as the model has it.
    """
    core, weights = stored.model, own_weights(stored.model)
    _refuse_torn(core)
    changes = list[Change]()
    taken = set[str]()
    for path, module in _adapted(core):
        inner = [name for name in weights if name.startswith(f"{path}.")]
        names = {name.removeprefix(f"{path}."): stored.canonical(name) for name in inner}
        if taken.isdisjoint(names.values()):  # else a head that shares the weight of the embeddings
            taken.update(names.values())
            changes.append(Change(tuple(names.values()), partial(_merged, module, names, weights, stored, dtype)))
    for name in stored.grown_weights():
        if name not in taken:
            taken.add(name)
            changes.append(Change((name,), partial(_grown, name, stored, dtype)))
    stored.check(sorted(taken))
    for name in taken:
        if not torch.equal(stored.read(name).float(), weights[name].data):
            raise NotByName(f"{name} is not stored as the model holds it")
    return changes


def _adapted(core: Any) -> Iterator[tuple[str, Any]]:
    """The outermost modules of adapters, which may lie in each other."""
    found: list[str] = []
    for path, module in core.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not inside:
            found.append(path)
            yield path, module


def _refuse_torn(core: Any) -> None:
    """Embeddings and head that are one weight in the base, and are trained whole and apart: they need two places."""
    edges = [edge for edge in (core.get_input_embeddings(), core.get_output_embeddings()) if edge is not None]
    if not any(isinstance(edge, ModulesToSaveWrapper) for edge in edges):
        return
    base = [
        edge.original_module.weight if isinstance(edge, AuxiliaryTrainingWrapper) else edge.weight for edge in edges
    ]
    if base[0] is base[-1] and edges[0].weight is not edges[-1].weight:
        raise NotByName("embeddings and head share a weight in the base, and no more")


def _merged(
    module: Any,
    names: Mapping[str, str],
    weights: Mapping[str, torch.nn.Parameter],
    stored: Stored,
    dtype: torch.dtype | None,
    read: Read,
) -> dict[str, torch.Tensor]:
    """The new weights of one module: computed in float32, then rounded.

    Args:
        names: of its weights in the module, and in the model.
    """
    for first in names.values():
        weights[first].data = read(first).float()
    if isinstance(module, AuxiliaryTrainingWrapper) or hasattr(module, "unload_and_optionally_merge_module"):
        plain = module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
    else:
        module.merge(safe_merge=True)
        plain = module.get_base_layer()
    merged = {first: plain.get_parameter(name).detach() for name, first in names.items()}
    for first in merged:
        weights[first].data = torch.empty(0)
    return {first: value.to(dtype or stored.dtype(first)) for first, value in merged.items()}


def _grown(name: str, stored: Stored, dtype: torch.dtype | None, read: Read) -> dict[str, torch.Tensor]:
    return {name: read(name).to(dtype or stored.dtype(name))}
