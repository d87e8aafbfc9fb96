"""Tokens that a template writes around messages though the tokenizer does not call them special."""

from __future__ import annotations

import re
from typing import Any

from luthier.data.chat.template import Request, Template, TemplateMessage, as_template_message
from luthier.data.chat.tools import MARKS_OF_THOUGHT
from luthier.types import Message, ToolCall

BRACKETED = re.compile(r"[<\[{(\u3010\u300a].+[>\]})\u3011\u300b]", re.DOTALL)
"""What a token that marks turns looks like: `<|user|>`, `[INST]`."""


def ordinary_tokens_of(template: Template, tokenizer: Any) -> dict[str, int]:
    """The tokens that a template writes around messages though the tokenizer does not call them special, with their ids.

    A tokenizer to which `<|im_start|>` was added as an ordinary token would else read it in a user's text as in the
    template's. Not among them: what an answer may hold (marks of thoughts and of calls), and runs of white space, words
    and signs, which some tokenizers hold as added tokens too.
    """
    ordinary = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if not token.special}
    ordinary = {token: index for token, index in ordinary.items() if BRACKETED.fullmatch(token)}
    if not ordinary:
        return {}
    called = as_template_message(Message("assistant", "", tool_calls=(ToolCall("f", "{}"),)))
    talk: tuple[TemplateMessage, ...] = (("user", "a"), ("assistant", "b"), ("user", "c"))
    probes = [talk, (("system", "s"), *talk), (*talk, called), (*talk, called, ("tool", "d"))]
    texts = [text if isinstance(text, str) else "" for text in template.render([Request(probe) for probe in probes])]
    plain, with_system, with_call, with_result = ({token for token in ordinary if token in text} for text in texts)
    around = plain | with_system | (with_result - with_call if with_call else set())
    return {token: ordinary[token] for token in around.difference(MARKS_OF_THOUGHT)}
