"""Small tokenizers made on the spot: no hub, no files in the repository.

chatml()       byte-level BPE, ChatML template without generation marks (as most instruct models have it)
marked()       the same with {% generation %} marks
llama_like()   pieces with a metaspace, BOS before every text, [INST] template
gemma_like()   the same pieces, <start_of_turn> template that refuses a system text and trims
base()         byte-level BPE without a template
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "The capital of France is Paris. What is the capital of Italy? It is Rome.",
    "Write a short poem about the sea and the wind. Explain how bread is made: flour, water, salt, yeast.",
    "你好，今天天气怎么样？我很好，谢谢。请介绍一下北京。",
    "こんにちは。元気ですか。東京は日本の首都です。",
    "Привет, как дела? Столица России — Москва.",
    "مرحبا كيف حالك",
    "안녕하세요 반갑습니다",
    "def add(a, b):\n    return a + b\n",
    "  two leading spaces\n\nand an empty line\ttab",
    "😀 👩‍👩‍👧 🎉 naïve café ünïcode",
    "system user assistant model tool instruction response",
    "learning_rate: 2e-4\nlora_alpha: 32\nmodel: org/name\n",
]

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' }}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = none %}{% set rest = messages %}{% endif %}{{ bos_token }}"
    "{% for message in rest %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + (system + '\n\n' if system is not none and loop.first else '') + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant messages') }}{% endif %}{% endfor %}"
)
TURNS = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@functools.cache
def byte_level(specials: tuple[str, ...], vocabulary: int) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(specials),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer.to_str()


@functools.cache
def metaspace(specials: tuple[str, ...], vocabulary: int, legacy: bool) -> str:
    """Pieces as SentencePiece makes them, with byte fallback. `legacy`: a space before every part, else before the text
    alone.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if legacy else "first", split=False)
    byte_pieces = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[*specials, *byte_pieces], show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in specials])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{specials[1]} $A",
        pair=f"{specials[1]} $A $B",
        special_tokens=[(specials[1], tokenizer.token_to_id(specials[1]))],
    )
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [
        token for token in state["added_tokens"] if token["content"] in specials
    ]  # byte pieces are ordinary ones
    return json.dumps(state)


def fast(state: str, **named: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(state), clean_up_tokenization_spaces=False, **named
    )


def chatml(vocabulary: int = 512, template: str | None = CHATML) -> PreTrainedTokenizerFast:
    tokenizer = fast(
        byte_level(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), vocabulary),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.chat_template = template
    return tokenizer


def marked(vocabulary: int = 512) -> PreTrainedTokenizerFast:
    return chatml(vocabulary, MARKED)


def base(vocabulary: int = 512) -> PreTrainedTokenizerFast:
    return chatml(vocabulary, None)


def llama_like(vocabulary: int = 640, legacy: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = fast(
        metaspace(("<unk>", "<s>", "</s>"), vocabulary, legacy),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
    )
    tokenizer.chat_template = INST
    return tokenizer


def gemma_like(vocabulary: int = 640) -> PreTrainedTokenizerFast:
    """Its end token is <eos>; the end of a turn is another one, which generation_config.json names."""
    specials = ("<unk>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
    tokenizer = fast(
        metaspace(specials, vocabulary, False),
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<eos>",
    )
    tokenizer.chat_template = TURNS
    return tokenizer


def save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Writes the tokenizer as a model folder has it."""
    tokenizer.save_pretrained(folder)
    return folder
