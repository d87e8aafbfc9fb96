"""How text is split before byte-level BPE, by the name that a GGUF file gives (`tokenizer.ggml.pre`).

transformers knows the names of its table and splits everything else as GPT-2 did, without a word. The names here are
those whose right split is GPT-2's, with or without every digit apart; the expressions are those of llama.cpp's
`src/llama-vocab.cpp`.
"""

from __future__ import annotations

from tokenizers import Regex, pre_tokenizers

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


PROBE = (
    "It's WE'LL he'd I'm you'Re don't\n\n  three   spaces\ttab \r\n x=1;//y\n/*z*/ \u00a0\u3000wide "
    "0 12 123 1234 12345 3.14 1,000 \u0663\u0664\u0665 \u00bd\u2167 CamelCase HTTPServer snake_case ALLCAPS "
    "na\u00efve e\u0301 \u4f60\u597d\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f \u30ab\u30bf\u30ab\u30ca \ud55c\uad6d\uc5b4 "
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d\u0628\u0627 \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22 "
    "\U0001f600\U0001f468\u200d\U0001f469 \u2014 \u2026 \u20ac5 (a)[b]{c} !!! ???\n ...\n\n"
)
"""Text on which splits that differ, differ: contractions, runs of digits and spaces, letters and marks of many scripts."""
_TABLE = {True: ("llama-bpe", "tekken"), False: ("gpt-2", "smollm", "dbrx", "qwen2", "qwen35", "gpt-4o")}
"""One name for each split, by whether a word that is a token stays whole before merging: llama.cpp ties that to the
name as well. `dbrx` splits as `llama-bpe` does."""


def name_of(splitter: pre_tokenizers.PreTokenizer | None, ignore_merges: bool) -> str | None:
    """The name under which llama.cpp splits as `splitter` does, judged by what both make of PROBE; None where there is
    none.
    """
    from transformers.integrations.gguf import gguf_tokenizer_mapping

    if splitter is None:
        return None
    found = splitter.pre_tokenize_str(PROBE)
    for name in _TABLE[ignore_merges]:
        known = split_of(name)
        if known is None and (expression := gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS.get(name)):
            known = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(expression), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        if known is not None and known.pre_tokenize_str(PROBE) == found:
            return name
    return None
