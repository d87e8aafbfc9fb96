"""A `.gguf` file becomes a transformers folder: once, in the cache, under the file's hash.

Converting takes 20 s for 135 M parameters, most of it the tokenizer's; the folder loads in under 1 s.
The weights are those of the quantized file, dequantized: beside figures of such a model that has to be said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from luthier.errors import UserError, excerpt
from luthier.system.faults import damage_told
from luthier.system.files import sha256
from luthier.system.paths import cache_dir, cache_folder
from luthier.system.streams import Say
from luthier.system.words import human_bytes

LAYOUT = 1
"""Raised when the conversion changes, so that older folders in a cache are not taken."""

FLOAT32_PARAMETERS = 1_000_000_000
"""Up to here the folder is float32, which holds scale * level + minimum exactly as the dequantization computed it.
(bfloat16 rounds two thirds of the values of a Q4_1 file, by up to 2^-9.) float32 costs disk, not memory: a file of
135 M parameters is 538 MB, loads as float32 by mapping (0.37 GB peak) and as bfloat16 in the same time. Above, bfloat16
keeps disk and time in bounds."""

_MAGIC = b"GGUF"
_SPLIT_COUNT = "split.count"
_BLOCKS = "block_count"
_SIZES = (
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "expert_count",
    "attention.head_count",
    "attention.key_length",
)


def convert(file: Path, say: Say) -> Path:
    """The transformers folder of a GGUF file: safetensors, tokenizer, chat template, generation config.

    Raises:
        UserError: not a GGUF file, truncated, of an architecture that transformers cannot read, or with a tokenizer
            whose split of text is not known.
        EnvironmentProblem: the cache cannot be written.
    """
    digest = sha256(file)
    target = _target(digest)
    if target.is_dir():
        return target

    from luthier.models.patches.gguf_read_once import gguf_read_once

    with gguf_read_once():
        header = _header(file)
        size = human_bytes(file.stat().st_size)
        say(f"{file.name}: converting {size} to safetensors, once; later loads take a second")
        with cache_folder(target) as folder:
            _convert(file, folder, header)
            (folder / "luthier_source.json").write_text(
                json.dumps({"gguf": file.name, "sha256": digest, **header}, indent=2), encoding="utf-8"
            )
    return target


def converted(file: Path) -> Path | None:
    """The folder of a file that was converted before."""
    target = _target(sha256(file))
    return target if target.is_dir() else None


def _target(digest: str) -> Path:
    return cache_dir() / "gguf" / f"{digest}-{LAYOUT}"


def _whole_name(file: Path) -> str:
    """By a name alone transformers would take weights from a file of that name in the working directory, if there is one."""
    return str(file.absolute())


def _header(file: Path) -> dict[str, Any]:
    """What has to be known before the file is read by transformers."""
    from gguf import GGUFReader

    with file.open("rb") as opened:
        magic = opened.read(4)
    if magic != _MAGIC:
        raise _not_whole(file, f"this is no GGUF file: it starts with {excerpt(magic)}")
    with damage_told(
        file, lambda error: _not_whole(file, f"the GGUF file is damaged or cut off: {excerpt(str(error))}")
    ):
        reader = GGUFReader(_whole_name(file))
        end = max((int(tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors), default=0)
        if end > file.stat().st_size:
            raise _not_whole(file, f"the file ends at byte {file.stat().st_size}; its tensors end at {end}")

        def value(key: str) -> Any:
            field = reader.get_field(key)
            return field.contents() if field is not None else None

        if (parts := value(_SPLIT_COUNT)) and parts > 1:
            raise UserError(
                str(file),
                f"one of {parts} parts of a model",
                "one file",
                "gguf-split --merge, or the model's safetensors",
            )
        architecture = value("general.architecture")
        _refuse_odd_sizes(file, reader.tensors, {key: value(f"{architecture}.{key}") for key in (_BLOCKS, *_SIZES)})
        return {
            "architecture": architecture,
            "tokenizer": value("tokenizer.ggml.model"),
            "split": value("tokenizer.ggml.pre"),
            "file_type": value("general.file_type"),
            "parameters": sum(int(tensor.n_elements) for tensor in reader.tensors),
        }


def _not_whole(file: Path, found: str) -> UserError:
    return UserError(str(file), found, "a whole .gguf file", "download the file again")


def _refuse_odd_sizes(file: Path, tensors: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Raises UserError where the file names more blocks than it has, or a size that none of its tensors has room for: the model is built by
    what is named, with time and memory to match.
    """
    numbers = (re.match(r"blk\.(\d{1,9})\.", tensor.name) for tensor in tensors)
    most = dict.fromkeys(_SIZES, max((int(side) for tensor in tensors for side in tensor.shape), default=0))
    most[_BLOCKS] = len({number[1] for number in numbers if number})
    for key, found in named.items():
        sizes = found if isinstance(found, list) else [found]
        if any(isinstance(size, int) and size > most[key] for size in sizes):
            raise _not_whole(file, f"it names a {key} of {excerpt(found)}, and its tensors have room for {most[key]}")


def _convert(file: Path, folder: Path, header: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    from luthier.models.load import quiet

    tokenizer = _tokenizer(file, header)
    dtype = torch.float32 if header["parameters"] <= FLOAT32_PARAMETERS else torch.bfloat16
    with quiet(), _read_by_transformers(file, header):
        model, report = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=_whole_name(file),
            quantization_config=GgufConfig(dequantize=True),
            dtype=dtype,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name
        )
    missing, other = sorted(report["missing_keys"]), sorted(report["mismatched_keys"])
    if missing or other:
        found = f"the file lacks {len(missing)} weights, the first is {missing[0]}" if missing else ""
        if other:
            name, stored, expected = other[0]
            found = f"{name} is {list(stored)} in the file, and {list(expected)} by the sizes that the file names"
        raise UserError(str(file), found, "a whole model", "the model's safetensors")
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _tokenizer(file: Path, header: dict[str, Any]) -> Any:
    """The tokenizer in the file, with the split that its name asks for."""
    from transformers import AutoTokenizer

    from luthier.models.patches.gguf_pretokenizers import split_of, transformers_splits

    name = header["split"]
    split = None
    if header["tokenizer"] == "gpt2":
        split = split_of(name) if isinstance(name, str) else None
        if split is None and not (isinstance(name, str) and transformers_splits(name)):
            raise UserError(
                str(file),
                f"tokenizer.ggml.pre is {excerpt(name)}: how this tokenizer splits text is not known here",
                "a name that says how; guessing would train on wrong tokens",
                "the model's own folder with tokenizer.json",
            )
    with _read_by_transformers(file, header):
        tokenizer = AutoTokenizer.from_pretrained(
            str(file.parent), gguf_file=_whole_name(file), trust_remote_code=False
        )
    if split is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = split
    return tokenizer


def _read_by_transformers(file: Path, header: dict[str, Any]) -> AbstractContextManager[None]:
    """Raises UserError in the place of whatever transformers makes of what it does not know, or of damage."""
    return damage_told(
        file,
        lambda error: UserError(
            str(file),
            f"transformers cannot read it (architecture {header['architecture']}): {excerpt(str(error), 200)}",
            "an architecture and a quantization that it knows",
            "the model's safetensors",
        ),
    )
