"""The templates that tokenizers of many families carry, under tokenizers of their kinds: every shape of conversation keeps
the laws, or is refused with its reason.
"""

from __future__ import annotations

from functools import cache

import pytest

from luthier.data.chat.check import Outcome, check_template, shapes
from luthier.data.chat.renderer import ChatRenderer
from luthier.data.chat.template import Template
from luthier.types import Conversation
from tests.data.chat.test_masks import trained_texts
from tests.helpers.families import FAMILIES, Family


@cache
def outcomes(name: str) -> tuple[ChatRenderer, dict[str, Conversation], list[Outcome]]:
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    tokenizer.chat_template = family.template
    template = Template.choose(tokenizer)
    renderer = ChatRenderer(tokenizer, template, [tokenizer.convert_tokens_to_ids(family.stop)])
    conversations = shapes(sorted(renderer.encoder.control))
    found = check_template(renderer, conversations)
    template.close()
    return renderer, conversations, found


def refusals(family: Family, conversation: Conversation) -> list[str]:
    """What may be said against a conversation; empty where it must pass."""
    messages = conversation.messages
    reasons = [family.never] if family.never else []
    reasons += [family.system] if family.system and messages[0].role == "system" else []
    if family.results and any(message.role == "tool" for message in messages):
        reasons.append(family.results)
    reasons += ["the tool 'get_weather' is not shown"] if family.results and conversation.tools else []
    if not family.thoughts and any(message.thinking for message in messages):
        reasons.append("are not shown")
    return reasons


@pytest.mark.parametrize("name", FAMILIES)
def test_every_shape_keeps_the_laws_or_is_refused_with_its_reason(name: str) -> None:
    family = FAMILIES[name]
    _, conversations, found = outcomes(name)
    assert len(found) == len(conversations) > 20
    for outcome in found:
        reasons = refusals(family, conversations[outcome.shape])
        assert outcome.passed == (not reasons), outcome
        assert outcome.passed or any(reason in outcome.reason for reason in reasons), outcome
        assert (outcome.samples > 1) == (outcome.shape in family.splits), outcome


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_trained_is_the_answer_and_the_token_at_which_it_stops(name: str) -> None:
    """White space at the ends apart where the format trims or writes some."""
    family = FAMILIES[name]
    renderer, conversations, found = outcomes(name)
    renderer.prefetch(list(conversations.values()))
    for outcome in found:
        if not outcome.passed:
            continue
        conversation = conversations[outcome.shape]
        trained = [
            text for sample in renderer.encode(conversation, 0) for text in trained_texts(renderer.tokenizer, sample)
        ]
        answers = [message for message in conversation.messages if message.role == "assistant" and message.train]
        assert len(trained) == len(answers)
        for text, message in zip(trained, answers, strict=True):
            said, stopped = text.removesuffix(family.stop), text.endswith(family.stop)
            assert stopped or family.never, outcome
            if message.tool_calls or message.thinking or family.thoughts:
                assert said.strip().endswith(message.content.rpartition("</think>")[2].strip()), outcome
            elif family.trims:
                assert said.strip() == message.content.strip(), outcome
            else:
                assert said in (message.content, f" {message.content}"), outcome


def test_the_families_are_more_than_ten_and_their_tokenizers_of_several_kinds() -> None:
    kinds = {(type(family.tokenizer().backend_tokenizer.model).__name__) for family in FAMILIES.values()}
    assert len(FAMILIES) >= 15
    assert kinds == {"BPE", "Unigram"}
