"""`luthier download --convert`: pickled weights become safetensors, and what is wrong with them is named and never run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from luthier.errors import LuthierError
from luthier.models.folder import check_folder
from luthier.models.sources.resolve import convert, pickled, resolve
from tests.helpers.hub_server import files_of
from tests.helpers.tiny_models import save_twin, twin
from tests.models.test_hub import NAME, Machine, machine, model_files  # noqa: F401 - fixtures

Weights = dict[str, Any]


def pickled_twin(folder: Path, name: str = "yuan", files: int = 1) -> Path:
    """A twin as the published models are: pickled weights, settings that ask for code."""
    save_twin(folder, name)
    (folder / "model.safetensors").unlink()
    weights = twin(name).state_dict()
    if name == "yuan":
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    _edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Model", "AutoConfig": "configuration.C"})
    (folder / "modeling.py").write_text("raise SystemExit(99)")
    if files == 1:
        torch.save(weights, folder / "pytorch_model.bin")
        return folder
    weight_map = {}
    for number in range(files):
        part = {key: tensor.clone() for key, tensor in list(weights.items())[number::files]}
        file = f"pytorch_model-{number + 1:05d}-of-{files:05d}.bin"
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / pickled.BIN_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def _edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(3, 30)[None]).logits


@pytest.mark.parametrize(
    ("name", "files"),
    [("yuan", 1), *(pytest.param(name, 2, marks=pytest.mark.prove) for name in ("baichuan", "llama"))],
)
def test_a_folder_is_converted_in_its_place(
    name: str, files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pickled_twin(tmp_path / "model", name, files)
    if name == "llama":  # transformers knows it: its folder names no code
        config = json.loads((folder / "config.json").read_text())
        del config["auto_map"]
        (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(pickled, "SHARD_BYTES", 100_000)
    with pytest.raises(LuthierError, match="--convert"):
        resolve(str(folder))
    before = files_of(folder)
    said: list[str] = []
    convert(str(folder), None, False, say=said.append)
    assert f"{files} of {files}" in said[-1]
    after = files_of(folder)
    assert {key: after[key] for key in before} == before
    new = set(after) - set(before)
    assert len(new) > 2
    assert all(file.endswith(".safetensors") or file == "model.safetensors.index.json" for file in new)
    source = resolve(str(folder))
    check_folder(source.folder, source.name, False)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(twin(name)))
    said.clear()
    convert(str(folder), None, False, say=said.append)
    assert "nothing is to be converted" in said[-1]


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.file),))


def changed(folder: Path, **weights: Any) -> None:
    """The file again, with some of the weights put in or, where None, left out. (`norm` is the final norm's weight.)"""
    named = {{"norm": "model.norm.weight"}.get(key, key): value for key, value in weights.items()}
    before = torch.load(folder / "pytorch_model.bin", weights_only=True)
    after = {key: value for key, value in (before | named).items() if value is not None}
    torch.save(after, folder / "pytorch_model.bin")


def replaced(folder: Path, tree: Any) -> None:
    torch.save(tree, folder / "pytorch_model.bin")


def cut(folder: Path, length: int) -> None:
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:length])


def indexed(folder: Path, file: str) -> None:
    (folder / pickled.BIN_INDEX).write_text(json.dumps({"weight_map": {"a": file}}))


def quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(64), 0.1, 0, torch.qint8)


REFUSED_BY_THE_READER: dict[str, tuple[Callable[[Path], None], str]] = {
    "canary": (lambda folder: changed(folder, x=Canary(Path("canary"))), "not run.*mkdir"),
    "whole object": (lambda folder: replaced(folder, torch.nn.Linear(2, 2)), "not run.*torch.nn"),
    "cut off": (lambda folder: cut(folder, 50_000), "damaged"),
    "no pickle": (lambda folder: (folder / "pytorch_model.bin").write_text("x" * 2000) and None, "not run|damaged"),
    "NaN": (lambda folder: changed(folder, norm=torch.full((64,), torch.nan)), "NaN.*model.norm.weight"),
    "infinity": (lambda folder: changed(folder, norm=torch.full((64,), torch.inf)), "infinity in model.norm.weight"),
    "a number": (lambda folder: changed(folder, epoch=3), "epoch.*int"),
    "a list": (lambda folder: replaced(folder, [torch.ones(2)]), "list"),
    "on meta": (
        lambda folder: changed(folder, norm=torch.ones(64, device="meta")),
        "model.norm.weight without its numb",
    ),
    "complex": (lambda folder: changed(folder, norm=torch.ones(64, dtype=torch.complex64)), "norm.weight as complex64"),
    "quantized": (lambda folder: changed(folder, norm=quantized()), "model.norm.weight as qint8"),
    "overlapping": (
        lambda folder: changed(folder, norm=torch.ones(1).expand(10**9)),
        "norm.weight as .1000000000. with few",
    ),
    "windows": (lambda folder: changed(folder, norm=torch.ones(9).unfold(0, 5, 1)), "norm.weight as .5, 5. with fewer"),
    "one for all": (lambda folder: replaced(folder, dict.fromkeys("abcdefghij", torch.ones(10_000))), "share their n"),
    "sparse": (lambda folder: changed(folder, norm=torch.eye(3).to_sparse()), "model.norm.weight"),
}

REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "canary": (REFUSED_BY_THE_READER["canary"][0], r"pytorch_model.bin.*mkdir"),
    "empty": (lambda folder: cut(folder, 0), "empty"),
    "missing": (lambda folder: changed(folder, norm=None), "not in its files.*model.norm.weight"),
    "shape": (lambda folder: changed(folder, norm=torch.ones(3), y=torch.ones(2)), "no place.*y|shape.*model.norm"),
    "no weights": (lambda folder: (folder / "pytorch_model.bin").unlink(), "no pytorch_model"),
    "code": (lambda folder: _edit(folder / "config.json", model_type="other"), "auto_map"),
    "way out": (lambda folder: indexed(folder, "../pytorch_model.bin"), "a file of weights named"),
    "missing file": (lambda folder: indexed(folder, "pytorch_model-9.bin"), "pytorch_model-9.bin is missing"),
}


@pytest.mark.parametrize("kind", REFUSED_BY_THE_READER)
def test_what_the_reader_refuses(kind: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.models.sources.pickled_child import Refused, checked

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    damage, message = REFUSED_BY_THE_READER[kind]
    damage(folder)
    with pytest.raises(Refused, match=f"(?s){message}"):
        checked(folder / "pytorch_model.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "the canary sings"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pickled_twin(tmp_path_factory.mktemp("sound") / "model", "yuan")


@pytest.mark.prove
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_wrong_is_named_and_nothing_is_left(
    kind: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    damage, message = REFUSED[kind]
    damage(folder)
    before = files_of(folder)
    with pytest.raises(LuthierError, match=f"(?s){message}"):
        convert(str(folder), None, False, say=lambda _text: None)
    assert files_of(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "the canary sings, or something was left behind"


def test_shared_and_cut_out_tensors_are_written_whole(tmp_path: Path) -> None:
    """Tied weights stand under both names; a slice or a transposed view has its own numbers, and the rest stays out."""
    from luthier.models.sources.pickled_child import checked, main

    wide = torch.arange(24.0).view(4, 6)
    tree = {"embeddings": wide, "head": wide, "slice": wide[1:3, ::2], "turned": wide.T, "number": torch.tensor(3)}
    torch.save(tree, tmp_path / "file.bin")
    assert checked(tmp_path / "file.bin").keys() == tree.keys()
    for most, files in ((10**6, 1), (100, 5)):
        target = tmp_path / str(most)
        target.mkdir()
        main(tmp_path, target, ["file.bin"], most)
        found = {name: tensor for file in target.glob("*.safetensors") for name, tensor in load_file(file).items()}
        assert len(list(target.glob("*.safetensors"))) == files
        assert found.keys() == tree.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in tree.items())


@pytest.mark.prove
@pytest.mark.parametrize("trusted", [False, True])
def test_code_goes_along_only_where_it_is_trusted(trusted: bool, sound: Path, tmp_path: Path) -> None:
    """Into another folder, as for a hub's model; the code is that of an architecture of ours, which is not run."""
    assert (sound / "modeling.py").is_file()
    pickled.convert_folder(sound, tmp_path / "out", "a model", trusted, lambda _text: None)
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert ("modeling.py" in kept) == trusted
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= kept
    assert not [name for name in kept if name.endswith(".bin")]


def test_the_canary_of_this_test_would_sing(tmp_path: Path) -> None:
    torch.save({"x": Canary(tmp_path / "canary")}, tmp_path / "file.bin")
    torch.load(tmp_path / "file.bin", weights_only=False)
    assert (tmp_path / "canary").is_dir()


@pytest.mark.prove
def test_a_model_of_a_hub(machine: Machine, tmp_path: Path) -> None:  # noqa: F811
    """Refused, then converted into luthier's cache, then found there: by name, by commit, and without a network."""
    folder = pickled_twin(tmp_path / "published", "baichuan_alibi")
    commit = machine.hub.repos[NAME].commit(files_of(folder), "main")
    refused = machine.download(NAME)
    assert refused.returncode == 2
    assert f"luthier download hf:{NAME} --convert" in refused.stderr
    facts = machine.get(NAME, "--convert")
    assert facts["commit"] == commit
    assert facts["parameters"] == sum(tensor.numel() for tensor in twin("baichuan_alibi").state_dict().values())
    kept = files_of(Path(facts["folder"]))
    assert not [file for file in kept if file.endswith((".bin", ".py"))]
    assert machine.get(NAME)["folder"] == facts["folder"]
    assert machine.get(NAME, "--revision", commit)["folder"] == facts["folder"]
    assert machine.get(NAME, "--convert")["folder"] == facts["folder"]
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(facts["folder"])), logits(twin("baichuan_alibi")))
