"""Chat templates as models ship them, without generation marks: the formats of many families, written anew from what
each documents, each with the kind of tokenizer that the family has. Hard parts are kept: trimming, refusals, dates,
defaults, thoughts that leave history, ends that only the last answer has.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.helpers.tokenizers import LINES, byte_level, fast, metaspace

BYTES = [f"<0x{value:02X}>" for value in range(256)]


@dataclass(frozen=True)
class Family:
    """A template, its tokenizer, and what it must refuse."""

    template: str
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    stop: str
    """the token that ends an answer"""
    trims: bool = False
    """whether contents are shown without the white space at their ends"""
    system: str = ""
    """why a system text is refused, if it is"""
    results: str = "the tool 'get_weather' is not shown"
    """why results of tools are refused; "" where tools are shown"""
    thoughts: bool = False
    """whether thoughts are shown"""
    never: str = ""
    """why every conversation is refused, if so"""
    splits: frozenset[str] = frozenset()
    """shapes that are trained one answer at a time, because history is written otherwise"""


def bytes_of(*specials: str, eos: str, bos: str | None = None, adds_bos: bool = False, **named: str) -> Any:
    """A byte-level BPE with these control tokens."""

    def make() -> PreTrainedTokenizerFast:
        every = tuple(dict.fromkeys([*([bos] if bos else []), eos, *specials]))
        tokenizer = fast(byte_level(every, 512), eos_token=eos, **({"bos_token": bos} if bos else {}), **named)
        if adds_bos and bos:
            tokenizer.backend_tokenizer.post_processor = _begin(bos, tokenizer)
        return tokenizer

    return make


def pieces_of(*specials: str, eos: str = "</s>", bos: str = "<s>", legacy: bool = False) -> Any:
    """SentencePiece's BPE: pieces with a space before, byte fallback, BOS before every text."""

    def make() -> PreTrainedTokenizerFast:
        every = tuple(dict.fromkeys(["<unk>", bos, eos, *specials]))
        return fast(metaspace(every, 640, legacy), bos_token=bos, eos_token=eos, unk_token="<unk>")

    return make


def unigram_of(*specials: str, eos: str = "</s>", bos: str = "<s>") -> Any:
    """SentencePiece's unigram model, with byte fallback."""

    def make() -> PreTrainedTokenizerFast:
        every = tuple(dict.fromkeys(["<unk>", bos, eos, *specials]))
        return fast(_unigram(every), bos_token=bos, eos_token=eos, unk_token="<unk>")

    return make


def _begin(bos: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
    )


@functools.cache
def _unigram(specials: tuple[str, ...]) -> str:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.UnigramTrainer(
        vocab_size=900, special_tokens=[*specials, *BYTES], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    state = json.loads(tokenizer.to_str())
    state["model"]["byte_fallback"] = True
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in specials]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in specials])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer.to_str()


