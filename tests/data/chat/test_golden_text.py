"""Ids and targets of the seeds' formats, against those of the original programs or worked out here by hand."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from luthier.data.chat.check import made_tokenizer
from luthier.data.chat.renderer import ChatRenderer
from luthier.data.chat.template import Template
from luthier.models.architectures import tokenizer_class
from luthier.types import NO_TARGET, Conversation, Message
from tests.helpers import tokenizers

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"
ORIGINALS = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the originals' tokenizers and ids lie in ../shared/golden, which is not here"
)
IGNORED = -100
ROLES = {"human": "user", "gpt": "assistant"}
PERSONA = "现在你要扮演皇帝身边的女人--甄嬛."


@cache
def yuan(folder: Path) -> Any:
    return tokenizer_class("yuan")(vocab_file=str(folder / "tokenizer.model"))


@cache
def baichuan(folder: Path) -> Any:
    return tokenizer_class("baichuan")(vocab_file=str(folder / "tokenizer.model"))


def golden(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"text_{name}.json").read_text(encoding="utf-8"))
    return found


def ids_and_labels(tokenizer: Any, template: str, *messages: Message) -> tuple[list[int], list[int]]:
    """What is trained, written as the originals do: the label of a position is the target of the one before it."""
    with Template.choose(tokenizer, template) as chosen:
        (sample,) = ChatRenderer(tokenizer, chosen).encode(Conversation(messages, "golden:1"), 0)
    labels = [IGNORED, *(IGNORED if target == NO_TARGET else int(target) for target in sample.targets[:-1])]
    return sample.input_ids.tolist(), labels


@ORIGINALS
@pytest.mark.parametrize("template", ["yuan", "yuan@2026-08", "yuan@2024-03", "yuan@fastchat"])
def test_yuan_as_the_tutorial_trains_it(template: str) -> None:
    tokenizer = yuan(GOLDEN / "tokenizer_yuan2")
    for text in golden("yuan2")["encode"]:
        if "<n>" not in text["text"]:
            assert tokenizer.encode(text["text"]) == text["ids"], text
    for case in golden("yuan2")["sft"]:
        request = case["example"]["instruction"].replace("长*500", "长" * 500)
        messages = (Message("user", request), Message("assistant", case["example"]["output"]))
        ids, labels = ids_and_labels(tokenizer, template, *messages)
        # the tutorial cuts at 384 tokens: 500 characters are one token each and are not cut in its fields
        assert (ids, labels) == (case["input_ids"], case["labels"])


@pytest.mark.prove
@ORIGINALS
def test_baichuan2_as_its_fine_tune_py_trains_it() -> None:
    """Between turns the end token is a target though the next request's token follows."""
    tokenizer = baichuan(GOLDEN / "tokenizer_baichuan2")
    for case in golden("baichuan2")["fine_tune_py(model_max_length 40)"]:
        messages = [Message(ROLES[turn["from"]], turn["value"]) for turn in case["example"]["conversations"]]  # type: ignore[arg-type]
        ids, labels = ids_and_labels(tokenizer, "baichuan2", *messages)
        length = sum(case["attention_mask"])
        # a causal model's loss shifts labels by one, so the very first one is never seen
        assert case["labels"][0] == tokenizer.eos_token_id
        assert (ids, labels) == (case["input_ids"][:length], [IGNORED, *case["labels"][1:length]])
        assert case["labels"][length:] == [IGNORED] * (len(case["labels"]) - length)


@ORIGINALS
def test_baichuan2_is_served_as_its_build_chat_input_has_it() -> None:
    tokenizer = baichuan(GOLDEN / "tokenizer_baichuan2")
    with Template.choose(tokenizer, "baichuan2") as template:
        renderer = ChatRenderer(tokenizer, template)
        for case in golden("baichuan2")["build_chat_input"]:
            messages = [Message(**message) for message in case["messages"]]
            if messages[-1].role == "user":
                assert renderer.prompt_ids(messages) == case["ids"]


@pytest.mark.prove
@ORIGINALS
def test_baichuan2_as_the_lora_tutorial_trains_it() -> None:
    tokenizer = baichuan(GOLDEN / "tokenizer_baichuan2")
    for case in golden("baichuan2")["self_llm_lora"]:
        request = case["example"]["instruction"] + case["example"]["input"]
        messages = [
            Message("system", PERSONA),
            Message("user", request),
            Message("assistant", case["example"]["output"]),
        ]
        assert ids_and_labels(tokenizer, "baichuan2@self-llm", *messages) == (case["input_ids"], case["labels"])


@ORIGINALS
def test_reserved_tokens_in_the_data_stay_text() -> None:
    """For the tokenizer they are ordinary pieces; the template's header says that they are its own."""
    tokenizer = baichuan(GOLDEN / "tokenizer_baichuan2")
    messages = (Message("user", "<reserved_107>你好</s>"), Message("assistant", "<reserved_106>!"))
    ids, _ = ids_and_labels(tokenizer, "baichuan2", *messages)
    assert [index for index in ids if index in (195, 196, tokenizer.eos_token_id)] == [195, 196, tokenizer.eos_token_id]


def encoded_apart(tokenizer: Any, *parts: tuple[str, bool]) -> tuple[list[int], list[int]]:
    """Ids and labels of (text, trained) parts, each encoded where it stands: by what it adds to all before it."""
    ids: list[int] = []
    labels: list[int] = []
    text = ""
    for part, trained in parts:
        text += part
        whole = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert whole[: len(ids)] == ids, "the parts meet inside a token: choose other words"
        labels += whole[len(ids) :] if trained else [IGNORED] * (len(whole) - len(ids))
        ids = whole
    return ids, labels


CONVERSATION = (
    Message("user", "Who are you?"),
    Message("assistant", "My father is an official."),
    Message("user", "And you?"),
    Message("assistant", "I am Zhen Huan."),
)
GEMMA = (
    ("<bos><start_of_turn>user\nWho are you?<end_of_turn>\n<start_of_turn>model\n", False),
    ("My father is an official.<end_of_turn>", True),
    ("\n<start_of_turn>user\nAnd you?<end_of_turn>\n<start_of_turn>model\n", False),
    ("I am Zhen Huan.<end_of_turn>", True),
)
LLAMA_2 = (
    ("<s>[INST] Who are you? [/INST]", False),
    (" My father is an official. </s>", True),
    ("<s>[INST] And you? [/INST]", False),
    (" I am Zhen Huan. </s>", True),
)


@pytest.mark.parametrize(
    ("make", "template", "parts"),
    [
        (tokenizers.gemma_like, "gemma", GEMMA),
        (tokenizers.gemma_like, "gemma@self-llm", ((GEMMA[0][0].removeprefix("<bos>"), False), *GEMMA[1:])),
        (tokenizers.llama_like, "llama2", LLAMA_2),
        (tokenizers.llama_like, "llama2@one-bos", (*LLAMA_2[:2], ("[INST] And you? [/INST]", False), LLAMA_2[3])),
    ],
)
def test_turns_of_the_tutorials(make: Any, template: str, parts: tuple[tuple[str, bool], ...]) -> None:
    tokenizer = make()
    assert ids_and_labels(tokenizer, template, *CONVERSATION) == encoded_apart(tokenizer, *parts)


def test_guanaco_learns_to_stop_inside_a_conversation_too() -> None:
    tokenizer = made_tokenizer()
    ids, labels = ids_and_labels(tokenizer, "guanaco", *CONVERSATION)
    parts = (
        ("<s>### Human: Who are you?### Assistant:", False),
        (" My father is an official.", True),
        ("### Human: And you?### Assistant:", False),
        (" I am Zhen Huan.</s>", True),
    )
    wanted_ids, wanted = encoded_apart(tokenizer, *parts)
    assert ids == wanted_ids
    first = len(encoded_apart(tokenizer, *parts[:2])[0])
    assert wanted[first] == IGNORED
    wanted[first] = tokenizer.eos_token_id  # the target behind the first answer, where "###" follows
    assert labels == wanted
