"""S8: names of shards in an index, and files of a folder, lead nowhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from luthier.errors import UserError
from luthier.models.files import is_plain
from luthier.models.folder import check_folder, weight_files
from luthier.models.sources.resolve import resolve
from luthier.system.owners import STORES
from tests.helpers.tiny_models import tiny_llama

INDEX = "model.safetensors.index.json"
ELSEWHERE = (
    "../secret.safetensors",
    "/tmp/secret.safetensors",
    "sub/../../secret.safetensors",
    "sub/model.safetensors",
    "..\\secret.safetensors",
    "C:\\secret.safetensors",
    "c:secret.safetensors",
    "\\\\server\\share\\secret.safetensors",
    "model\x00.safetensors",
    "con.safetensors",
    "model.safetensors:hidden.safetensors",
    "model\n.safetensors",
    "~/secret.safetensors.",
    "",
    "model.bin",
    " model.safetensors",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("s8") / "model")


@pytest.mark.parametrize("shard", ELSEWHERE)
def test_s8_a_name_in_an_index_that_leads_elsewhere(shard: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path / "secret.safetensors", folder / "model.safetensors", folder / "sub" / "model.safetensors"):
        save_file({"a": torch.zeros(1)}, place)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(UserError, match="the name of a safetensors file beside it"):
        weight_files(folder, "org/name")


def test_s8_names_of_models_are_plain() -> None:
    for name in ("model-00001-of-00002.safetensors", "model.fp16+x_1 (a).safetensors", "модель.safetensors"):
        assert is_plain(name)
    assert not any(
        is_plain(name) for name in (".hidden", "a" * 256, "a/b", "nul", "aux.json", "lpt1.model", "a.", "a ")
    )


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
@pytest.mark.parametrize("absolute", [True, False])
def test_s8_a_link_out_of_the_folder(file: str, absolute: bool, model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    secret = (folder / file).rename(tmp_path / "secret")
    (folder / file).symlink_to(secret if absolute else Path("..") / "secret")
    with pytest.raises(UserError, match="out of its folder") as caught:
        check_folder(folder, "mine", False)
    assert f"cp -rL {folder}" in caught.value.fix
    assert f"{STORES}={tmp_path} " in caught.value.fix


def test_s8_links_into_a_store_that_is_trusted(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    (tmp_path / "store" / "deep").mkdir(parents=True)
    shared = (folder / "model.safetensors").rename(tmp_path / "store" / "deep" / "weights")
    (folder / "model.safetensors").symlink_to(shared)
    monkeypatch.setenv(STORES, f"/nowhere:{tmp_path / 'store'}")
    check_folder(folder, "mine", False)
    monkeypatch.setenv(STORES, f"{tmp_path / 'sto'}:")
    with pytest.raises(UserError, match="out of its folder"):
        check_folder(folder, "mine", False)


@pytest.mark.parametrize("link", ["additional_chat_templates", "additional_chat_templates/x.jinja"])
def test_s8_a_link_of_the_templates(link: str, model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    (tmp_path / "secret").mkdir()
    (folder / link).parent.mkdir(exist_ok=True)
    (folder / link).symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="out of its folder"):
        check_folder(folder, "mine", False)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_s8_links_into_a_cache_of_the_hub_are_as_ever(elsewhere: bool, model: Path, tmp_path: Path) -> None:
    """The cache's own folder of a commit, and a folder of somebody's with links into it; the files may be on a larger disk."""
    cache = tmp_path / "hub" / "models--org--name"
    snapshot, mine = cache / "snapshots" / "0123", tmp_path / "mine"
    for folder in (tmp_path / "disk" if elsewhere else cache / "blobs", snapshot, mine):
        folder.mkdir(parents=True)
    if elsewhere:
        (cache / "blobs").symlink_to(tmp_path / "disk")
    for number, file in enumerate(sorted(model.iterdir())):
        shutil.copy(file, cache / "blobs" / f"{number:040x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:040x}")
        (mine / file.name).symlink_to(snapshot / file.name)
    assert resolve(str(snapshot)).folder == snapshot
    assert resolve(str(mine)).folder == mine
    secret = (tmp_path / "hub" / "models--org--name" / "blobs" / "secret.json").resolve()
    secret.write_text("{}")
    (snapshot / "added_tokens.json").symlink_to("../../blobs/secret.json")
    with pytest.raises(UserError, match="out of its folder"):
        resolve(str(snapshot))


def test_s8_a_link_to_a_folder_and_links_inside_of_it(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "real"))
    (folder / "config.json").rename(folder / "config-1.json")
    (folder / "config.json").symlink_to("config-1.json")
    (tmp_path / "link").symlink_to("real")
    assert resolve(str(tmp_path / "link")).folder == folder
