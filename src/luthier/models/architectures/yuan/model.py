"""Yuan2.0 as a model of transformers: the block of Llama with three changes.

1. Queries and keys are made of a filter over time (LFA): of the normed input h_t, h_t-1 and h_t-2. Values are not.
2. The rows of both projections are dealt out anew: of 2n blocks, even ones are queries and odd ones are keys.
3. The MLP has its SiLU on `up_proj`.

Published names of weights, kept as they are. A token of padding reaches no other token, neither by attention nor by the
filter, so a left-padded row is computed as the same row alone. (The published code lets it through there.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization
from transformers.cache_utils import Cache, DynamicLayer
from transformers.generation import GenerationMixin

from luthier.models.architectures._decoder import Decoder, DecoderLayer, Given, LanguageModel
from luthier.models.architectures._parts import (
    DENSE,
    NativeModel,
    RMSNorm,
    additive,
    attend,
    documents_of,
    rotate,
    visible,
)
from luthier.models.architectures.yuan.config import YuanConfig

__all__ = ["YuanForCausalLM"]

REACH = 2
"""How many earlier tokens the filter looks at."""


class LayerCache(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, and the last two inputs of its filter, [B, 2, C].

    The first layer also keeps which tokens were an <eod>, [B, K].
    """

    is_croppable = False

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self.recent: torch.Tensor | None = None
        self.ends: torch.Tensor | None = None

    def with_recent(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [B, T, C] behind the last two inputs of before, if any; keeps the last two of all."""
        whole = hidden if self.recent is None else torch.cat([self.recent.to(hidden.device), hidden], dim=1)
        self.recent = F.pad(whole[:, -REACH:].clone(), (0, 0, max(0, REACH - whole.shape[1]), 0))
        return whole

    def with_ends(self, ends: torch.Tensor) -> torch.Tensor:
        """ends [B, T] of the new tokens -> [B, K] of all."""
        self.ends = ends if self.ends is None else torch.cat([self.ends.to(ends.device), ends], dim=1)
        return self.ends

    def _change(self, change: Any) -> None:
        self.recent = None if self.recent is None else change(self.recent)
        self.ends = None if self.ends is None else change(self.ends)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._change(lambda kept: kept.index_select(0, beam_idx.to(kept.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._change(lambda kept: kept.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._change(lambda kept: kept[indices])

    def reset(self) -> None:
        super().reset()
        self.recent = self.ends = None

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise ValueError("this cache cannot forget tokens: the inputs of the filter before them are gone")


def prepare_cache(cache: Cache, layers: int) -> None:
    """Gives an empty ordinary cache layers of the kind above.

    Raises:
        ValueError: it is of another kind, or was filled by another model.
    """
    if len(cache.layers) == layers and all(isinstance(layer, LayerCache) for layer in cache.layers):
        return
    if any(type(layer) is not DynamicLayer for layer in cache.layers) or cache.get_seq_length():
        raise ValueError(f"this model keeps inputs of its filter: {type(cache).__name__} has no place for them")
    cache.layers[:] = [LayerCache() for _ in range(layers)]


class LocalizedFiltering(nn.Module):
    """RMSNorm(y2 + h) of h [B, T, C], with y1_t = A0 h_t-1 + A1 h_t + a and y2_t = B0 y1_t-1 + B1 y1_t + b.

    What lies before a document's first token counts as zero, for h and for y1.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(size, size // 2, (2, 1))
        self.conv2 = nn.Conv2d(size // 2, size, (2, 1))
        self.output_layernorm = RMSNorm(size, 1e-6)

    def forward(self, hidden: torch.Tensor, linked: torch.Tensor | None) -> torch.Tensor:
        """linked [B, T]: whether the token before is of the same document; None where all but the first are."""
        out: torch.Tensor = self.output_layernorm(
            _over_pairs(self.conv2, _over_pairs(self.conv1, hidden, linked), linked) + hidden
        )
        return out


def _over_pairs(convolution: nn.Module, x: torch.Tensor, linked: torch.Tensor | None) -> torch.Tensor:
    """x [B, T, C] -> [B, T, C']: a convolution of two steps over each token and the one before it."""
    before = F.pad(x[:, :-1], (0, 0, 1, 0))
    if linked is not None:
        before = before.masked_fill(~linked[..., None], 0)
    pairs = torch.stack([before, x]).flatten(1, 2).permute(2, 0, 1)[None]  # [1, C, 2, B * T]
    out: torch.Tensor = convolution(pairs)
    return out[0, :, 0].T.reshape(*x.shape[:2], -1)


class YuanAttention(nn.Module):
    is_causal = True

    def __init__(self, config: YuanConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer
        self.heads = config.num_attention_heads
        self.head_dim = config.head_dim
        size = config.hidden_size
        self.v_proj = nn.Linear(size, size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)
        if config.use_shareqk:
            self.qk_proj = nn.Linear(size, size, bias=False)
            self.qk_weight = nn.Parameter(torch.ones(2, size))
            self.qk_bias = nn.Parameter(torch.zeros(2, size))
        else:
            self.q_proj = nn.Linear(size, size, bias=False)
            self.k_proj = nn.Linear(size, size, bias=False)
            self.lf_gate = LocalizedFiltering(size)

    def forward(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None,
        tables: tuple[torch.Tensor, torch.Tensor],
        linked: torch.Tensor | None,
        cache: Cache | None,
        **keywords: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key = self._query_and_key(hidden, linked, cache)
        value = self._in_heads(self.v_proj(hidden))
        query, key = rotate(query, tables), rotate(key, tables)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        out, weights = attend(self, query, key, value, mask, **keywords)
        return self.o_proj(out), weights

    def _in_heads(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, C] -> [B, H, T, D]."""
        return x.view(*x.shape[:-1], self.heads, self.head_dim).transpose(1, 2)

    def _query_and_key(
        self, hidden: torch.Tensor, linked: torch.Tensor | None, cache: Cache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.config.use_shareqk:
            both = self.qk_proj(hidden)
            query, key = (both * weight + bias for weight, bias in zip(self.qk_weight, self.qk_bias, strict=True))
            return self._in_heads(query), self._in_heads(key)
        whole = hidden if cache is None else cache.layers[self.layer_idx].with_recent(hidden)
        filtered = self.lf_gate(whole, linked)[:, -hidden.shape[1] :]
        both = torch.cat([self.q_proj(filtered), self.k_proj(filtered)], dim=-1)
        both = both.view(*both.shape[:-1], self.heads, 2 * self.head_dim)
        query, key = both.transpose(1, 2).chunk(2, dim=-1)
        return query, key


class YuanMLP(nn.Module):
    """down(gate(x) * SiLU(up(x))): the names of `up` and `gate` are the other way round than in Llama."""

    def __init__(self, config: YuanConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(self.gate_proj(x) * F.silu(self.up_proj(x)))
        return out


class YuanDecoderLayer(DecoderLayer):
    def __init__(self, config: YuanConfig, layer: int) -> None:
        super().__init__(config, YuanAttention(config, layer), YuanMLP(config))


class YuanPreTrainedModel(NativeModel):
    config_class = YuanConfig
    _no_split_modules = ("YuanDecoderLayer",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, YuanAttention) and self.config.use_shareqk:
            initialization.ones_(module.qk_weight)
            initialization.zeros_(module.qk_bias)


class YuanModel(Decoder, YuanPreTrainedModel):
    def __init__(self, config: YuanConfig) -> None:
        super().__init__(config, YuanDecoderLayer)

    def places(self, given: Given) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The mask, the tables of rotation, and the links of the filter."""
        if given.cache is not None:
            prepare_cache(given.cache, self.config.num_hidden_layers)
        mask, linked, edges = self._who_sees_whom(given)
        named = {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges} if edges is not None else {}
        return (mask, given.rotation(self.config.head_dim, given.hidden.dtype), linked), named

    def _who_sees_whom(self, given: Given) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The mask of attention, the links of the filter, and the edges for attention without a mask."""
        hidden, attention_mask, past, edges = given.hidden, given.attention_mask, given.past, given.edges
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(f"attention_mask has {attention_mask.dim()} dimensions; its filter needs one of [B, K]")
        rows, length = hidden.shape[:2]
        documents = None
        if not past and attention_mask is None:
            documents = documents_of((rows, length), given.position_ids, edges)
        real = None if attention_mask is None else attention_mask.bool()
        if real is not None and bool(real.all()):
            real = None
        if real is not None and real.shape[1] != past + length:
            raise ValueError(f"attention_mask is of {real.shape[1]} tokens, cache and input of {past + length}")
        linked = _links(real, documents, past, length)
        segments = self._segments(given.input_ids, documents, given.cache)
        name = self.config._attn_implementation
        if name not in DENSE:
            return attention_mask, linked, edges if segments is documents or edges is None else _edges(segments)
        if segments is None and real is None and name == "sdpa" and (length == 1 or not past):
            return None, linked, None
        if segments is None:
            segments = torch.ones(rows, past + length, dtype=torch.int64, device=hidden.device)
        seen = visible(segments if real is None else segments * real, length)
        return (seen if name == "sdpa" else additive(seen, hidden.dtype)), linked, None

    def _segments(
        self, input_ids: torch.Tensor | None, documents: torch.Tensor | None, cache: Cache | None
    ) -> torch.Tensor | None:
        """[B, K], from 1: attention stays inside a segment, which ends with a document, or with an <eod>."""
        config = self.config
        resets = config.reset_attention_mask and not config.use_flash_attention
        if not resets or not (self.training or config.reset_position_ids):
            return documents
        if input_ids is None:
            raise ValueError("reset_attention_mask needs input_ids: <eod> cannot be seen in inputs_embeds")
        ends = input_ids == config.eod_token
        if cache is not None:
            ends = cache.layers[0].with_ends(ends)
        segments = 1 + F.pad(ends[:, :-1].cumsum(-1), (1, 0))
        return segments if documents is None else segments + documents


def _links(real: torch.Tensor | None, documents: torch.Tensor | None, past: int, length: int) -> torch.Tensor | None:
    """Whether the filter may look from a token to the one before it, [B, T]; behind a cache of its last two inputs
    [B, 2 + T]. None where every token but the first may."""
    if real is None and documents is None:
        return None
    of = documents if real is None else real.long() if documents is None else real * documents
    assert of is not None
    of = F.pad(of, (REACH, 0))[:, -(length + REACH if past else length) :]
    return F.pad((of[:, 1:] == of[:, :-1]) & (of[:, 1:] != 0), (1, 0))


def _edges(segments: torch.Tensor | None) -> torch.Tensor | None:
    """segments [1, T] -> cumulative lengths, from 0."""
    if segments is None:
        return None
    starts = (segments[0].diff() != 0).nonzero()[:, 0] + 1
    ends = torch.tensor([0, segments.shape[1]], dtype=torch.int32, device=segments.device)
    return torch.cat([ends[:1], starts.to(torch.int32), ends[1:]])


def asked_for(input_ids: torch.Tensor, eod_token: int, sep_token: int) -> torch.Tensor:
    """[B, T]: which tokens `use_loss_mask` counts: from each <sep> to the <eod> behind it, both included.

    A row that lacks one of them, or has more <eod> than <sep> (as padding has), counts whole.
    """
    ends, separators = input_ids == eod_token, input_ids == sep_token
    whole = ~separators.any(-1) | ~ends.any(-1) | (ends.sum(-1) > separators.sum(-1))
    place = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
    last_separator = (place * separators).cummax(-1).values
    last_end = F.pad((place * ends)[:, :-1], (1, 0)).cummax(-1).values  # before this token
    first_is_end = ends.float().argmax(-1) < separators.float().argmax(-1)
    before_any = (last_separator == 0) & (last_end == 0)
    return whole[:, None] | (last_separator > last_end) | (before_any & first_is_end[:, None])


class YuanForCausalLM(LanguageModel, YuanPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    def __init__(self, config: YuanConfig) -> None:
        super().__init__(config)
        self.model = YuanModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def own_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, input_ids: torch.Tensor | None, **keywords: Any
    ) -> torch.Tensor:
        if self.config.use_loss_mask:
            if input_ids is None:
                raise ValueError("use_loss_mask needs input_ids")
            counted = asked_for(input_ids, self.config.eod_token, self.config.sep_token)
            labels = labels.masked_fill(~counted, -100)
        return super().own_loss(logits, labels, input_ids, **keywords)
