"""The header of a safetensors file, read and checked here before any library maps the file.

The format: 8 bytes of length, a JSON object, the data. Everything that a file says of itself is held against the file: where its
tensors lie, how large they are, that none lies in another and that nothing lies between them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import UserError, excerpt
from luthier.models.files import refuse_stub
from luthier.system.strict_json import parse, reason

FLOATING = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Of types that weights are computed with, in safetensors' words and in torch's."""

MOST_BYTES = 100_000_000
"""Of a header: more is no header of a model, and the library takes no more either."""
MOST_AXES = 64
"""torch has no tensors of more."""
_LARGE = 1_000_000
"""Bytes of a header that are no danger to the memory, whatever they say."""
_LEAST_ENTRY = len('"":{"dtype":"U8","shape":[],"data_offsets":[0,0]},')
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
_KEYS = {"dtype", "shape", "data_offsets"}
_ABOUT = "__metadata__"
_ABOUT_BEGINS = re.compile(rb'"__metadata__"\s*+:\s*+\{\s*+')
_TEXT = rb'"(?:[^"\\]++|\\.)*+"'
_ABOUT_ENTRY = re.compile(_TEXT + rb"\s*+:\s*+" + _TEXT + rb"\s*+,?\s*+", re.DOTALL)
_MOST_ABOUT = 10_000
"""Texts of a file about itself; each may be as long as the header."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor lies, from the header of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    """first byte in the file"""
    end: int
    """one past the last byte"""


def file_tensors(file: Path, name: str) -> list[Tensor]:
    """The tensors of one safetensors file, in the order of its header; their data are not read.

    Args:
        name: of the model, as the user wrote it.

    Raises:
        UserError: the file is empty, a pointer, cut off, or its header does not agree with it or with itself.
    """
    refuse_stub(file, name)
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > min(size - 8, MOST_BYTES):
            raise _refused(file, f"damaged or cut off: {size} bytes, with a header of {length}")
        raw = opened.read(length)
    try:
        found = _tensors(file, _entries(raw), 8 + length)
    except ValueError as error:
        raise _refused(file, f"its header is damaged: {reason(error)}") from None
    end = max((tensor.end for tensor in found), default=8 + length)
    if end != size:
        what = "cut off" if size < end else "damaged"
        raise _refused(file, f"{size} bytes, but its header speaks of {end}: the file is {what}")
    return found


def _refused(file: Path, found: str) -> UserError:
    return UserError(str(file), found, "a whole safetensors file", "download it again")


def _entries(raw: bytes) -> dict[str, Any]:
    """What the header says of each tensor.

    Raises:
        ValueError: it is no JSON object of objects.
    """
    if len(raw) > _LARGE and _is_stuffed(raw):
        raise ValueError("it holds more than tensors")
    tree = parse(raw.decode("utf-8"))
    if not isinstance(tree, dict):
        raise ValueError(f"it is {excerpt(tree, 40)}")
    about = tree.pop(_ABOUT, {})
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise ValueError(f"{_ABOUT} holds something else than texts")
    return tree


def _is_stuffed(raw: bytes) -> bool:
    """Whether there are more values in a header than so many bytes of tensors have: parsed, they would fill the memory."""
    begin, end = _about(raw)
    objects, lists, commas = (raw.count(sign) - raw.count(sign, begin, end) for sign in (b"{", b"[", b","))
    most = (len(raw) - end + begin) // _LEAST_ENTRY + 2  # the header itself, and the map of texts
    return objects > most or max(lists, commas // 8) > 4 * objects


def _about(raw: bytes) -> tuple[int, int]:
    """Where in a header the texts about the file begin and end, which may hold any signs; of many texts, where the first do."""
    if (found := _ABOUT_BEGINS.search(raw)) is None:
        return 0, 0
    end = found.end()
    for _ in range(_MOST_ABOUT):
        if (entry := _ABOUT_ENTRY.match(raw, end)) is None:
            break
        end = entry.end()
    return found.end(), end


def _tensors(file: Path, entries: dict[str, Any], begin: int) -> list[Tensor]:
    """The tensors of the entries; `begin` is the first byte of the data.

    Raises:
        ValueError: an entry is no tensor's, or they do not lie one after the other.
    """
    found = [_tensor(file, key, entry, begin) for key, entry in entries.items()]
    end = begin
    for tensor in sorted(found, key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != end:
            how = "lies in another tensor" if tensor.start < end else f"begins {tensor.start - end} bytes too late"
            raise ValueError(f"{excerpt(tensor.name)} {how}")
        end = tensor.end
    return found


def _tensor(file: Path, name: str, entry: Any, begin: int) -> Tensor:
    if not isinstance(entry, dict) or entry.keys() != _KEYS:
        raise ValueError(f"{excerpt(name)} is {excerpt(entry, 60)}")
    dtype, shape, places = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"{excerpt(name)} is of type {excerpt(dtype, 40)}")
    if not _whole_numbers(shape) or len(shape) > MOST_AXES:
        raise ValueError(f"{excerpt(name)} is of shape {excerpt(shape, 60)}")
    if not _whole_numbers(places) or len(places) != 2:
        raise ValueError(f"{excerpt(name)} lies at {excerpt(places, 60)}")
    bits = math.prod(shape) * _BITS[dtype]
    if bits != 8 * (places[1] - places[0]):
        raise ValueError(
            f"{excerpt(name)} has {places[1] - places[0]} bytes, {dtype} of {excerpt(shape, 60)} {bits / 8:g}"
        )
    return Tensor(name, dtype, tuple(shape), file, begin + places[0], begin + places[1])


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)
