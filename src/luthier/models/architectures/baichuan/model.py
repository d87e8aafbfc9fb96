"""Baichuan2 as a model of transformers: the block of Llama with one projection for query, key and value (`W_pack`).

7B turns queries and keys by their positions. 13B adds slope * (j - i) to the score of query i and key j (ALiBi, Press et
al., 2021, arXiv:2108.12409), by distances, which keep their precision in bfloat16 where absolute positions lose it.
Both have a head with rows of length 1. Published names of weights, kept as they are.
"""

from __future__ import annotations

from math import log2
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin

from luthier.models.architectures._decoder import Decoder, DecoderLayer, Given, LanguageModel
from luthier.models.architectures._parts import (
    DENSE,
    NativeModel,
    additive,
    attend,
    documents_of,
    rotate,
    visible,
)
from luthier.models.architectures.baichuan.config import BaichuanConfig

__all__ = ["BaichuanForCausalLM"]


def alibi_slopes(heads: int) -> list[float]:
    """2^(-8(i+1)/n) for n = 2^m heads; for others the slopes of the power of two below, then every second one of the
    power above, from its first."""
    below = 2 ** int(log2(heads))
    slopes = [2 ** (-8 * (i + 1) / below) for i in range(below)]
    return slopes + [2 ** (-4 * (i + 1) / below) for i in range(0, 2 * (heads - below), 2)]


class NormHead(nn.Linear):
    """Logits h (w_v / |w_v|)^T without bias. The weight is kept as it is, so its length is free."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, F.normalize(self.weight, eps=1e-12))


class BaichuanAttention(nn.Module):
    is_causal = True

    def __init__(self, config: BaichuanConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer
        self.heads = config.num_attention_heads
        self.head_dim = config.head_dim
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None,
        tables: tuple[torch.Tensor, torch.Tensor] | None,
        cache: Cache | None,
        **keywords: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = (
            x.view(*hidden.shape[:-1], self.heads, self.head_dim).transpose(1, 2)
            for x in self.W_pack(hidden).chunk(3, dim=-1)
        )
        if tables is not None:
            query, key = rotate(query.float(), tables).to(value.dtype), rotate(key.float(), tables).to(value.dtype)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        out, weights = attend(self, query, key, value, mask, **keywords)
        return self.o_proj(out), weights


class BaichuanMLP(nn.Module):
    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class BaichuanDecoderLayer(DecoderLayer):
    def __init__(self, config: BaichuanConfig, layer: int) -> None:
        super().__init__(config, BaichuanAttention(config, layer), BaichuanMLP(config))


class BaichuanPreTrainedModel(NativeModel):
    config_class = BaichuanConfig
    _no_split_modules = ("BaichuanDecoderLayer",)


class BaichuanModel(Decoder, BaichuanPreTrainedModel):
    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config, BaichuanDecoderLayer)

    def places(self, given: Given) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The mask, and the tables of rotation.

        attention_mask: [B, K], 0 for padding and else the number of a token's document; or who sees whom as
        [B, T, K], of 0 and 1, or, with the order of tokens in it, as [B, 1, T, K], of bools or to be added to scores.
        """
        mask = self._mask(given)
        if self.config.uses_alibi:
            return (mask, None), {"alibi_slopes": self._slopes(given.hidden.device)}
        return (mask, given.rotation(self.config.head_dim, torch.float32)), {}

    def _slopes(self, device: torch.device) -> torch.Tensor:
        return torch.tensor(alibi_slopes(self.config.num_attention_heads), dtype=torch.float32, device=device)

    def _mask(self, given: Given) -> torch.Tensor | None:
        """What is added to scores, [B or 1, 1 or H, T, K], or bools; None where plain causal attention is meant, or
        where attention goes by the lengths of documents."""
        hidden, past, name = given.hidden, given.past, self.config._attn_implementation
        length = hidden.shape[1]
        if name not in DENSE:
            return given.attention_mask
        seen = self._seen(given)
        if not self.config.uses_alibi and name == "sdpa":
            return seen if seen is not None or not past or length == 1 else _causal(length, past, hidden.device)
        if seen is None:
            seen = _causal(length, past, hidden.device)
        mask = seen.to(hidden.dtype) if seen.is_floating_point() else additive(seen, hidden.dtype)
        if not self.config.uses_alibi:
            return mask
        keys = torch.arange(seen.shape[-1], device=hidden.device)
        distance = (keys - (past + torch.arange(length, device=hidden.device))[:, None]).clamp(max=0)
        bias = self._slopes(hidden.device)[:, None, None] * distance
        wide = torch.promote_types(hidden.dtype, torch.float32)
        return (mask.to(wide) + bias).clamp(min=torch.finfo(hidden.dtype).min).to(hidden.dtype)

    def _seen(self, given: Given) -> torch.Tensor | None:
        """Who sees whom, without ALiBi; None where plain causal attention is meant."""
        (rows, length), past, attention_mask = given.hidden.shape[:2], given.past, given.attention_mask
        if attention_mask is None:
            documents = documents_of((rows, length), given.position_ids, given.edges) if not past else None
            return None if documents is None else visible(documents, length)
        if attention_mask.dim() == 2:
            if bool((attention_mask == 1).all()):
                return None
            if attention_mask.shape[1] != past + length:
                raise ValueError(
                    f"attention_mask is of {attention_mask.shape[1]} tokens, cache and input of {past + length}"
                )
            seen = visible(attention_mask.long(), length)
            # As published, padding in 13B sees nothing, which makes its softmax even; the z-loss counts such tokens.
            return seen & (attention_mask[:, None, -length:, None] != 0) if self.config.uses_alibi else seen
        if attention_mask.dim() == 4:
            return attention_mask if attention_mask.is_floating_point() else attention_mask.bool()
        seen = attention_mask[:, None].bool() & _causal(length, past, attention_mask.device)
        return seen if self.config.uses_alibi else seen | ~seen.any(-1, keepdim=True)


def _causal(length: int, past: int, device: torch.device) -> torch.Tensor:
    """[1, 1, T, K] of bools."""
    return visible(torch.ones(1, past + length, dtype=torch.int64, device=device), length)


class BaichuanForCausalLM(LanguageModel, BaichuanPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.model = BaichuanModel(config)
        head = NormHead if config.norm_head else nn.Linear
        self.lm_head = head(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Resizing makes a plain head; it becomes one with rows of length 1 again, on the same weight."""
        if self.config.norm_head and type(new_embeddings) is nn.Linear:
            head = NormHead(new_embeddings.in_features, new_embeddings.out_features, bias=False, device="meta")
            head.weight = new_embeddings.weight
            new_embeddings = head
        self.lm_head = new_embeddings

    def own_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, input_ids: torch.Tensor | None, **keywords: Any
    ) -> torch.Tensor:
        loss = super().own_loss(logits, labels, input_ids, **keywords)
        if self.config.z_loss_weight:
            largest = logits[..., :-1, :].float().amax(-1)
            loss = loss + self.config.z_loss_weight * largest.pow(2).mean()
        return loss
