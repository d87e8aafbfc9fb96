"""How text is split before byte-level BPE, by the name that a GGUF file gives (`tokenizer.ggml.pre`).

transformers knows the names of its table and splits everything else as GPT-2 did, without a word. The names here are
those whose right split is GPT-2's, with or without every digit apart; the expressions are those of llama.cpp's
`src/llama-vocab.cpp`.
"""

from __future__ import annotations

from tokenizers import pre_tokenizers

_GPT2 = frozenset(
    {
        "gpt-2",
        "phi-2",
        "jina-es",
        "jina-de",
        "gigachat",
        "mpt",
        "olmo",
        "jais",
        "trillion",
        "granite-docling",
        "roberta-bpe",
    }
)
_DIGITS_THEN_GPT2 = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})


def split_of(name: str) -> pre_tokenizers.PreTokenizer | None:
    """The split that llama.cpp uses for `name`; None where it is not one of these."""
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in _GPT2:
        return gpt2
    if name in _DIGITS_THEN_GPT2:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    return None


def transformers_splits(name: str) -> bool:
    """Whether transformers has the split of `name` in its own table."""
    from transformers.integrations.gguf import gguf_tokenizer_mapping

    return name in gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS
