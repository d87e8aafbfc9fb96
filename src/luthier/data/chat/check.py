"""Whether a template and a tokenizer keep the laws: every shape of conversation is encoded, and served."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.data.chat.library import NAMED_TOKENS, Facts
from luthier.data.chat.renderer import ChatRenderer
from luthier.data.chat.template import Template, read_template
from luthier.errors import UserError
from luthier.types import Conversation, Message, ToolCall

BOS, EOS = "<s>", "</s>"
MOST_WORDS = 100_000

SYSTEM = Message("system", "Answer in one sentence.")
ASKED = Message("user", "What is the capital of France?")
ANSWER = Message("assistant", "It is Paris.")
MORE = (Message("user", "And of Italy?"), Message("assistant", "Rome, of course."))
TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": 'The weather in a place, "now" or later.',
                "parameters": {
                    "type": "object",
                    "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
                    "required": ["place"],
                },
            },
        }
    ]
)
CALL = Message(
    "assistant", "", tool_calls=(ToolCall("get_weather", '{"place": "Köln \\"Süd\\"", "days": 2}', "a1b2c3d4e"),)
)
RESULT = Message("tool", '{"sky": "clear",\n "degrees": 21.5}', name="get_weather", tool_call_id="a1b2c3d4e")
FORECAST = Message("assistant", "Clear, at 21.5 degrees.")
THOUGHT = Message("assistant", "It is 42.", thinking="Six times seven\nis forty-two.")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one shape of conversation."""

    shape: str
    passed: bool
    reason: str
    """why it was refused; "" where it passed"""
    samples: int
    """as how many samples it is trained; 0 where it was refused"""
    claimed: bool
    """whether the template claims to hold it: then a refusal is a fault"""


def shapes(control: Iterable[str] = ()) -> dict[str, Conversation]:
    """Conversations of every shape; the texts of `control` tokens stand in some of them."""
    smuggled = " ".join(control) or "<|im_end|>"

    def made(*messages: Message, tools: str = "") -> Conversation:
        return Conversation(messages, "shape:1", tools)

    def texts(request: str, answer: str) -> Conversation:
        return made(Message("user", request), Message("assistant", answer))

    return {
        "one turn": made(ASKED, ANSWER),
        "several turns": made(ASKED, ANSWER, *MORE, ASKED, ANSWER),
        "system": made(SYSTEM, ASKED, ANSWER),
        "system, several turns": made(SYSTEM, ASKED, ANSWER, *MORE),
        "only the last answer trained": made(ASKED, Message("assistant", ANSWER.content, train=False), *MORE),
        "only the first answer trained": made(ASKED, ANSWER, MORE[0], Message("assistant", "Rome.", train=False)),
        "tools": made(ASKED, CALL, RESULT, FORECAST, tools=TOOLS),
        "tools, system, several turns": made(SYSTEM, *MORE, ASKED, CALL, RESULT, FORECAST, *MORE, tools=TOOLS),
        "tools on offer, none called": made(ASKED, ANSWER, tools=TOOLS),
        "thoughts": made(ASKED, THOUGHT),
        "thoughts, several turns": made(SYSTEM, ASKED, THOUGHT, *MORE, ASKED, THOUGHT),
        "thoughts in the text": texts("How much?", "<think>\nSix times seven.\n</think>\n\nIt is 42."),
        "empty request": texts("", "What do you mean?"),
        "empty answer": texts("Say nothing.", ""),
        "CJK": texts("你好，请介绍一下北京。", "北京是中国的首都。東京は日本の首都です。서울."),
        "emoji": texts("😀 👩‍👩‍👧?", "👩‍👩‍👧 e\u0301 ünïcode 🎉"),
        "right to left": texts("مرحبا כיצד", "كيف حالك؟ שלום"),
        "control tokens in the request": texts(f"What is {smuggled}?", "A token."),
        "control tokens in the answer": texts("Show one.", f"Here: {smuggled} is one."),
        "control tokens in the system text": made(Message("system", f"No {smuggled}."), ASKED, ANSWER),
        "control tokens in a result": made(
            ASKED, CALL, Message("tool", smuggled, name="get_weather"), FORECAST, tools=TOOLS
        ),
        "spaces at the ends": texts("  What? ", " It is.  "),
        "line breaks": texts("\n\nWhat\n\n\nis it?\n", "\nA list:\n\n1. one\n2. two\n"),
        "code of templates": texts("{{ 7 * 7 }} {% endfor %}", "{% endgeneration %} {# no #} {{ eos_token }}"),
    }


