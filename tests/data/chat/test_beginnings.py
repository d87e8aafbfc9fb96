"""Beginnings of conversations: each is the text that is rendered for it alone, however it came."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.chat import splitting
from luthier.data.chat.beginnings import Beginning, Chains
from luthier.data.chat.check import shapes
from luthier.data.chat.renderer import ChatRenderer
from luthier.data.chat.sandbox import common
from luthier.data.chat.template import Request, Template, as_template_message
from luthier.errors import UserError
from luthier.types import Conversation, Message
from tests.helpers import tokenizers

SHORT = st.text("ab", max_size=6)
LAST_ONLY = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.thinking if loop.last }}{{ loop.index if loop.length > 3 }}"
    "{% endfor %}{{ '<assistant>' if add_generation_prompt }}"
)
"""What was last is written otherwise once it is history, and all of it where it grows long."""


@given(SHORT, SHORT)
def test_the_common_beginning(one: str, other: str) -> None:
    both = common(one, other)
    assert one[:both] == other[:both]
    assert both == min(len(one), len(other)) or one[both] != other[both]


@given(SHORT, SHORT, SHORT)
def test_a_beginning_beside_another_text(base: str, one: str, other: str) -> None:
    first, second = (Beginning(base, at := common(base, text), text[at:]) for text in (one, other))
    found = first.beside(other, second)
    assert str(found) == str(first) == one
    assert found.shared == common(one, other)


@pytest.mark.parametrize("source", [tokenizers.CHATML, tokenizers.INST, tokenizers.TURNS, LAST_ONLY])
def test_chains_give_what_is_rendered_alone(source: str) -> None:
    talks = [tuple(map(as_template_message, one.messages)) for one in shapes().values() if not one.tools]
    with Template(source, "a test", {"bos_token": "<s>", "eos_token": "</s>"}) as template:
        chains, asked = Chains(), list[tuple[int, tuple[int, bool], Request]]()
        for messages in sorted(talks, key=len, reverse=True):
            chain = chains.hold(messages, "")
            for count in range(1, len(messages) + 1):
                for prompted in (False, True):
                    place = chain.want(count, prompted)
                    asked.append((chains.all.index(chain), place, Request(messages[:count], prompted)))
        found = chains.render(template)
        assert len(chains.all) < len(talks), "a conversation that begins another one is a part of it"
        for (chain_index, place, _), alone in zip(asked, template.render([one for _, _, one in asked]), strict=True):
            begun = found[chain_index][place]
            if isinstance(alone, UserError):
                assert isinstance(begun, UserError)
                assert begun.found == alone.found
            else:
                assert str(begun) == alone


def talk(answers: int) -> Conversation:
    turns = (Message("user", "a"), Message("assistant", "b", thinking="hm"))
    return Conversation(turns * answers, "a:1")


def test_a_conversation_that_is_split_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizers.chatml()
    with Template.choose(tokenizer, "qwen3@think") as template:
        assert len(ChatRenderer(tokenizer, template).encoded_parts(talk(4))) == 4
        monkeypatch.setattr(splitting, "MOST_MESSAGES", 19)
        renderer = ChatRenderer(tokenizer, template)
        with pytest.raises(UserError, match="4 answers, each a sample with its history: 20 messages"):
            renderer.encoded_parts(talk(4))
        assert len(renderer.encoded_parts(talk(3))) == 3
