"""A model folder's tokenizer and chat template as a GGUF file, for engines that read nothing else.

The file also holds a model, because engines load no file without one: one layer of zeros, whose answers mean nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

WIDTH = 32
"""Hidden size of the layer of zeros."""


class NotExpressible(ValueError):
    """A tokenizer that this module cannot write as GGUF; the message says what stands in the way."""


def write_tokenizer(tokenizer: Any, file: Path) -> None:
    """Writes vocabulary, merges, kinds of tokens, the name of the split, and the chat template.

    Args:
        tokenizer: a fast one of transformers.

    Raises:
        NotExpressible: it is no byte-level BPE, or GGUF has no name for how it splits or normalizes text.
    """
    from gguf import GGUFWriter

    state = _byte_level_state(tokenizer)
    split = _split_name(tokenizer, state)
    tokens, kinds = _vocabulary(state)
    writer = GGUFWriter(file, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in state["model"]["merges"]])
    for value, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if value is not None:
            add(value)
    begins = list(tokenizer("a")["input_ids"])[:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and begins == [tokenizer.bos_token_id])
    writer.add_add_space_prefix(False)
    writer.add_chat_template(tokenizer.chat_template)
    _add_zeros(writer, len(tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _byte_level_state(tokenizer: Any) -> dict[str, Any]:
    """tokenizer.json as a map, if it is a byte-level BPE without anything that GGUF has no place for."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise NotExpressible("it is not one of the tokenizers library")
    state: dict[str, Any] = json.loads(backend.to_str())
    model, decoder = state["model"], state["decoder"] or {}
    if model["type"] != "BPE" or model.get("byte_fallback") or decoder.get("type") != "ByteLevel":
        raise NotExpressible(f"it is no byte-level BPE (model {model['type']}, decoder {decoder.get('type')})")
    normalizer = (state["normalizer"] or {}).get("type")
    if normalizer not in (None, "NFC"):  # NFC changes nothing in text as people type it
        raise NotExpressible(f"GGUF has no place for its normalizer {normalizer}")
    return state


def _split_name(tokenizer: Any, state: dict[str, Any]) -> str:
    from luthier.models.patches.gguf_pretokenizers import name_of

    name = name_of(tokenizer.backend_tokenizer.pre_tokenizer, bool(state["model"].get("ignore_merges")))
    if name is None:
        raise NotExpressible("no name of tokenizer.ggml.pre is known for how it splits text")
    return name


def _vocabulary(state: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Each id's text and kind; ids without a token are called unused."""
    from gguf import TokenType

    added = {token["id"]: token for token in state["added_tokens"]}
    vocabulary: dict[str, int] = state["model"]["vocab"]
    size = max([*vocabulary.values(), *added]) + 1
    tokens = [f"[unused id {index}]" for index in range(size)]
    kinds = [int(TokenType.UNUSED)] * size
    for text, index in vocabulary.items():
        tokens[index], kinds[index] = text, int(TokenType.NORMAL)
    for index, token in added.items():
        kind = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        tokens[index], kinds[index] = token["content"], int(kind)
    return tokens, kinds


def _add_zeros(writer: Any, vocabulary_size: int) -> None:
    writer.add_vocab_size(vocabulary_size)
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH)
    writer.add_tensor("token_embd.weight", np.zeros((vocabulary_size, WIDTH), np.float32))
    writer.add_tensor("output_norm.weight", np.zeros(WIDTH, np.float32))
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros(WIDTH, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((WIDTH, WIDTH), np.float32))