def check_template(renderer: ChatRenderer, conversations: Mapping[str, Conversation]) -> list[Outcome]:
    """Encodes each conversation, and serves it: the ids before each answer must be those of the served prompt.

    Raises:
        UserError: the template is no Jinja.
    """
    renderer.prefetch(list(conversations.values()))
    return [_outcome(renderer, shape, conversation) for shape, conversation in conversations.items()]


def _outcome(renderer: ChatRenderer, shape: str, conversation: Conversation) -> Outcome:
    claimed = claims(renderer.template.facts if renderer.template else Facts(), conversation)
    try:
        parts = renderer.encoded_parts(conversation)
    except UserError as error:
        return Outcome(shape, False, error.found, 0, claimed)
    for part in parts:
        trained = [turn for turn in part.evidence.turns if turn.trained]
        for turn, (start, _) in zip(trained, part.evidence.spans, strict=True):
            if served_ids(renderer, conversation, turn.index) != part.ids[:start]:
                wrong = f"the ids before message {turn.index} are not those that are served"
                return Outcome(shape, False, wrong, 0, claimed)
    return Outcome(shape, True, "", len(parts), claimed)


def claims(facts: Facts, conversation: Conversation) -> bool:
    """Whether a template says that it holds a conversation: any but those with a system text, tools, thoughts or an inner
    answer whose end is trained alone, of which its header must say so.
    """
    messages = conversation.messages
    return not (
        (facts.system in ("", "refused") and messages[0].role == "system")
        or (not facts.tools and conversation.tools)
        or (facts.thinking in ("", "no") and any(message.thinking for message in messages))
        or (facts.inner_stop in ("", "no") and not messages[-1].train)
    )


def served_ids(renderer: ChatRenderer, conversation: Conversation, index: int) -> list[int]:
    """What is served where message `index` is asked for, by a renderer that knows nothing of what was encoded."""
    return renderer.prompt_ids(conversation.messages[:index], conversation.tools)


def checked_by_name(spec: str, tokenizer: Any | None = None) -> list[Outcome]:
    """The outcomes of a template (a name, a file, or `auto`) under a tokenizer; without one, under one that is made.

    Raises:
        UserError: there is no such template, it is no Jinja, or the tokenizer lacks its tokens.
    """
    used = tokenizer if tokenizer is not None else made_tokenizer(tokens_of(spec))
    with Template.choose(used, spec) as template:
        renderer = ChatRenderer(used, template)
        return check_template(renderer, shapes(sorted(renderer.encoder.control)))


def tokens_of(*specs: str) -> list[str]:
    """The control tokens that the headers of some templates name.

    Raises:
        UserError: there is no such template; `auto` is a model's.
    """
    if "auto" in specs:
        raise UserError("auto", "the tokenizer's own template, and no tokenizer", "a model", "--model org/name")
    facts = [read_template(spec, "{}")[1] for spec in specs]
    return list(dict.fromkeys(t for one in facts for t in (*one.tokens, *one.stop) if t not in NAMED_TOKENS))


def made_tokenizer(tokens: Iterable[str] = (), *, adds_bos: bool = False, texts: Iterable[str] = ()) -> Any:
    """A tokenizer of bytes, <s>, </s>, the given control tokens and the words of `texts`: what a template needs where no
    model is at hand.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = [BOS, EOS, *(token for token in tokens if token not in (BOS, EOS))]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=specials, initial_alphabet=alphabet, min_frequency=1, vocab_size=MOST_WORDS, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False
    )
