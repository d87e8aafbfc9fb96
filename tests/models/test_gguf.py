"""A GGUF file as a source of models: converted once, the same model, and refused where it is not whole or not understood."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoTokenizer

import luthier
from luthier.errors import EnvironmentProblem, UserError
from luthier.inference import verified_export
from luthier.inference.chat import Chat
from luthier.inference.opened import open_model
from luthier.models.folder import summarise
from luthier.models.load import load_model
from luthier.models.patches import gguf_read_once
from luthier.models.reading import load_tokenizer
from luthier.models.sources.resolve import base_of, resolve
from luthier.system.words import human_bytes
from luthier.types import Message
from tests.helpers import command_line
from tests.helpers.gguf_files import to_gguf
from tests.helpers.tiny_models import CHATML, tiny_tokenizer, twin


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_gguf_file_becomes_a_folder_once_and_is_the_same_model(
    tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = to_gguf(tmp_path / "tiny.gguf")
    said: list[str] = []
    source = resolve(str(file), say=said.append)
    assert source.kind == "gguf"
    written = capfd.readouterr()
    assert (written.out, written.err) == ("", "")  # no bar of transformers
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


@pytest.mark.parametrize(("module", "name"), [(gguf_read_once, "WholeReader"), (gguf, "get_tensor_name_map")])
def test_nothing_of_a_gguf_file_is_read_twice(
    module: ModuleType, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = to_gguf(tmp_path / "tiny.gguf")
    before = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    plain, calls = getattr(module, name), list[tuple[Any, ...]]()

    def counted(*given: Any) -> Any:
        calls.append(given)
        return plain(*given)

    monkeypatch.setattr(module, name, counted)
    monkeypatch.chdir(tmp_path)
    resolve("tiny.gguf", say=lambda text: None)
    assert calls
    assert len(calls) == len(set(calls))
    if name == "WholeReader":
        assert calls == [(str(file),)]
    assert {name: getattr(gguf, name) for name in before} == (before | ({name: counted} if name in before else {}))


def test_a_file_of_that_name_where_one_works_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    wanted = to_gguf(tmp_path / "models" / "tiny.gguf", seed=1)
    to_gguf(tmp_path / "tiny.gguf", seed=2)
    monkeypatch.chdir(tmp_path)
    model = load_model(resolve(str(wanted), say=lambda text: None), dtype=torch.float32, device="cpu")
    expected = twin("llama", seed=1, tie_word_embeddings=True)
    assert torch.equal(model.get_input_embeddings().weight, expected.get_input_embeddings().weight)


@pytest.mark.parametrize("system", ["Don't {shout}.\nBe kind.", pytest.param(None, marks=pytest.mark.prove)])
def test_plain_peft_and_transformers_use_an_adapter_on_a_gguf_file_as_luthier_does(
    system: str | None, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They know nothing of GGUF files, so the adapter names the file and its README.md the line that makes a folder of it; and
    nothing of luthier.json, so the saved template asks with the system text of the training.
    """
    monkeypatch.chdir(tmp_path)
    file = to_gguf(tmp_path / "tiny.gguf")
    rows = [{"instruction": "Hi", "output": "Hello.", **({"system": system} if system else {})}] * 4
    run = luthier.train(str(file), rows, max_steps=1, dtype="float32", output_dir=tmp_path / "run")
    adapter = run.folder / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(file)
    assert base_of(adapter) == (str(file), None)
    assert (adapter / "adapter_model.safetensors").stat().st_mode == (adapter / "luthier.json").stat().st_mode
    readme = (adapter / "README.md").read_text()
    assert ("## System text" in readme) is (system is not None)
    (line,) = (line.strip() for line in readme.splitlines() if line.startswith("    luthier export"))
    assert command_line.luthier(*shlex.split(line)[1:], "--unproven") == 0
    code = readme.partition("```python\n")[2].partition("```")[0].replace('"."', repr(str(adapter)))
    made: dict[str, Any] = {}
    exec(code, made)  # noqa: S102 - the page that luthier wrote
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(made["model"](ids).logits, run.opened.model(ids).logits)
    (adapter / "luthier.json").rename(tmp_path / "luthier.json")
    assert resolve(str(adapter), say=lambda text: None).name == str(file)
    (tmp_path / "luthier.json").rename(adapter / "luthier.json")
    verified_export.export(str(run.folder), "merged", tmp_path / "merged", unproven=True, say=lambda text: None)
    verified_export.export(str(run.folder), "adapter", tmp_path / "copy", say=lambda text: None)
    assert (tmp_path / "copy" / "README.md").read_text() == readme
    request = [{"role": "user", "content": "Hi"}]
    for folder in (adapter, tmp_path / "merged", tmp_path / "copy"):
        opened = open_model(str(folder))
        plain = AutoTokenizer.from_pretrained(folder)
        asked = plain.apply_chat_template(request, add_generation_prompt=True, return_dict=False)
        served = [*Chat(opened).messages, Message("user", "Hi")]
        assert asked == opened.prompt_ids(served)
        unspoken = opened.prompt_ids([*Chat(opened, system="").messages, Message("user", "Hi")])
        assert (asked == unspoken) is (system is None)


