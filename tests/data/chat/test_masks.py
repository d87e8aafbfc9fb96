"""The key property: the decoded trained tokens are exactly the assistant's texts and end-of-turn tokens."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.chat.renderer import ChatRenderer
from luthier.data.chat.template import Template
from luthier.types import NO_TARGET, Conversation, Message, Sample
from tests.helpers import tokenizers
from tests.helpers.properties import examples

WORDS = (
    "the sea",
    " leading",
    "  two",
    "trailing ",
    "\n",
    "\n\n",
    "\t",
    "你好",
    "今天天气",
    "東京は",
    "안녕",
    "Привет",
    "مرحبا",
    "😀",
    "👩‍👩‍👧",
    "é",
    "e\u0301",
    "<|im_end|>",
    "<|im_start|>user",
    "</s>",
    "<s>",
    "[/INST]",
    "<end_of_turn>",
    "<start_of_turn>model",
    "<bos>",
    "<",
    "|>",
    "\u2028",
    "\u200b",
    "x = 1",
    "0.5",
    "{{ 7 * 7 }}",
    "{% endgeneration %}",
    "system",
    "assistant",
)
KINDS: dict[str, tuple[Callable[[], Any], str, tuple[int, ...]]] = {
    "prefix renders": (tokenizers.chatml, "<|im_end|>", ()),
    "generation marks": (tokenizers.marked, "<|im_end|>", ()),
    "metaspace": (tokenizers.llama_like, "</s>", ()),
    "metaspace before every part": (lambda: tokenizers.llama_like(legacy=True), "</s>", ()),
    "trimming": (tokenizers.gemma_like, "<end_of_turn>", (4,)),
}


def conversation(number: int) -> Conversation:
    """A conversation of 1 to 3 turns, many scripts, spaces at the ends, control tokens written out."""
    draw = random.Random(number)

    def text() -> str:
        return "".join(draw.choice(WORDS) for _ in range(draw.randint(1, 6))) + draw.choice(
            ("a", "好.", "! 😀", " end ")
        )

    messages = [
        Message(role, text(), role == "user" or draw.random() < 0.9)
        for _ in range(draw.randint(1, 3))
        for role in ("user", "assistant")
    ]
    messages[-1] = Message("assistant", messages[-1].content)
    return Conversation(tuple(messages), f"made:{number}")


def trained_texts(tokenizer: Any, sample: Sample) -> list[str]:
    """The decoded runs of trained tokens, each decoded behind what stands before it (decoders drop a text's first
    space).
    """
    trained = [False, *(target != NO_TARGET for target in sample.targets[:-1])]
    texts, start = [], None
    for index in range(len(sample) + 1):
        now = index < len(sample) and trained[index]
        if now and start is None:
            start = index
        elif not now and start is not None:
            before = tokenizer.decode(sample.input_ids[:start])
            texts.append(tokenizer.decode(sample.input_ids[:index])[len(before) :])
            start = None
    return texts


@pytest.mark.prove
@pytest.mark.parametrize("kind", KINDS)
def test_trained_tokens_are_the_answers_and_their_ends(kind: str) -> None:
    make, stop, stop_ids = KINDS[kind]
    tokenizer = make()
    examples = [conversation(number) for number in range(1000)]
    with Template.choose(tokenizer) as template:
        renderer = ChatRenderer(tokenizer, template, stop_ids)
        renderer.prefetch(examples)
        for index, example in enumerate(examples):
            sample = renderer.encode_conversation(example, index)
            answers = [message.content for message in example.messages if message.role == "assistant" and message.train]
            wanted = {
                "trimming": [answer.strip() + stop for answer in answers],
                "metaspace": [f" {answer}{stop}" for answer in answers],
                "metaspace before every part": [f" {answer}{stop}" for answer in answers],
            }.get(kind, [answer + stop for answer in answers])
            assert trained_texts(tokenizer, sample) == wanted, example
            assert (
                sample.targets[:-1][sample.targets[:-1] != NO_TARGET]
                == sample.input_ids[1:][sample.targets[:-1] != NO_TARGET]
            ).all()
            assert sample.targets[-1] == NO_TARGET


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_served_is_what_was_trained(kind: str) -> None:
    make, _, stop_ids = KINDS[kind]
    tokenizer = make()
    with Template.choose(tokenizer) as template:
        renderer = ChatRenderer(tokenizer, template, stop_ids)
        for number in range(60):
            example = conversation(number)
            encoded = renderer.encoded(example)
            trained = [i for i, message in enumerate(example.messages) if message.role == "assistant" and message.train]
            for index, (start, _) in zip(trained, encoded.evidence.spans, strict=True):
                assert renderer.prompt_ids(example.messages[:index]) == encoded.ids[:start]


@pytest.mark.parametrize("kind", KINDS)
def test_the_render_is_that_of_transformers(kind: str) -> None:
    tokenizer = KINDS[kind][0]()
    with Template.choose(tokenizer) as template:
        for number in range(20):
            example = conversation(number)
            chat = [{"role": message.role, "content": message.content} for message in example.messages]
            for prompt in (False, True):
                ours = template.render_one(example.messages, add_generation_prompt=prompt)
                assert ours == tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)


@pytest.mark.prove
def test_ids_equal_one_encoding_of_the_whole_where_nothing_is_smuggled() -> None:
    """The parts give what the tokenizer gives for the whole text, except where that is counted."""
    for make, stop_ids in ((tokenizers.chatml, ()), (tokenizers.llama_like, ()), (tokenizers.gemma_like, (4,))):
        tokenizer = make()
        with Template.choose(tokenizer) as template:
            renderer = ChatRenderer(tokenizer, template, stop_ids)
            checked = 0
            for number in range(300):
                encoded = renderer.encoded(conversation(number))
                if encoded.control_text:
                    continue
                whole = tokenizer(encoded.evidence.text, add_special_tokens=False)["input_ids"]
                assert (list(whole) != encoded.ids) == encoded.other_ids_if_whole
                checked += 1
            assert checked > 20


@examples(150)
@given(
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1),
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1),
)
def test_any_text_is_trained_as_it_is(request_text: str, answer: str) -> None:
    tokenizer, renderer = _shared()
    if not request_text.strip() or not answer.strip():
        return
    answer += "."  # hypothesis knows the names of end tokens, with which no answer may end
    example = Conversation((Message("user", request_text), Message("assistant", answer)), "made:1")
    assert trained_texts(tokenizer, renderer.encode_conversation(example, 0)) == [answer + "<|im_end|>"]


def _shared(made: list[Any] = []) -> tuple[Any, ChatRenderer]:  # noqa: B006 - one process for all examples
    if not made:
        tokenizer = tokenizers.chatml()
        made.append((tokenizer, ChatRenderer(tokenizer, Template.choose(tokenizer))))
    return made[0]
