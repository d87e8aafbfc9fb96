"""A model's weights in its own files, by the names that the model has for them, one at a time.

transformers renames, stacks and joins weights when it loads a model. Here the same is done, and undone, for one weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from luthier.models.folder import tensors
from luthier.models.headers import FLOATING, Tensor
from luthier.models.new_tokens import grown

_WRAPPED = re.compile(r"\.(base_layer|original_module|token_adapter)(?=\.)")
_OF_ADAPTER = re.compile(r"\.(lora_\w+|modules_to_save|trainable_tokens_\w+)\.")

Read = Callable[[str], torch.Tensor]


class NotByName(Exception):
    """Why weights cannot be taken out of the files one by one; for a sentence."""


@dataclass(frozen=True)
class Change:
    """New values for some weights."""

    names: tuple[str, ...]
    """as the model calls them"""
    make: Callable[[Read], Mapping[str, torch.Tensor]]
    """From what reads a stored weight to the new values, by the same names, in the dtype in which they are written."""


@dataclass(frozen=True)
class _Place:
    """Where a weight lies."""

    names: tuple[str, ...]
    """in the files: one, several of equal content (tied weights that are all stored), or the pieces of a joined weight"""
    converter: Any = None
    """transformers' way to join the pieces"""
    patterns: tuple[str, ...] = ()
    """which of its patterns each piece has"""


