"""What a model's folder must hold, and what it must not, found out before any library reads it.

Pickled weights and Python files can run code when they are loaded; a pointer of git-lfs, an empty file or a cut-off
download would end in another library's traceback, or in wrong numbers. Each is named here, with its remedy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import UserError, excerpt
from luthier.models import architectures
from luthier.models.files import is_plain, refuse_odd_links, refuse_stub
from luthier.models.headers import FLOATING, Tensor, file_tensors
from luthier.models.settings import check_config, check_tokenizer_settings, read_json
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


def check_folder(folder: Path, name: str, trust_remote_code: bool) -> None:
    """Refuses a folder that cannot be loaded, or not safely.

    Raises:
        UserError: names what is missing, damaged or refused, and the fix.
    """
    refuse_odd_links(folder)
    check_config(folder, name, trust_remote_code)
    check_weights(folder, name)
    check_tokenizer(folder, name, trust_remote_code)


def check_tokenizer(folder: Path, name: str, trust_remote_code: bool) -> None:
    """A tokenizer is there, whole, and asks for no code."""
    for file in tokenizer_files(folder, name):
        refuse_stub(file, name)
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        check_tokenizer_settings(settings, name, trust_remote_code, is_native=bool(native_type(folder)))


def tokenizer_files(folder: Path, name: str) -> list[Path]:
    """The files with the vocabulary of a model. Raises UserError where there are none."""
    present = [file for file in (folder / part for part in TOKENIZER_FILES) if file.is_file()]
    present += [file for file in sorted(folder.glob("*.tiktoken")) if file not in present]
    if not present:
        raise UserError(
            name,
            f"the folder {folder} holds no tokenizer",
            "tokenizer.json or tokenizer.model",
            "copy tokenizer.json and tokenizer_config.json from the model that this one was made of",
        )
    return present


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
        if strange := [shard for shard in shards if not is_plain(shard) or not shard.endswith(".safetensors")]:
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