# ---- the formats

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN25 = (
    "{% set first = messages[0] %}<|im_start|>system\n"
    "{{ first.content if first.role == 'system' else 'You are Qwen, created by Alibaba Cloud.' }}"
    "{% if tools %}\n\n# Tools\n\n<tools>{% for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}\n</tools>{% endif %}"
    "<|im_end|>\n"
    "{% if first.role == 'system' %}{% set messages = messages[1:] %}{% endif %}{% for message in messages %}"
    "{% if message.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ message.content }}\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ message.role }}{% if message.content or not message.tool_calls %}{{ '\n' + message.content }}{% endif %}"
    "{% for call in message.tool_calls or [] %}{{ '\n' }}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (  # thoughts stand only behind the last request
    "{% set ns = namespace(last=0) %}{% for message in messages %}{% if message.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{% if message.role == 'assistant' %}<|im_start|>assistant\n"
    "{% set thoughts = message.reasoning_content or '' %}{% set words = message.content %}"
    "{% if '</think>' in words %}{% set thoughts = words.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set words = words.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.last and (loop.last or thoughts) %}"
    "{{ '<think>\n' + thoughts.strip('\n') + '\n</think>\n\n' }}{% endif %}{{ words }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}{% if message.role == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first and system is defined %}<<SYS>>\n{{ system }}\n<</SYS>>\n\n{% endif %}"
    "{{ message.content | trim }} [/INST]{% elif message.role == 'assistant' %} {{ message.content | trim }} {{ eos_token }}"
    "{% else %}{{ raise_exception('only requests and answers') }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA31 = (  # always a system turn, with today's date; tools and results under roles of their own
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: {{ strftime_now('%d %b %Y') }}\n\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% set messages = messages[1:] %}{% endif %}"
    "<|eot_id|>{% for message in messages %}"
    "{% if message.tool_calls %}{% set call = message.tool_calls[0].function %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|eot_id|>'
    "{% elif message.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n{{ message.content }}<|eot_id|>"
    "{% else %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{% if loop.first and tools %}Respond with a call of a function.\n\n"
    "{% for tool in tools %}{{ tool | tojson(indent=4) }}\n\n{% endfor %}{% endif %}"
    "{{ message.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL1 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must take turns') }}{% endif %}"
    "{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% else %}{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
MISTRAL3 = (  # the system text stands in the last request, so it moves when the conversation goes on
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}{% endif %}"
    "{{ bos_token }}{% set last = messages | map(attribute='role') | list | length - 1 %}{% set ns = namespace(last=0) %}"
    "{% for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{% if message.role == 'user' %}[INST] "
    "{% if loop.index0 == ns.last and system is defined %}{{ system + '\n\n' }}{% endif %}{{ message.content }}[/INST]"
    "{% elif message.role == 'assistant' %} {{ message.content | trim }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must take turns') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n{{ message.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA3 = (  # as before, the system text before the first request
    "{{ bos_token }}{% set before = '' %}{% if messages[0].role == 'system' %}"
    "{% set before = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ before if loop.first }}{{ message.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (  # an end of the text behind the last answer
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TULU = (  # no line break behind the last answer
    "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' if not loop.last }}"
    "{% if loop.last and message.role != 'assistant' %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
FALCON = (  # plain words, no token at the end of an answer
    "{% for message in messages %}{{ {'user': 'User', 'assistant': 'Falcon', 'system': 'System'}[message.role] + ': ' }}"
    "{{ message.content + '\n' }}{% endfor %}{% if add_generation_prompt %}Falcon:{% endif %}"
)
GLM4 = (  # an answer ends where the next turn begins
    "[gMASK]<sop>{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
COMMAND_R = (
    "{{ bos_token }}{% for message in messages %}<|START_OF_TURN_TOKEN|>"
    "{{ {'user': '<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>', 'system': '<|SYSTEM_TOKEN|>'}[message.role] }}"
    "{{ message.content.strip() }}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
DEEPSEEK_R1 = (  # what was thought is not history; the prompt opens the thoughts
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}{{ message.content }}"
    "{% elif message.role == 'user' %}<｜User｜>{{ message.content }}"
    "{% else %}<｜Assistant｜>{{ message.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
YUAN = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ message.content }}{{ ('<n>' if not loop.last else eos_token) if message.role == 'assistant' else "
    "('<sep>' if loop.last or loop.index == loop.length - 1 else '<n>') }}{% endfor %}"
)
VICUNA = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content + ' ' }}{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}{% if message.role == 'user' %}USER: {{ message.content }} "
    "{% else %}ASSISTANT: {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
