"""What a model's folder must hold, and what it must not, found out before any library reads it.

Pickled weights and Python files can run code when they are loaded; a pointer of git-lfs, an empty file or a cut-off
download would end in another library's traceback, or in wrong numbers. Each is named here, with its remedy.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import UserError, excerpt
from luthier.models import architectures
from luthier.models.shards import INDEX, SINGLE

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_LFS_POINTER = b"version https://git-lfs"
_ANNEX_POINTER = "annex/objects/"
_HTML = (b"<!doctype html", b"<html")
FLOATING = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Of types that weights are computed with, in safetensors' words and in torch's."""
_READ = (".safetensors", ".json", ".model", ".jinja", ".txt", ".tiktoken")
"""Ends of the names of files that are read, if they are there."""
_MAX_HEADER_BYTES = 100_000_000
_ATTENTION_KEYS = ("_attn_implementation_internal", "_attn_implementation", "attn_implementation")
_KNOWN_ATTENTION = frozenset({None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"})


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


def check_folder(folder: Path, name: str, trust_remote_code: bool) -> None:
    """Refuses a folder that cannot be loaded, or not safely.

    Raises:
        UserError: names what is missing, damaged or refused, and the fix.
    """
    refuse_dangling_links(folder)
    check_config(folder, name, trust_remote_code)
    check_weights(folder, name)
    check_tokenizer(folder, name, trust_remote_code)


def check_config(folder: Path, name: str, trust_remote_code: bool) -> None:
    """config.json: there, JSON, of a known type, and asking for no code."""
    file = folder / "config.json"
    if not file.is_file():
        found = "no config.json" if any(folder.iterdir()) else "nothing: it is empty"
        raise UserError(
            name,
            f"the folder {folder} holds {found}",
            "config.json, safetensors and a tokenizer",
            "name the folder that save_pretrained wrote, or download the model again",
        )
    config = read_json(file, name)
    if not isinstance(config.get("model_type"), str) and "auto_map" not in config:
        raise UserError(
            str(file),
            "has no model_type",
            'for example "model_type": "llama"',
            "copy config.json from the model's page",
        )
    if config.get("model_type") not in architectures.model_types():
        _refuse_code(config, file, name, trust_remote_code)
    for path, section in _sections(config, ""):
        for key in _ATTENTION_KEYS:
            if key in section and (key == _ATTENTION_KEYS[0] or not _plain_attention(section[key])):
                raise UserError(
                    f"{file}: {path}{key}",
                    f"{excerpt(section[key])} names an implementation of attention, which may be code of a hub",
                    "a config without this key",
                    f"remove {key} from {file}",
                )


def _plain_attention(value: Any) -> bool:
    values = value.values() if isinstance(value, dict) else [value]
    return all(isinstance(item, str | None) and item in _KNOWN_ATTENTION for item in values)


def _sections(tree: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, tree
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _sections(value, f"{path}{key}.")


def _refuse_code(config: dict[str, Any], file: Path, name: str, trust_remote_code: bool) -> None:
    if "auto_map" in config and not trust_remote_code:
        raise UserError(
            str(file),
            "auto_map: this model wants to run Python code that comes with it",
            "a model that transformers knows itself",
            f"read the .py files of {name}; if you trust them: luthier ... --trust-remote-code",
        )


def check_tokenizer(folder: Path, name: str, trust_remote_code: bool) -> None:
    """A tokenizer is there, whole, and asks for no code."""
    present = [file for file in (folder / part for part in TOKENIZER_FILES) if file.is_file()]
    present += [file for file in sorted(folder.glob("*.tiktoken")) if file not in present]
    if not present:
        raise UserError(
            name,
            f"the folder {folder} holds no tokenizer",
            "tokenizer.json or tokenizer.model",
            "copy tokenizer.json and tokenizer_config.json from the model that this one was made of",
        )
    for file in present:
        refuse_stub(file, name)
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and not native_type(folder):
        _refuse_code(read_json(settings, name), settings, name, trust_remote_code)


def native_type(folder: Path) -> str:
    """The model_type of a folder whose architecture is one of ours, so that the code that it names is not needed; else
    nothing."""
    file = folder / "config.json"
    found = read_json(file, str(folder)).get("model_type") if file.is_file() else None
    return found if found in architectures.model_types() else ""


def check_weights(folder: Path, name: str) -> None:
    """Safetensors are there, every shard is, and none is cut off."""
    weight_files(folder, name)
    for _ in tensors(folder, name):
        pass


def weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors files that make up the model: those of the index, or the single one.

    Raises:
        UserError: none, only pickled ones, or a shard that is missing.
    """
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX, name).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(value, str) for value in weight_map.values()):
            raise UserError(
                str(folder / INDEX), "has no weight_map", "names of tensors and their files", "download the model again"
            )
        shards = sorted(set(weight_map.values()))
        if strange := [
            shard
            for shard in shards
            if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors")
        ]:
            raise UserError(
                str(folder / INDEX),
                f"weights in {excerpt(strange[0])}",
                "the name of a safetensors file beside it",
                "download the model again",
            )
        if missing := [shard for shard in shards if not (folder / shard).is_file()]:
            raise UserError(
                name,
                f"{len(missing)} of {len(shards)} weight files are missing, the first is {folder / missing[0]}",
                "every file that the index names",
                "download the model again",
            )
        return [folder / shard for shard in shards]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    raise no_weights(name, sorted(file.name for file in folder.iterdir()), str(folder))


def pickles(folder: Path) -> list[str]:
    """Names of files that look pickled."""
    return sorted(file.name for file in folder.iterdir() if file.name.endswith(PICKLES))


def no_weights(name: str, files: list[str], where: str) -> UserError:
    """Why there is nothing to load in a folder or a hub model with these files."""
    if pickled := [file for file in files if file.endswith(PICKLES) and not file.startswith("training_args")]:
        return UserError(
            name,
            f"the weights in {where} are pickled ({pickled[0]}): loading them can run any code",
            "safetensors",
            f"luthier download {where} --convert, which reads pytorch_model*.bin in a process of its own, as tensors "
            "alone, and writes safetensors; or another revision or copy",
        )
    if ggufs := [file for file in files if file.endswith(".gguf")]:
        return UserError(
            name,
            f"{where} holds GGUF files ({ggufs[0]})",
            "safetensors, or one .gguf file",
            f"model={where}/{ggufs[0]}, as a file on this machine",
        )
    other = [file for file in files if file.endswith(".safetensors")]
    found = f"no {SINGLE} or {INDEX}, only {other[0]}" if other else "no weights"
    return UserError(
        name,
        f"{where} holds {found}",
        SINGLE,
        "download the model again, or name the folder that save_pretrained wrote",
    )


def tensors(folder: Path, name: str) -> Iterator[Tensor]:
    """Every tensor of the model, from the headers of its safetensors files; the data are not read.

    Raises:
        UserError: a file is empty, a pointer, damaged or cut off.
    """
    found: dict[str, Path] = {}
    for file in weight_files(folder, name):
        for tensor in file_tensors(file, name):
            if found.setdefault(tensor.name, file) != file:
                raise UserError(
                    str(file),
                    f"holds {tensor.name}, and so does {found[tensor.name].name}: which of them counts is chance",
                    "each weight in one file",
                    "download the model again",
                )
            yield tensor


def file_tensors(file: Path, name: str) -> Iterator[Tensor]:
    """The tensors of one safetensors file (format: 8 bytes of length, a JSON header, the data)."""
    refuse_stub(file, name)
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise UserError(
                str(file),
                f"damaged or cut off: {size} bytes, with a header of {length}",
                "a whole safetensors file",
                "download it again",
            )
        try:
            header = json.loads(opened.read(length))
            found = [
                Tensor(
                    key,
                    item["dtype"],
                    tuple(item["shape"]),
                    file,
                    8 + length + item["data_offsets"][0],
                    8 + length + item["data_offsets"][1],
                )
                for key, item in header.items()
                if key != "__metadata__"
            ]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                str(file),
                f"its header is damaged: {excerpt(str(error))}",
                "a whole safetensors file",
                "download it again",
            ) from None
    end = max((tensor.end for tensor in found), default=0)
    if end != size and found:
        raise UserError(
            str(file),
            f"{size} bytes, but its header speaks of {end}: the file is {'cut off' if size < end else 'damaged'}",
            "a whole safetensors file",
            "download it again",
        )
    yield from found


def refuse_stub(file: Path, name: str) -> None:
    """An empty file, what git leaves where git-lfs or git-annex did not fetch the file, or a server's page instead of it."""
    size = file.stat().st_size
    if size == 0:
        raise UserError(name, f"{file} is empty", "a whole file", "download the model again")
    with file.open("rb") as opened:
        head = opened.read(512)
    if size < 1024 and head.startswith(_LFS_POINTER):
        raise UserError(
            name,
            f"{file} is a pointer of git-lfs, not the file itself",
            "the file that it points to",
            f"git -C {file.parent} lfs pull, or: luthier download hf:org/name",
        )
    if size < 1024 and _ANNEX_POINTER.encode() in head:
        raise _annexed(file)
    if head.lstrip().lower().startswith(_HTML):
        raise UserError(
            name,
            f"{file} is a page of HTML, as a server sends it where a file may not be had",
            "the file itself",
            "download the model again, logged in where it is gated",
        )


def refuse_dangling_links(folder: Path) -> None:
    """Links whose files are not there, as a copied cache or an annex without its content has them."""
    for file in sorted(folder.iterdir()):
        if not file.is_symlink() or file.exists() or not file.name.endswith(_READ):
            continue
        target = str(file.readlink())
        if _ANNEX_POINTER in target:
            raise _annexed(file)
        raise UserError(
            str(file),
            f"is a link to {target}, which is not there",
            "the file itself",
            "download the model again, or copy the folder with cp -rL",
        )


def _annexed(file: Path) -> UserError:
    return UserError(
        str(file),
        "stands for a file that git-annex did not fetch",
        "the file itself",
        f"git -C {file.parent} annex get {file.name}",
    )


def read_json(file: Path, name: str) -> dict[str, Any]:
    """A JSON object from a file of a model."""
    refuse_stub(file, name)
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            str(file), f"cannot be read as JSON: {error}", "a JSON object", "download the model again"
        ) from None
    if not isinstance(tree, dict):
        raise UserError(str(file), f"holds {excerpt(tree)}", "a JSON object", "download the model again")
    return tree


@dataclass(frozen=True, slots=True)
class WeightSummary:
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    """safetensors' name of a type, and how many parameters have it; the commonest first"""

    @property
    def floating(self) -> list[str]:
        """torch's names of the types that weights are computed with; the commonest first."""
        return [FLOATING[name] for name in self.dtypes if name in FLOATING]


def summarise(folder: Path, name: str) -> WeightSummary:
    """How large the weights are and of what type, from the headers."""
    counts: Counter[str] = Counter()
    size = 0
    for tensor in tensors(folder, name):
        counts[tensor.dtype] += math.prod(tensor.shape)
        size += tensor.end - tensor.start
    return WeightSummary(sum(counts.values()), size, dict(counts.most_common()))