@pytest.mark.prove
def test_a_run_on_a_gguf_file_is_merged_at_the_size_of_its_weights(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the converted folder's, whatever the file holds; where the file has another name now, the error says so."""
    file = to_gguf(tmp_path / "tiny.gguf")
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
        resolve(str(to_gguf(tmp_path / "tiny.gguf", pre)))
    assert list((cache / "gguf").iterdir()) == []


def test_a_gguf_file_that_lacks_a_weight(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lacks 1 weights"):
        resolve(str(to_gguf(tmp_path / "tiny.gguf", drop="blk.1.ffn_up.weight")))


@pytest.mark.parametrize(
    ("key", "stored", "damaged", "said"),
    [
        ("feed_forward_length", 128, 96, r"mlp\.\w+\.weight is \[.*128.*\] in the file, and \[.*96.*\] by the sizes"),
        ("feed_forward_length", 128, 128 << 24, "feed_forward_length of 2147483648, and its tensors have room for 512"),
        ("embedding_length", 64, 64 << 24, "embedding_length"),
        ("attention.head_count", 4, 4 << 24, "head_count"),
        ("block_count", 2, 173 << 24, "block_count of 2902458368, and its tensors have room for 2"),
    ],
)
def test_weights_of_other_sizes_than_the_file_names(
    key: str, stored: int, damaged: int, said: str, tmp_path: Path, cache: Path
) -> None:
    file = to_gguf(tmp_path / "tiny.gguf")
    whole, kind = file.read_bytes(), struct.pack("<I", 4)  # a number of 32 bits
    before, after = (f"llama.{key}".encode() + kind + struct.pack("<I", size) for size in (stored, damaged))
    assert before in whole
    file.write_bytes(whole.replace(before, after))
    with limited(), pytest.raises(UserError, match=said):
        resolve(str(file))
    assert not (cache / "gguf").is_dir() or list((cache / "gguf").iterdir()) == []


@contextmanager
def limited() -> Iterator[None]:
    """What is never done with is a failure."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it does not end"))
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_tokenizer_that_joins_what_is_no_token(tmp_path: Path, cache: Path) -> None:
    file = to_gguf(tmp_path / "tiny.gguf")
    whole = file.read_bytes()
    at = whole.index(b" ", whole.index(b"tokenizer.ggml.merges") + 50)
    file.write_bytes(whole[: at - 1] + b"\0 \0" + whole[at + 2 :])
    with pytest.raises(UserError, match="transformers cannot read it"):
        resolve(str(file))


def test_a_list_that_never_ends(tmp_path: Path) -> None:
    """The architecture's name becomes a list with as many entries as its letters are, read as a number."""
    file = to_gguf(tmp_path / "tiny.gguf")
    whole = file.read_bytes()
    end = whole.index(name := b"general.architecture") + len(name)
    for entries, said in ((whole[end + 8 : end + 16], "a list of"), (struct.pack("<Q", 1 << 20), "ends at byte")):
        of_numbers = struct.pack("<II", 9, 5)  # a list, of 32-bit numbers
        file.write_bytes(whole[:end] + of_numbers + entries + whole[end + 16 :])
        with limited(), pytest.raises(UserError, match=said):
            resolve(str(file))


@pytest.mark.parametrize("size", [0, 3, 40, 5_000, 200_000])
def test_a_gguf_file_that_is_cut_off(tmp_path: Path, size: int) -> None:
    file = to_gguf(tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=r"whole \.gguf file"):
        resolve(str(file))
