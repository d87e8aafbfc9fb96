"""S1 to S3: nothing is pickled, no pickle is opened but where a user asks for it, and nothing falls back to one.

More of it: tests/models/test_bad_folders.py and tests/models/test_pickled.py, from the command line.
"""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from luthier.errors import UserError
from luthier.models.adapters import _read_weights
from luthier.models.folder import check_folder, pickles
from luthier.models.load import load_model
from tests.helpers.tiny_models import tiny_llama
from tests.models.bad_folders import Canary
from tests.security.code import imported, nodes
from tests.test_architecture import OPENS_PICKLES

PLACES = (
    "pytorch_model.bin",
    "adapter_model.bin",
    "optimizer.pt",
    "rng_state.pth",
    "value_head.bin",
    "training_args.bin",
)
OPENERS = (
    "read_pickle",
    "to_pickle",
    "load_checkpoint_and_dispatch",
    "distributed.checkpoint",
    "torch.package",
    "jit.load",
    "torch.hub",
)
"""Ways of pandas, accelerate and torch to a pickle, or to code that is fetched."""
LAST = {way.rpartition(".")[2] for way in OPENERS}


@pytest.fixture
def no_pickle_is_opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whoever tries is noted, and fails."""
    tried: list[str] = []

    def refuse(name: str) -> Callable[..., None]:
        def opened(*_args: object, **_keys: object) -> None:
            tried.append(name)
            raise AssertionError(f"{name} was called")

        return opened

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refuse(f"{module.__name__}.{name}"))
    return tried


def test_s1_no_way_to_a_pickle_in_the_code() -> None:
    """Beside those that tests/test_architecture.py forbids: other libraries' ways, and other names of torch's."""
    ways = [
        (file, node) for file, node in nodes(ast.Attribute) if node.attr in LAST and ast.unparse(node).endswith(OPENERS)
    ]
    names = {f"torch.{name}" for name in ("load", "save", "package", "hub")}
    assert [f"{file}:{node.lineno}" for file, node in ways] == []
    assert [file for file, name in imported() if name in names and file != OPENS_PICKLES] == []


def test_s2_canaries_in_six_places_beside_a_model(tmp_path: Path, no_pickle_is_opened: list[str]) -> None:
    folder, marker = tiny_llama(tmp_path / "model"), tmp_path / "executed"
    for name in PLACES:
        (folder / name).write_bytes(pickle.dumps(Canary(marker)))
    assert pickles(folder) == sorted(PLACES)
    load_model(folder, dtype=torch.float32, device="cpu")
    assert not marker.exists()
    assert no_pickle_is_opened == []


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "weights.pkl"])
def test_s2_a_model_of_pickles_alone_is_refused(name: str, tmp_path: Path, no_pickle_is_opened: list[str]) -> None:
    folder = tiny_llama(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Canary(tmp_path / "executed")))
    with pytest.raises(UserError, match=name) as caught:
        load_model(folder, dtype=torch.float32, device="cpu")
    assert "any code" in str(caught.value)
    assert not (tmp_path / "executed").exists()
    assert no_pickle_is_opened == []


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "another file": lambda file: file.write_bytes(pickle.dumps(Canary(file.parent.parent / "executed"))),
    "empty": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
    "in an index, and gone": lambda file: (
        file.with_name("model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "gone.safetensors"}})
        ),
        file.unlink(),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_s3_what_cannot_be_read_safely_is_not_read_otherwise(
    damage: str, tmp_path: Path, no_pickle_is_opened: list[str]
) -> None:
    folder = tiny_llama(tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(tmp_path / "executed")))
    DAMAGES[damage](folder / "model.safetensors")
    with pytest.raises(UserError):
        load_model(folder, dtype=torch.float32, device="cpu")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    shutil.copy(folder / "pytorch_model.bin", adapter / "adapter_model.bin")
    for content in (None, b"\x08\0\0\0\0\0\0\0{}      "[:9]):
        if content is not None:
            (adapter / "adapter_model.safetensors").write_bytes(content)
        with pytest.raises(UserError):
            _read_weights(adapter)
    with pytest.raises(UserError):
        check_folder(folder, "mine", True)
    assert not (tmp_path / "executed").exists()
    assert no_pickle_is_opened == []
