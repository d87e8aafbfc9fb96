"""A model's weights written as safetensors while they come, so that one file of them is in memory and no more.

The hub's client (`split_torch_state_dict_into_shards`) plans files from a dictionary of all tensors, which must be there first.
Here they come one after the other, and how many files there will be is known at the end: the names are given then. Names
and index are those that it writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 1_000_000_000
"""Most bytes of one file; a tensor that is larger has a file of its own."""

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def write_shards(
    folder: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    most_bytes: int,
    wrote: Callable[[int], None] | None = None,
) -> None:
    """Writes `model.safetensors`, or `model-00001-of-0000N.safetensors` and their index.

    Args:
        tensors: name and tensor, each name once; taken one after the other.
        wrote: gets the bytes that are written so far, after each file.

    Raises:
        OSError, SafetensorError: no room.
    """
    from safetensors.torch import save_file

    parts: list[Path] = []
    files: dict[str, int] = {}
    size = count = 0
    for shard in _cut(tensors, most_bytes):
        parts.append(folder / f"part-{len(parts):05d}")
        save_file(shard, parts[-1], metadata={"format": "pt"})
        files |= dict.fromkeys(shard, len(parts))
        size += sum(tensor.nbytes for tensor in shard.values())
        count += sum(tensor.numel() for tensor in shard.values())
        shard.clear()  # before the next one grows
        if wrote is not None:
            wrote(size)
    if len(parts) == 1:
        parts[0].rename(folder / SINGLE)
        return
    names = [f"model-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]
    for part, name in zip(parts, names, strict=True):
        part.rename(folder / name)
    index = {
        "metadata": {"total_parameters": count, "total_size": size},
        "weight_map": {tensor: names[number - 1] for tensor, number in sorted(files.items())},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _cut(tensors: Iterable[tuple[str, torch.Tensor]], most_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors in pieces of at most so many bytes, or of one tensor; whoever takes a piece empties it."""
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > most_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
    yield shard
