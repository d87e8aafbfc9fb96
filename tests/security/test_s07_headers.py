"""S7: the header of a safetensors file is read and checked by luthier before a library maps the file."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from luthier.errors import UserError
from luthier.models.adapters import _read_weights
from luthier.models.headers import file_tensors

F32 = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
TWO = {"a": F32, "b": {**F32, "data_offsets": [16, 32]}}


def write(file: Path, header: Any, data: int = 32, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + bytes(data))
    return file


def changed(**changes: Any) -> dict[str, Any]:
    """The header, with other values of its second tensor."""
    return {**TWO, "b": {**TWO["b"], **changes}}


ATTACKS: dict[str, dict[str, Any]] = {
    "no file at all": {"header": b"", "data": 0, "length": 0},
    "a length beyond the file": {"header": TWO, "length": 10_000},
    "the largest length": {"header": TWO, "length": 2**64 - 1},
    "no JSON": {"header": b"{'a': 1}"},
    "no UTF-8": {"header": b'{"\xff": {}}'},
    "a list": {"header": [TWO]},
    "nested": {"header": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"},
    "a number of 5,000 digits": {
        "header": b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,32]}}'
    },
    "a key twice": {"header": json.dumps(TWO)[:-1].encode() + b', "a": ' + json.dumps(F32).encode() + b"}"},
    "a key of an entry twice": {
        "header": b'{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16],"data_offsets":[16,32]}}'
    },
    "two in one place": {"header": changed(data_offsets=[0, 16]), "data": 16},
    "one in another": {"header": changed(data_offsets=[8, 24]), "data": 24},
    "a hole": {"header": changed(data_offsets=[20, 36]), "data": 36},
    "a hole at the beginning": {"header": {"b": changed()["b"]}},
    "bytes of nobody at the end": {"header": TWO, "data": 48},
    "bytes of nobody, and no tensor": {"header": {}, "data": 48},
    "cut off": {"header": TWO, "data": 31},
    "backwards": {"header": changed(data_offsets=[32, 16])},
    "below zero": {"header": changed(data_offsets=[-16, 0])},
    "a place that is a fraction": {"header": changed(data_offsets=[16.0, 32.0])},
    "a place that is true": {"header": changed(shape=[], dtype="U8", data_offsets=[16, True])},
    "three places": {"header": changed(data_offsets=[16, 24, 32])},
    "fewer numbers than its shape": {"header": changed(shape=[2, 3])},
    "more numbers than its shape": {"header": changed(shape=[2])},
    "a shape that overflows": {"header": changed(shape=[2**32, 2**32, 2])},
    "a shape below zero": {"header": changed(shape=[-2, -2])},
    "a shape that is a text": {"header": changed(shape="22")},
    "a shape of too many axes": {"header": changed(shape=[2, 2, *[1] * 100])},
    "an unknown type": {"header": changed(dtype="O32")},
    "a type that is a list": {"header": changed(dtype=["F32"])},
    "a type of another width": {"header": changed(dtype="F64")},
    "an entry too few": {"header": {"a": {"dtype": "F32", "shape": [2, 2]}}},
    "an entry too many": {"header": changed(code="import os")},
    "an entry that is null": {"header": {**TWO, "c": None}},
    "metadata with more than texts": {"header": {**TWO, "__metadata__": {"a": {"b": 1}}}},
    "metadata that is a list": {"header": {**TWO, "__metadata__": ["a"]}},
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_s7_a_header_that_does_not_agree_is_refused(attack: str, tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors", **ATTACKS[attack])
    with pytest.raises(UserError) as caught:
        file_tensors(file, "org/name")
    assert "model.safetensors" in str(caught.value)
    assert "again" in caught.value.fix
    assert len(str(caught.value)) < 600


def test_s7_what_libraries_write_is_read(tmp_path: Path) -> None:
    """Of every type that torch and safetensors have in common, with scalars, nothing at all, and odd names."""
    kinds = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2,
             torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64)  # fmt: skip
    tensors = {f"blocks[{number}].{{w}}": torch.zeros(2, 3).to(kind) for number, kind in enumerate(kinds)}
    tensors |= {"scalar": torch.tensor(1.0), "none": torch.zeros(0, 4), "ü\n": torch.zeros(1)}
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt", "config": json.dumps({"a": [{}] * 50})})
    assert {tensor.name: tensor.shape for tensor in file_tensors(tmp_path / "a.safetensors", "a")} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    save_file({}, tmp_path / "empty.safetensors")
    assert file_tensors(tmp_path / "empty.safetensors", "a") == []


@pytest.mark.parametrize("is_first", [True, False])
def test_s7_long_texts_about_the_file_are_no_tensors(is_first: bool, tmp_path: Path) -> None:
    """As other programs write them: the whole of a training's settings, or a model's licence, in one text."""
    about = {"__metadata__": {"config": json.dumps([{"a": [1, "\\"]}] * 80_000), "note": "é, [" * 9, "none": ""}}
    header = {**about, **TWO} if is_first else {**TWO, **about}
    assert [one.name for one in file_tensors(write(tmp_path / "model.safetensors", header), "org/name")] == ["a", "b"]


def fuzzed(draw: random.Random) -> bytes:
    """A whole file, with a few bytes, characters or values changed."""
    header: Any = {**TWO, "__metadata__": {"format": "pt"}}
    for _ in range(draw.randrange(3)):
        odd = draw.choice(
            [0, -1, 16, 17, 2**31, 2**63, 2**64, 1.5, True, None, "", "F64", "U8", [], [2], {}, [0, 16], [16, 32]]
        )
        entry = {**TWO["b"], draw.choice(["dtype", "shape", "data_offsets", "more"]): odd}
        header = {**header, draw.choice(["a", "b", "c", ""]): draw.choice([entry, odd, {}])}
    raw = bytearray(json.dumps(header).encode())
    for _ in range(draw.choice([0, 0, 1, 2, 3])):
        place = draw.randrange(len(raw))
        raw[place : place + draw.randrange(3)] = bytes(
            draw.choice(b'{}[]",:0129eF-\\ \x00\xff') for _ in range(draw.randrange(3))
        )
    length = len(raw) + draw.choice([0] * 8 + [1, -1, 2**40])
    return max(length, 0).to_bytes(8, "little") + bytes(raw) + bytes(draw.choice([32] * 6 + [0, 16, 31, 33, 48]))


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.prove)])
def test_s7_fuzzed_headers(count: int, tmp_path: Path) -> None:
    """Each is refused in one clean error, or read as the library reads it; what the library refuses is never taken."""
    draw, file, taken = random.Random(7), tmp_path / "model.safetensors", 0
    for _ in range(count):
        file.write_bytes(fuzzed(draw))
        try:
            ours = {tensor.name: (list(tensor.shape), tensor.dtype) for tensor in file_tensors(file, "org/name")}
        except UserError as error:
            assert len(str(error)) < 600  # noqa: PT017 - what else it may be is said below
            continue
        taken += 1
        with safe_open(file, "pt") as opened:
            theirs = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
            assert ours == {key: (part.get_shape(), part.get_dtype()) for key, part in theirs.items()}
    assert count / 40 < taken < count * 0.95, "the test shows both"


@pytest.mark.parametrize(
    "unit",
    [
        b'"%07d":{},',
        b'"%07d":[],',
        b'"%07d":0,',
        b'"%07d":"",',
        pytest.param(b'"%07d":{"dtype":"U8","shape":[1,1,1,1,1,1],"data_offsets":[0,0]},', marks=pytest.mark.prove),
    ],
)
def test_s7_a_header_cannot_fill_the_memory(unit: bytes, tmp_path: Path) -> None:
    """Megabytes that would be hundreds of megabytes once parsed."""
    raw = b"{" + b"".join(unit % number for number in range(3_000_000 // len(unit % 0)))[:-1] + b"}"
    raw = b'{"__metadata__":' + raw + b"}" if b'""' in unit else raw
    file = write(tmp_path / "model.safetensors", raw, 0)
    tracemalloc.start()
    with pytest.raises(UserError):
        file_tensors(file, "org/name")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (12 if b"dtype" in unit else 2) * file.stat().st_size, "tensors with nothing in them are tensors"


def test_s7_an_adapter_too(tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.safetensors"
    save_file({"a": torch.zeros(4)}, file)
    assert _read_weights(tmp_path).keys() == load_file(file).keys()
    write(file, ATTACKS["a key twice"]["header"])
    with pytest.raises(UserError, match="twice"):
        _read_weights(tmp_path)
