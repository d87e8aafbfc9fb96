"""The table of bad model folders: how each is made of a whole one, and what must be said of it.

A case that is harmless by design has exit code 0: it is trained (or talked to), and nothing is said against it.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
UP = "model.layers.1.mlp.up_proj.weight"

Change = Callable[[Path], object]
"""Changes a copy of a folder."""


@dataclass(frozen=True)
class Case:
    change: Change
    words: tuple[str, ...] = ()
    """each stands in the message: the file or the key, what is wrong, the remedy"""
    code: int = 2
    of: str = "model"
    """which folder is changed: `model`, `shards` (the same in several files), `adapter`"""


def weights(change: Callable[[dict[str, torch.Tensor]], object], file: str = WEIGHTS) -> Change:
    def write(folder: Path) -> None:
        found = load_file(folder / file)
        change(found)
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / file, {"format": "pt"})

    return write


def settings(file: str, **changed: Any) -> Change:
    """Changes keys of a JSON file; `...` takes one away."""

    def write(folder: Path) -> None:
        tree = {**json.loads((folder / file).read_text()), **changed}
        (folder / file).write_text(json.dumps({key: value for key, value in tree.items() if value is not ...}))

    return write


def gone(*patterns: str) -> Change:
    def write(folder: Path) -> None:
        for pattern in patterns:
            found = list(folder.glob(pattern))
            assert found
            for path in found:
                path.unlink()

    return write


def one_shard(change: Callable[[Path], object]) -> Change:
    return lambda folder: change(sorted(folder.glob("*.safetensors"))[0])


def written(file: str, content: str | bytes) -> Change:
    return lambda folder: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def each(*changes: Change) -> Change:
    def write(folder: Path) -> None:
        for change in changes:
            change(folder)

    return write


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path: Path, byte: int = 30) -> None:
    """Turns the highest bit of one byte over; the 30th lies in the header."""
    content = bytearray(path.read_bytes())
    content[byte] ^= 0x80
    path.write_bytes(bytes(content))


def listed_twice(folder: Path) -> None:
    """A tensor in two files of a model, with other numbers in each."""
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor + 1}, second, {"format": "pt"})


def linked(file: str, target: str) -> Change:
    def write(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).symlink_to(target)

    return write


def rename(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], object]:
    def change(found: dict[str, torch.Tensor]) -> None:
        for name in [name for name in found if old in name]:
            found[name.replace(old, new)] = found.pop(name)

    return change


class Canary:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def canary(file: str) -> Change:
    """A pickle that leaves a file named `executed` beside the folder if it is ever opened as one."""
    return lambda folder: (folder / file).write_bytes(pickle.dumps(Canary(folder.parent / "executed")))


def special(**ids: Any) -> Change:
    return each(settings("config.json", **ids), settings("generation_config.json", **ids))


def more_words(folder: Path) -> None:
    """As many tokens as the model has embeddings, and one."""
    tree = json.loads((folder / "tokenizer.json").read_text())
    new = {**tree["added_tokens"][0], "id": 512, "content": "<|extra|>"}
    tree["added_tokens"].append(new)
    tree["model"]["vocab"]["<|extra|>"] = 512
    (folder / "tokenizer.json").write_text(json.dumps(tree))


def template(text: str | None) -> Change:
    return gone("chat_template.jinja") if text is None else written("chat_template.jinja", text)


def duplicated_ids(folder: Path) -> None:
    """Two special tokens with one id."""
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["added_tokens"][2]["id"] = tree["model"]["vocab"]["<|im_end|>"] = tree["added_tokens"][1]["id"]
    (folder / "tokenizer.json").write_text(json.dumps(tree))


def model_of_tokenizer(**changed: Any) -> Change:
    def change(folder: Path) -> None:
        tree = json.loads((folder / "tokenizer.json").read_text())
        tree["model"] |= changed
        (folder / "tokenizer.json").write_text(json.dumps(tree))

    return change


def base_is(folder: Path, **changed: Any) -> None:
    tree = json.loads((folder / "luthier.json").read_text())
    tree["base"] |= changed
    (folder / "luthier.json").write_text(json.dumps(tree))


AGAIN = "download the model again"
HTML = "<!DOCTYPE html><html><head><title>403 Forbidden</title></head><body>Please log in.</body></html>"
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 632576\n"
ANNEX = "/annex/objects/SHA256E-s632576--" + "0" * 64 + ".safetensors\n"

MISSING = {
    "empty folder": Case(gone("*"), ("model", "empty", "config.json")),
    "no config": Case(gone("config.json"), ("no config.json", AGAIN)),
    "no tokenizer": Case(gone("tokenizer.json", "tokenizer_config.json"), ("no tokenizer", "tokenizer.json")),
    "no weights": Case(gone(WEIGHTS), (WEIGHTS, "no weights", AGAIN)),
    "no index": Case(gone(INDEX), (INDEX, "model-00001-of-"), of="shards"),
    "one shard": Case(one_shard(Path.unlink), ("1 of", "model-00001-of-", "missing", AGAIN), of="shards"),
}
DAMAGED = {
    "shard truncated": Case(one_shard(cut), ("model-00001-of-", "cut off", "download it again"), of="shards"),
    "shard of 0 bytes": Case(one_shard(lambda path: path.write_bytes(b"")), ("00001-of-", "empty"), of="shards"),
    "bit flip in the header": Case(lambda folder: flip(folder / WEIGHTS), (WEIGHTS, "damaged")),
    "wrong shape": Case(weights(lambda found: found.update({UP: torch.zeros(128, 63)})), (UP, "shape", AGAIN)),
    "wrong dtype": Case(
        weights(lambda found: found.update({UP: torch.zeros(128, 64, dtype=torch.int32)})), (UP, "I32", AGAIN)
    ),
    "listed twice": Case(listed_twice, ("embed_tokens.weight", "00001-of-", "00002-of-", AGAIN), of="shards"),
    "NaN": Case(weights(lambda found: found[UP][3].fill_(float("nan"))), (UP, "NaN", AGAIN)),
    "infinity": Case(weights(lambda found: found[UP][3].fill_(float("inf"))), (UP, "infinity", AGAIN)),
}
KEYS = {
    "a key is missing": Case(weights(lambda found: found.pop(UP)), (UP, "needs", AGAIN)),
    "a key too many": Case(
        weights(lambda found: found.update({"model.layers.7.mlp.up_proj.weight": torch.zeros(128, 64)})),
        ("model.layers.7.mlp.up_proj.weight", "no place", AGAIN),
    ),
    "a key is renamed": Case(weights(rename("up_proj", "w3")), ("up_proj", "needs", AGAIN)),
    "all keys have a prefix": Case(weights(rename("model.layers", "module.layers")), ("layers", AGAIN)),
}
TOKENS = {
    "vocabulary smaller than the tokenizer": Case(more_words, ("id 512", "512 rows", "tokenizer")),
    "no padding token": Case(
        each(special(pad_token_id=None), settings("tokenizer_config.json", pad_token=None)), (), 0
    ),
    "no token for the beginning": Case(
        each(special(bos_token_id=None), settings("tokenizer_config.json", bos_token=None)), (), 0
    ),
    "beginning and end are one token": Case(
        each(special(bos_token_id=2), settings("tokenizer_config.json", bos_token="<|im_end|>")), (), 0
    ),
    "a list of ends": Case(special(eos_token_id=[2, 0]), (), 0),
    "two ends that differ": Case(settings("generation_config.json", eos_token_id=0), (), 0),
    "no template": Case(template(None), ("chat_template", "fix")),
    "a broken template": Case(template("{% for message in messages %}"), ("template", "fix")),
    "a template that fails on rows": Case(
        template("{{ raise_exception('only for the rich') }}"), ("only for the rich", "fix")
    ),
    "pairs of what is no token": Case(model_of_tokenizer(merges=[["zzz", "q"]]), ("tokenizer", "zzz", AGAIN)),
    "a tokenizer of no known kind": Case(model_of_tokenizer(type="Nope"), ("tokenizer", "any variant", AGAIN)),
    "a prefix longer than the pairs": Case(
        model_of_tokenizer(continuing_subword_prefix="##" * 25), ("tokenizer", "out of range", AGAIN)
    ),
    "two special tokens with one id": Case(duplicated_ids, ("<|im_end|>", "id 1", "tokenizer.json")),
}
WRAPPED = {
    "only pickled weights": Case(
        each(gone(WEIGHTS), canary("pytorch_model.bin")), ("pytorch_model.bin", "pickled", "luthier download")
    ),
    "pointer of git-lfs": Case(written(WEIGHTS, LFS), (WEIGHTS, "git-lfs", "lfs pull")),
    "pointer of git-annex": Case(written(WEIGHTS, ANNEX), (WEIGHTS, "git-annex", "annex get")),
    "dangling link": Case(linked(WEIGHTS, "../blobs/0123"), (WEIGHTS, "../blobs/0123", AGAIN)),
    "error page of a server": Case(written(WEIGHTS, HTML), (WEIGHTS, "HTML", "again")),
}
ADAPTERS = {
    "for another base": Case(
        lambda folder: base_is(folder, weights_hash="0" * 32), ("trained on", "weights", "fix"), of="adapter"
    ),
    "another rank": Case(settings(ADAPTER_CONFIG, r=3), ("lora_A", "[4, 128]", "[3, 128]", "r in"), of="adapter"),
    "renamed keys": Case(weights(rename("lora_A", "lora_down"), ADAPTER), ("lora_A", "lora_down"), of="adapter"),
    "DoRA flag": Case(settings(ADAPTER_CONFIG, use_dora=True), ("magnitude", ADAPTER), of="adapter"),
    "no lora_alpha": Case(settings(ADAPTER_CONFIG, lora_alpha=...), (ADAPTER_CONFIG, "lora_alpha"), of="adapter"),
    "rank is no number": Case(settings(ADAPTER_CONFIG, r="4"), (ADAPTER_CONFIG, "r is", "whole number"), of="adapter"),
    "another bias": Case(settings(ADAPTER_CONFIG, bias="nong"), ("does not fit", "nong"), of="adapter"),
    "a module to import": Case(
        settings(ADAPTER_CONFIG, megatron_config={"a": 1}, megatron_core="this"),
        ("megatron_config", "'this'"),
        of="adapter",
    ),
    "unknown type": Case(
        settings(ADAPTER_CONFIG, peft_type="SHIRA2"), (ADAPTER_CONFIG, "SHIRA2", "LORA"), of="adapter"
    ),
    "tied flag wrong": Case(
        settings("config.json", tie_word_embeddings=True), ("lm_head.weight", "tie_word_embeddings")
    ),
}
CATEGORIES: dict[str, dict[str, Case]] = {
    "missing": MISSING,
    "damaged": DAMAGED,
    "keys": KEYS,
    "tokens": TOKENS,
    "wrapped": WRAPPED,
    "adapters": ADAPTERS,
}
