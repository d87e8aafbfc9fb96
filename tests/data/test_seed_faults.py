"""The five faults of the tutorial `001`'s process_func: each cannot happen by construction, or a law names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.data.chat.laws import LawBroken
from luthier.data.chat.renderer import ChatRenderer
from luthier.data.chat.template import Template
from luthier.types import Conversation, Message, Text
from tests.helpers import tokenizers

END_OF_TURN = 4
ASKED = (Message("user", "Who are you?"), Message("assistant", "My father is an official."))


def example(*messages: Message) -> Conversation:
    return Conversation(messages or ASKED, "huanhuan.json:1")


def renderer(tmp_path: Path, source: str | None = None) -> ChatRenderer:
    tokenizer = tokenizers.gemma_like()
    if source is None:
        return ChatRenderer(tokenizer, Template.choose(tokenizer), {END_OF_TURN})
    (tmp_path / "own.jinja").write_text(source, encoding="utf-8")
    return ChatRenderer(tokenizer, Template.choose(tokenizer, str(tmp_path / "own.jinja")), {END_OF_TURN})


def test_1_an_attention_mask_cannot_be_too_long(tmp_path: Path) -> None:
    """Nobody writes a mask by hand: a sample has ids and targets of one length, and masks are made of lengths."""
    sample = renderer(tmp_path).encode_conversation(example(), 0)
    assert len(sample.input_ids) == len(sample.targets) == len(sample)


def test_2_an_answer_without_its_end_is_refused(tmp_path: Path) -> None:
    ours = renderer(tmp_path)
    sample = ours.encode_conversation(example(), 0)
    assert sample.input_ids[-1] == END_OF_TURN
    assert sample.targets[-2] == END_OF_TURN
    with pytest.raises(LawBroken, match=r"stop_token_is_trained_and_stops.*no stop token"):
        renderer(tmp_path, tokenizers.TURNS.replace("<end_of_turn>", "")).encoded(example())
    tokenizer = tokenizers.gemma_like()
    with pytest.raises(
        LawBroken, match="generation stops only at"
    ):  # generation_config.json does not name <end_of_turn>
        ChatRenderer(tokenizer, Template.choose(tokenizer)).encoded(example())
    text = ours.encode_text(Text("plain", "a:1"), 0)
    assert [text.input_ids[0], text.input_ids[-1]] == [ours.tokenizer.bos_token_id, ours.tokenizer.eos_token_id]


def test_3_bos_comes_from_the_template_and_its_lack_is_refused(tmp_path: Path) -> None:
    bos = tokenizers.gemma_like().bos_token_id
    ids = renderer(tmp_path).encoded(example()).ids
    assert ids[0] == bos
    assert ids.count(bos) == 1
    with pytest.raises(LawBroken, match="begins_with_bos"):
        renderer(tmp_path, tokenizers.TURNS.replace("{{ bos_token }}", "")).encoded(example())
    with pytest.raises(LawBroken, match="no_double_bos"):
        renderer(tmp_path, "{{ bos_token }}" + tokenizers.TURNS).encoded(example())


@pytest.mark.parametrize(
    "ending", ["<end_of_turn>model", "<end_of_turn>", "<|im_end|>", "\n<eod>  ", "</s>", "<end_of_turn> model\n"]
)
def test_4_an_answer_that_ends_in_a_terminator_or_role_is_refused(tmp_path: Path, ending: str) -> None:
    with pytest.raises(LawBroken, match="answer_has_no_terminator"):
        renderer(tmp_path).encoded(example(ASKED[0], Message("assistant", "My father is an official." + ending)))


def test_4_a_template_that_trains_a_role_after_the_stop_token_is_refused(tmp_path: Path) -> None:
    source = (
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
        "<start_of_turn>user\n{{ message.content }}<end_of_turn>\n<start_of_turn>model\n"
        "{% else %}{% generation %}{{ message.content }}<end_of_turn>model{% endgeneration %}{% endif %}{% endfor %}"
    )
    with pytest.raises(LawBroken, match="nothing_after_the_stop_token"):
        renderer(tmp_path, source).encoded(example())
    renderer(tmp_path, source.replace("<end_of_turn>model", "<end_of_turn>")).encoded(example())


def test_5_a_system_text_is_trained_as_it_is_served_or_refused(tmp_path: Path) -> None:
    system = Message("system", "Play Zhen Huan.")
    with pytest.raises(Exception, match="System role not supported"):
        renderer(tmp_path).encoded(example(system, *ASKED))
    dropping = tokenizers.TURNS.replace(
        "{{ raise_exception('System role not supported') }}", "{% set messages = messages[1:] %}"
    )
    dropping = "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}" + dropping
    with pytest.raises(LawBroken, match="every_message_is_shown"):
        renderer(tmp_path, dropping).encoded(example(system, *ASKED))
    tokenizer = tokenizers.chatml()
    chatml = ChatRenderer(tokenizer, Template.choose(tokenizer))
    encoded = chatml.encoded(example(system, *ASKED))
    assert chatml.prompt_ids([system, ASKED[0]]) == encoded.ids[: encoded.evidence.spans[0][0]]
    assert chatml.prompt_ids([ASKED[0]]) != encoded.ids[: encoded.evidence.spans[0][0]]
