"""The frame of a decoder that the models of this folder share: a layer, the decoder, and the language model around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from luthier.models.architectures._parts import CACHE, NativeModel, RMSNorm, kept, rotary_tables


class DecoderLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """x + attention(norm(x)), and then x + mlp(norm(x))."""

    def __init__(self, config: Any, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.self_attn = attention
        self.mlp = mlp
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden: torch.Tensor, *places: Any, cache: Cache | None = None, **keywords: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """places: what the attention takes of masks and positions."""
        out, weights = self.self_attn(self.input_layernorm(hidden), *places, cache, **keywords)
        hidden = hidden + out
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), weights


@dataclass(frozen=True)
class Given:
    """What a decoder is called with."""

    hidden: torch.Tensor
    """[B, T, C]: the embeddings"""
    input_ids: torch.Tensor | None
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    cache: Cache | None
    edges: torch.Tensor | None
    """`cu_seq_lens_q` of a flat batch: where its documents begin and end, from 0"""

    @property
    def past(self) -> int:
        """Tokens that the cache holds."""
        return int(self.cache.get_seq_length()) if self.cache is not None else 0

    def rotation(self, head_dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The tables that turn queries and keys: of the positions given, else of those behind the cache."""
        positions = self.position_ids
        if positions is None:
            end = self.past + self.hidden.shape[1]
            positions = torch.arange(self.past, end, device=self.hidden.device)[None]
        return rotary_tables(positions, head_dim, dtype)


class Decoder(NativeModel, ABC):
    """Embeddings, layers of one kind, and the last norm. What tells one model from another is `places`."""

    def __init__(self, config: Any, layer: Callable[[Any, int], nn.Module]) -> None:
        """layer: makes one of the config and its number."""
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([layer(config, number) for number in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @abstractmethod
    def places(self, given: Given) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What attention takes of masks and positions, and what it takes by name beside the keywords of the call."""

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        past_key_values: Cache | None = None,
        **keywords: Any,
    ) -> BaseModelOutputWithPast:
        """past_key_values: the cache, as transformers called it before 5.24."""
        cache = past_key_values if cache is None else cache
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        if cache is None and use_cache:
            cache = DynamicCache()
        edges = keywords.get("cu_seq_lens_q")
        places, named = self.places(Given(hidden, input_ids, attention_mask, position_ids, cache, edges))
        keywords |= named
        wants_all = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states, weights = [hidden], []
        for layer in self.layers:
            hidden, found = layer(hidden, *places, cache=cache, **keywords)
            if wants_all:
                states.append(hidden)
            if output_attentions:
                weights.append(found)
        hidden = self.norm(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            hidden_states=(*states[:-1], hidden) if wants_all else None,
            attentions=tuple(weights) if output_attentions else None,
            **{CACHE: cache},
        )


class LanguageModel:
    """Mixed into a transformers model with a decoder, `model`, and a head, `lm_head`."""

    config: Any
    model: Any
    lm_head: Any
    loss_function: Any
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - as transformers reads it

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        past_key_values: Cache | None = None,
        **keywords: Any,
    ) -> CausalLMOutputWithPast:
        """labels [B, T] as ids: they are shifted here; -100 does not count."""
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **keywords,
        )
        logits = self.lm_head(kept(out.last_hidden_state, logits_to_keep))
        return CausalLMOutputWithPast(
            loss=self.own_loss(logits, labels, input_ids, **keywords) if labels is not None else None,
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
            **{CACHE: out.get(CACHE)},
        )

    def own_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, input_ids: torch.Tensor | None, **keywords: Any
    ) -> torch.Tensor:
        """The published code's, a mean; luthier's training asks for logits alone."""
        del input_ids
        loss: torch.Tensor = self.loss_function(
            logits=logits, labels=labels, vocab_size=self.config.vocab_size, **keywords
        )
        return loss
