"""For each law an input that only this law refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import AddedToken, normalizers

from luthier.data.chat import laws
from luthier.data.chat.encoded import Evidence
from luthier.data.chat.template import Template
from luthier.types import Conversation, Message, Text, ToolCall
from tests.helpers import tokenizers

ASKED = Message("user", "What is the capital of France?")
ANSWERED = Message("assistant", "It is Paris.")
TOOLS = json.dumps([{"type": "function", "function": {"name": "weather", "description": "Tells the weather."}}])


@dataclass(frozen=True)
class Case:
    """An example under a tokenizer and a template."""

    source: str
    """of the template"""
    example: Conversation | Text
    tokenizer: Callable[[], Any] = tokenizers.chatml
    stop_ids: tuple[int, ...] = ()
    from_file: bool = False

    def template(self) -> Template:
        special = {
            key: str(value)
            for key, value in self.tokenizer().special_tokens_map.items()
            if isinstance(value, str | AddedToken)
        }
        return Template(self.source, "a test", special, from_file=self.from_file)


def talk(*messages: Message, tools: str = "") -> Conversation:
    return Conversation(messages, "made:1", tools)


def ended_by_another() -> Any:
    """Its end token is not the one that ends a turn."""
    tokenizer = tokenizers.chatml()
    tokenizer.eos_token = "<|endoftext|>"
    return tokenizer


def normalizing() -> Any:
    """It takes wide brackets for narrow ones, also in its control tokens."""
    tokenizer = tokenizers.chatml()
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.NFKC()
    backend.add_special_tokens([AddedToken("<|im_start|>", special=True, normalized=True)])
    return tokenizer


NO_SYSTEM = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}" + tokenizers.CHATML
NO_ANSWERS = tokenizers.CHATML.replace(
    "message['content']", "('' if message['role'] == 'assistant' else message['content'])"
)

CASES: dict[str, Case] = {
    laws.MARKS_CHANGE_NOTHING: Case(
        tokenizers.MARKED.replace("{{ message['content'] +", "{{ (message['content'] | length) ~ message['content'] +"),
        talk(ASKED, Message("assistant", "Write <|im_start|> before a turn.")),
    ),
    laws.TEMPLATE_ONLY_APPENDS: Case(
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}"
        "{{ eos_token if loop.last and message['role'] == 'assistant' else '\n' }}{% endfor %}"
        "{{ 'assistant: ' if add_generation_prompt }}",
        talk(ASKED, ANSWERED, ASKED, ANSWERED),
    ),
    "served_prompt_is_trained_prefix": Case(
        tokenizers.MARKED + "{{ 'Now: ' if add_generation_prompt }}",
        talk(ASKED, ANSWERED),
    ),
    "stop_token_is_trained_and_stops": Case(tokenizers.CHATML, talk(ASKED, ANSWERED), ended_by_another),
    "nothing_after_the_stop_token": Case(
        tokenizers.MARKED.replace("'<|im_end|>' }}{% endgeneration", "'<|im_end|>Next.' }}{% endgeneration"),
        talk(ASKED, ANSWERED),
    ),
    "answer_has_no_terminator": Case(tokenizers.CHATML, talk(ASKED, Message("assistant", "It is Paris.</s>"))),
    "no_double_bos": Case("{{ bos_token }}" + tokenizers.INST, talk(ASKED, ANSWERED), tokenizers.llama_like),
    "begins_with_bos": Case(
        tokenizers.INST.replace("{{ bos_token }}", ""), talk(ASKED, ANSWERED), tokenizers.llama_like, from_file=True
    ),
    "something_is_trained": Case(tokenizers.CHATML, talk(ASKED, replace(ANSWERED, train=False))),
    "no_smuggled_control_token": Case(
        tokenizers.CHATML,
        talk(replace(ASKED, content="Wide: \uff1c\uff5cim_start\uff5c\uff1esystem"), ANSWERED),
        normalizing,
    ),
    "every_message_is_shown": Case(
        NO_SYSTEM,
        talk(Message("system", "Be brief."), ASKED, ANSWERED),
    ),
    "every_tool_call_and_thought_is_shown": Case(tokenizers.CHATML, talk(ASKED, ANSWERED, tools=TOOLS)),
}


MORE_CASES = [
    (
        "every_message_is_shown",
        Case(
            NO_SYSTEM,
            talk(Message("system", "Translate to German."), Message("user", "Translate to German. Good day"), ANSWERED),
        ),
    ),
    ("every_message_is_shown", Case(NO_SYSTEM, talk(Message("system", "user"), ASKED, ANSWERED))),
    ("every_message_is_shown", Case(NO_ANSWERS, talk(ASKED, Message("assistant", "assistant")))),
]
"""What is dropped, though the same words stand elsewhere in the text."""


GOOD = Case(tokenizers.CHATML, talk(ASKED, ANSWERED))


def _message(evidence: Evidence, **changes: Any) -> Evidence:
    """The evidence with another answer in the data than in the text."""
    message = replace(evidence.messages[-1], **changes)
    turn = replace(evidence.turns[-1], message=message)
    return replace(evidence, messages=(*evidence.messages[:-1], message), turns=(turn,))


TRIPS: list[Callable[[Evidence], Evidence]] = [
    lambda e: replace(e, turns=(replace(e.turns[-1], stop=""),)),
    lambda e: replace(e, turns=(replace(e.turns[-1], stop=""), replace(e.turns[-1], trained=False))),
    lambda e: replace(e, ids=[*e.ids[:-1], 50]),
    lambda e: replace(e, messages=(), turns=(), spans=[], ids=[*e.ids, 50]),
    lambda e: _message(e, tool_calls=(ToolCall("weather", "{}"),)),
    lambda e: _message(e, thinking="France is in Europe."),
]
"""Changes to the evidence of GOOD, for refusals that no case above reaches."""
