"""Reads pickled weights, `pytorch_model*.bin`, and writes them as safetensors.

Started as a file by `pickled.py`, in a process of its own, and the only place of luthier that opens a pickle: with
torch's loader for weights alone, which refuses every name that a pickle asks for but those of tensors. Arguments: the
folder with the files, the folder to write to, the most bytes of a file to write. Lines on stdout, each a JSON object:
{"file", "done", "of"} when a file begins; at the end {"tensors", "bytes"}, or {"file", "refused"}.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import save_file

MOST_SHARING = 8
"""Tied weights are stored once and written under each name; a file that would grow by more than this is none of a model."""

NUMBERS = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


class Refused(Exception):
    """What is wrong with a file."""


def main(source: Path, target: Path, names: list[str], most_bytes: int) -> None:
    written: dict[str, str] = {}
    parts: list[Path] = []
    size = 0
    for done, name in enumerate(names):
        say(file=name, done=done, of=len(names))
        try:
            for shard in shards(checked(source / name), most_bytes):
                if twice := sorted(written.keys() & shard.keys()):
                    raise Refused(f"holds {twice[0]}, which {written[twice[0]]} holds too")
                part = target / f"part-{len(parts):05d}"
                save_file(shard, part, metadata={"format": "pt"})
                parts.append(part)
                written |= dict.fromkeys(shard, name)
                size += sum(tensor.nbytes for tensor in shard.values())
        except Refused as refused:
            say(file=name, refused=str(refused))
            sys.exit(1)
    finish(target, parts, size)
    say(tensors=len(written), bytes=size)


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def checked(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file: nothing else, and finite.

    Raises:
        Refused: it asks for code, is damaged, or holds something else.
    """
    try:
        # Old files are no zip archives and cannot be mapped.
        tree = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except UnpicklingError as error:
        raise Refused(f"asks for more than tensors, and was not run: {asked_for(str(error))}") from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError, TypeError, IndexError) as error:
        raise Refused(f"is damaged: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(tree, Mapping) or not tree:
        raise Refused(f"holds no weights by name, but {type(tree).__name__}")
    tensors = {}
    for key, value in tree.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise Refused(f"holds under {str(key)[:100]!r} no weight, but {type(value).__name__}")
        refuse_strange(key, value)
        tensors[key] = value.detach()
    if (size := sum(tensor.nbytes for tensor in tensors.values())) > MOST_SHARING * (stored := file.stat().st_size):
        raise Refused(f"speaks of {size} bytes of weights, and has {stored}: they share their numbers")
    return tensors


def refuse_strange(key: str, value: torch.Tensor) -> None:
    """Raises Refused for a tensor that is not a weight with numbers of its own, all finite."""
    if value.is_meta:
        raise Refused(f"holds {key} without its numbers: it was on meta when it was saved")
    if value.is_quantized or value.dtype not in NUMBERS:
        raise Refused(f"holds {key} as {str(value.dtype).removeprefix('torch.')}, which is no type of weights")
    if value.nbytes > value.untyped_storage().nbytes():
        raise Refused(f"holds {key} as {list(value.shape)} with fewer numbers than that: they overlap")
    if value.is_floating_point() and not value.isfinite().all():
        raise Refused(f"holds NaN or infinity in {key}")


def asked_for(message: str) -> str:
    """The name that a pickle asked for, out of torch's long message."""
    name = re.search(r"(?:GLOBAL|class|function|global:?) ([\w]+(?:\.\w+)+)", message)
    return name[1] if name else message.strip().splitlines()[-1][:200]


def shards(tensors: dict[str, torch.Tensor], most_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors in pieces of at most so many bytes, or of one tensor; each a copy of its own, as safetensors asks."""
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for key, tensor in tensors.items():
        if shard and size + tensor.nbytes > most_bytes:
            yield shard
            shard, size = {}, 0
        shard[key] = tensor.clone(memory_format=torch.contiguous_format)
        size += tensor.nbytes
    yield shard


def finish(target: Path, parts: list[Path], size: int) -> None:
    """Gives the files their names, and writes the index where they are several."""
    from safetensors import safe_open

    if len(parts) == 1:
        parts[0].rename(target / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        with safe_open(part, "pt") as opened:
            weight_map |= dict.fromkeys(opened.keys(), name)
        part.rename(target / name)
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[4:], int(sys.argv[3]))