def own_weights(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters of the model without its adapters, by the names that they have without adapters; tied ones under each
    of their names."""
    return {
        _WRAPPED.sub("", name): parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not _OF_ADAPTER.search(name)
    }


def release(model: Any) -> None:
    """Frees the model's own weights and keeps its adapters: it computes nothing any more."""
    for parameter in own_weights(model).values():
        parameter.data = torch.empty(0, dtype=parameter.dtype)


class Stored:
    """The files of a model that is loaded, and afterwards may be released.

    Args:
        model: the transformers model, whose modules may carry adapters; its embeddings may have more rows than the files.
        folder: where its files lie.
        name: for messages.

    Raises:
        NotByName: nothing is known of how the files became this model.
    """

    def __init__(self, model: Any, folder: Path, name: str) -> None:
        if getattr(model.config, "quantization_config", None) is not None:
            raise NotByName("its weights are stored quantized")
        if model.is_remote_code():
            raise NotByName("its code comes with it")
        self.model = model
        self.tensors: dict[str, Tensor] = {tensor.name: tensor for tensor in tensors(folder, name)}
        weights = own_weights(model)
        self.shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        first: dict[int, str] = {}
        self._tied = {name: first.setdefault(id(weight), name) for name, weight in weights.items()}
        self._places = self._find()

    def canonical(self, name: str) -> str:
        """The first of the names of a tied weight."""
        return self._tied[name]

    def dtype(self, name: str) -> torch.dtype:
        """In which a weight is stored."""
        return self._raw(self._place(name).names[0]).dtype

    def read(self, name: str) -> torch.Tensor:
        """A weight as it is stored; where new tokens gave it rows, in float32 with them."""
        place = self._place(name)
        if place.converter is None:
            value = self._raw(place.names[0])
        else:
            converter = deepcopy(place.converter)
            for piece, pattern in zip(place.names, place.patterns, strict=True):
                converter.add_tensor(name, piece, pattern, self._raw(piece))
            (value,) = converter.convert(name, model=self.model, config=self.model.config).values()
            value = value[0] if isinstance(value, list) else value
        rows = self.shapes[name][0] if self.shapes[name] else 0
        return grown(value.float(), rows) if value.ndim and value.shape[0] < rows else value

    def grown_weights(self) -> list[str]:
        """Weights that have more rows than are stored."""
        return [
            name
            for name, place in self._places.items()
            if place.converter is None and self.tensors[place.names[0]].shape != self.shapes[name]
        ]

    def check(self, names: Sequence[str]) -> None:
        """Whether these weights can be read and written by name.

        Raises:
            NotByName: one cannot.
        """
        for name in names:
            place, shape = self._place(name), self.shapes[name]
            if place.converter is None:
                stored = self.tensors[place.names[0]].shape
                fits = stored[1:] == shape[1:] and len(stored) == len(shape) and stored[:1] <= shape[:1]
            else:
                pieces = self._pieces(name, torch.empty(shape, device="meta"))
                fits = {key: tuple(piece.shape) for key, piece in pieces.items()} == {
                    key: self.tensors[key].shape for key in place.names
                }
            if not fits:
                raise NotByName(f"{name} is not stored as the model holds it")

    def rewritten(self, changes: Sequence[Change], dtype: torch.dtype | None) -> Iterator[tuple[str, torch.Tensor]]:
        """Everything that is stored, in the order of the files, with the changes.

        Args:
            dtype: of the unchanged floating tensors; None: as they are stored, to the bit.
        """
        changed = {piece: change for change in changes for name in change.names for piece in self._place(name).names}
        done = set[int]()
        for name in self.tensors:
            change = changed.get(name)
            if change is None:
                value = self._raw(name)
                yield name, value.to(dtype) if dtype is not None and value.is_floating_point() else value
            elif id(change) not in done:
                done.add(id(change))
                for own, value in change.make(self.read).items():
                    yield from self._pieces(own, value).items()

    def size_bytes(self, dtype: torch.dtype | None) -> int:
        """Of all tensors, the floating ones in `dtype`; None: as they are stored."""
        return sum(
            math.prod(tensor.shape) * dtype.itemsize
            if dtype is not None and tensor.dtype.startswith(("F", "BF"))
            else tensor.end - tensor.start
            for tensor in self.tensors.values()
        )

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise NotByName(f"{name} is not in the files under a name that is known")
        return self._places[name]

    def _raw(self, name: str) -> torch.Tensor:
        """Mapped, not copied."""
        from safetensors import safe_open

        with safe_open(self.tensors[name].file, "pt") as opened:
            found: torch.Tensor = opened.get_tensor(name)
        return found

    def _pieces(self, name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is written of a weight, by the names in the files."""
        from transformers.core_model_loading import revert_weight_conversion

        place = self._place(name)
        if place.converter is None:
            return {key: value if index == 0 else value.clone() for index, key in enumerate(place.names)}
        pieces: dict[str, torch.Tensor] = revert_weight_conversion(self.model, {name: value})
        return pieces

    def _find(self) -> dict[str, _Place]:
        found: dict[str, _Place] = {}
        unclear = set[str]()
        for stored, first, pattern, converter in _known_names(self.model, self.tensors, self.shapes):
            name = self._tied[first]
            before = found.get(name)
            if converter is None:
                if before is not None and before.converter is not None:
                    unclear.add(name)
                found[name] = _Place((*(before.names if before else ()), stored))
            else:
                if len(converter.target_patterns) != 1 or (before is not None and before.converter is None):
                    unclear.add(name)
                names, patterns = (before.names, before.patterns) if before else ((), ())
                found[name] = _Place((*names, stored), converter, (*patterns, pattern))
        return {name: place for name, place in found.items() if name not in unclear}


def _known_names(model: Any, stored: Iterable[str], known: Iterable[str]) -> Iterator[tuple[str, str, str, Any]]:
    """Stored names, and the weights that they belong to, as
    `transformers.core_model_loading.convert_and_load_state_dict_in_model` finds them; without what has no place in the model.

    Yields:
        the stored name, the model's, and the pattern and the converter by which pieces are joined; "" and None: it is whole.
    """
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    conversions = getattr(model, "_weight_conversions", None) or []
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    prefix, places = model.base_model_prefix, dict.fromkeys(known, True)
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, places)
        if name not in places and key in places:
            name, pattern = rename_source_key(key, [], [], prefix, places)
        if name in places:
            yield key, name, pattern or "", by_pattern[pattern] if pattern is not None else None


def hold_as_stored(model: Any, folder: Path, name: str, otherwise: torch.dtype) -> None:
    """Holds each weight and buffer of a model without adapters in the dtype in which it is stored.

    Args:
        otherwise: the dtype of those that are not found by name, or are stored in a type that is not computed with.
    """
    values: dict[str, torch.Tensor] = {**own_weights(model), **dict(model.named_buffers(remove_duplicate=False))}
    there = {tensor.name: tensor.dtype for tensor in tensors(folder, name)}
    found: dict[int, set[str]] = {}
    for stored, own, _pattern, _converter in _known_names(model, there, values):
        found.setdefault(id(values[own]), set()).add(there[stored])
    for value in values.values():
        if value.is_floating_point():
            kinds = found.get(id(value), set())
            known = FLOATING.get(next(iter(kinds))) if len(kinds) == 1 else None
            value.data = value.data.to(getattr(torch, known) if known else otherwise)


def save_settings(model: Any, folder: Path, dtype: str) -> None:
    """config.json and generation_config.json beside weights of `dtype`."""
    model.config.dtype = dtype
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if hasattr(model, "generation_config"):  # a model of scores has none
        model.generation_config.save_pretrained(folder)
