"""Tiny models with random weights: the architectures of the real ones, built in well under a second on a CPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import luthier  # noqa: F401 - it makes its own architectures known to transformers
from luthier.models.score_head import begin_head

VOCAB = 512
HIDDEN = 64
WINDOW = 8

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_CORPUS = (
    "A luthier builds and tunes string instruments: the violin, the guitar, the lute.",
    "What is the capital of France? The capital of France is Paris.",
    "Write a short list of three numbers: 1, 2 and 3. Then say which is the largest.",
    "user assistant system helpful question answer because there where would could should",
    "Le renard brun saute par-dessus le chien paresseux. 你好，世界。 こんにちは 🎻",
)

_BLOCK = {"hidden_size": HIDDEN, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_GROUPED = {**_BLOCK, "num_key_value_heads": 2, "max_position_embeddings": 256}
_GPT2 = {
    "n_embd": HIDDEN,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
}

TWINS: dict[str, dict[str, Any]] = {
    "llama": {**_GROUPED, "model_type": "llama"},
    "qwen3": {**_GROUPED, "model_type": "qwen3", "head_dim": 16},
    "qwen3_moe": {
        **_GROUPED,
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "phi3": {**_GROUPED, "model_type": "phi3", "sliding_window": None, "original_max_position_embeddings": 256},
    "gpt_neox": {**_BLOCK, "model_type": "gpt_neox", "max_position_embeddings": 256},
    "mistral": {**_GROUPED, "model_type": "mistral", "head_dim": 16, "sliding_window": WINDOW},
    "gemma3_text": {
        **_GROUPED,
        "model_type": "gemma3_text",
        "num_hidden_layers": 4,
        "head_dim": 16,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    },
    "gemma": {**_GROUPED, "model_type": "gemma", "head_dim": 16},
    "gpt_oss": {
        **_GROUPED,
        "model_type": "gpt_oss",
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "lfm2": {**_GROUPED, "model_type": "lfm2", "layer_types": ["conv", "full_attention"], "block_multiple_of": 64},
    "falcon_h1": {
        **_GROUPED,
        "model_type": "falcon_h1",
        "head_dim": 16,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 16,
    },
    "bloom": {
        "model_type": "bloom",
        "hidden_size": HIDDEN,
        "n_layer": 2,
        "n_head": 4,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "falcon": {
        "model_type": "falcon",
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "max_position_embeddings": 256,
    },
    "yuan": {
        **_BLOCK,
        "model_type": "yuan",
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "use_flash_attention": False,
        "eod_token": 2,
        "sep_token": 3,
    },
    "baichuan": {**_BLOCK, "model_type": "baichuan", "max_position_embeddings": 256},
    "baichuan_alibi": {**_BLOCK, "model_type": "baichuan", "num_attention_heads": 4},
    "gpt2": {**_GPT2, "model_type": "gpt2"},
    "opt": {
        "model_type": "opt",
        "hidden_size": HIDDEN,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": HIDDEN,
        "max_position_embeddings": 256,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
}
"""Name (the `model_type`, or one of its kinds) -> the keys of a tiny config. Windows are of 8 tokens."""


def twin_config(name: str, **changes: Any) -> PretrainedConfig:
    """A tiny config of an architecture: vocabulary 512, hidden size 64, 2 to 4 layers; `changes` override its keys."""
    keys = {
        "vocab_size": VOCAB,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        **TWINS[name],
        **changes,
    }
    return AutoConfig.for_model(keys.pop("model_type"), **keys)


def twin(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of `twin_config(name)` with random weights, in float32, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(twin_config(name, **changes), dtype=torch.float32).eval()


def scored_twin(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """The same with a head that gives documents scores, drawn by `seed`, in the place of the one of words."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = twin_config(name, **changes, num_labels=1)
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    begin_head(model, seed)
    return model


@cache
def _tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        AddedToken(text, special=True, normalized=False) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=special,
        show_progress=False,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most 512 tokens; ids 0 <|endoftext|> (padding), 1 <|im_start|>, 2 <|im_end|> (end of a
    turn)."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json()),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=256,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def save_twin(folder: Path, name: str, *, seed: int = 0, chat_template: str | None = CHATML, **changes: Any) -> Path:
    """Writes a tiny model of any architecture with its tokenizer as a transformers folder (float32 safetensors)."""
    twin(name, seed, **changes).save_pretrained(folder)
    tiny_tokenizer(chat_template).save_pretrained(folder)
    return folder


def tiny_llama(folder: Path, *, seed: int = 0, chat_template: str | None = CHATML, **changes: Any) -> Path:
    """A two-layer Llama (hidden 64, vocabulary 512) with its tokenizer in `folder`; the same bits for the same seed."""
    return save_twin(folder, "llama", seed=seed, chat_template=chat_template, **changes)