GRANITE = (
    "{% for message in messages %}<|start_of_role|>{{ message.role }}<|end_of_role|>{{ message.content }}"
    "<|end_of_text|>\n{% endfor %}{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)

FAMILIES: dict[str, Family] = {
    "chatml": Family(CHATML, bytes_of("<|im_start|>", eos="<|im_end|>"), "<|im_end|>"),
    "qwen2.5": Family(QWEN25, bytes_of("<|endoftext|>", "<|im_start|>", eos="<|im_end|>"), "<|im_end|>", results=""),
    "qwen3": Family(
        QWEN3,
        bytes_of("<|endoftext|>", "<|im_start|>", eos="<|im_end|>"),
        "<|im_end|>",
        thoughts=True,
        splits=frozenset({"several turns", "system, several turns", "thoughts, several turns"}),
    ),
    "llama2": Family(LLAMA2, pieces_of(legacy=True), "</s>", trims=True, results="only requests and answers"),
    "llama3": Family(
        LLAMA3,
        bytes_of(
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            eos="<|eot_id|>",
            bos="<|begin_of_text|>",
            adds_bos=True,
        ),
        "<|eot_id|>",
        trims=True,
    ),
    "llama3.1": Family(
        LLAMA31,
        bytes_of("<|start_header_id|>", "<|end_header_id|>", eos="<|eot_id|>", bos="<|begin_of_text|>", adds_bos=True),
        "<|eot_id|>",
        trims=True,
        results="",
    ),
    "mistral v1": Family(
        MISTRAL1, pieces_of(legacy=True), "</s>", system="roles must take turns", results="roles must take turns"
    ),
    "mistral v3": Family(
        MISTRAL3,
        pieces_of("[INST]", "[/INST]"),
        "</s>",
        trims=True,
        results="no such role",
        splits=frozenset({"system, several turns"}),
    ),
    "gemma": Family(
        GEMMA,
        pieces_of("<start_of_turn>", "<end_of_turn>", eos="<eos>", bos="<bos>"),
        "<end_of_turn>",
        trims=True,
        system="System role not supported",
        results="roles must take turns",
    ),
    "gemma 3": Family(
        GEMMA3, unigram_of("<start_of_turn>", "<end_of_turn>", eos="<eos>", bos="<bos>"), "<end_of_turn>", trims=True
    ),
    "phi-3": Family(
        PHI3,
        pieces_of("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", eos="<|endoftext|>"),
        "<|end|>",
        splits=frozenset({"several turns", "system, several turns"}),
    ),
    "zephyr": Family(ZEPHYR, pieces_of(legacy=True), "</s>"),
    "tulu": Family(TULU, bytes_of(eos="<|endoftext|>"), "<|endoftext|>"),
    "falcon": Family(
        FALCON,
        bytes_of(eos="<|endoftext|>"),
        "<|endoftext|>",
        never="no stop token",
        results="no attribute 'tool'",
    ),
    "glm-4": Family(
        GLM4,
        bytes_of("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", eos="<|endoftext|>"),
        "<|user|>",
        never="no stop token",
    ),
    "command-r": Family(
        COMMAND_R,
        bytes_of(
            "<|START_OF_TURN_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
            eos="<|END_OF_TURN_TOKEN|>",
            bos="<BOS_TOKEN>",
            adds_bos=True,
        ),
        "<|END_OF_TURN_TOKEN|>",
        trims=True,
    ),
    "deepseek-r1": Family(
        DEEPSEEK_R1,
        bytes_of("<｜User｜>", "<｜Assistant｜>", eos="<｜end▁of▁sentence｜>", bos="<｜begin▁of▁sentence｜>"),
        "<｜end▁of▁sentence｜>",
        never="not prefix-stable",
    ),
    "yuan": Family(
        YUAN,
        pieces_of("<sep>", "<n>", eos="<eod>", bos="<BOS>", legacy=True),
        "<eod>",
        system="no system",
        splits=frozenset({"several turns"}),
    ),
    "vicuna": Family(VICUNA, pieces_of(legacy=True), "</s>"),
    "granite": Family(
        GRANITE, bytes_of("<|start_of_role|>", "<|end_of_role|>", eos="<|end_of_text|>"), "<|end_of_text|>"
    ),
}
