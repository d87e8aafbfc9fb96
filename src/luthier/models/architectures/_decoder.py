"""The frame of a decoder that the models of this folder share: a layer, all layers, and the language model around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from luthier.models.architectures._parts import RMSNorm, kept


class DecoderLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """x + attention(norm(x)), and then x + mlp(norm(x))."""

    def __init__(self, config: Any, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.self_attn = attention
        self.mlp = mlp
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden: torch.Tensor, *places: Any, past_key_values: Cache | None = None, **keywords: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """places: what the attention takes of masks and positions."""
        out, weights = self.self_attn(self.input_layernorm(hidden), *places, past_key_values, **keywords)
        hidden = hidden + out
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), weights


def through_layers(
    decoder: Any,
    hidden: torch.Tensor,
    *places: Any,
    past_key_values: Cache | None,
    output_hidden_states: bool | None,
    output_attentions: bool | None,
    **keywords: Any,
) -> BaseModelOutputWithPast:
    """Embeddings [B, T, C] through the layers and the norm of a decoder.

    Args:
        places: what attention takes of masks and positions.
        keywords: what attention takes beside them.
    """
    wants_all = decoder.config.output_hidden_states if output_hidden_states is None else output_hidden_states
    states, weights = [hidden], []
    for layer in decoder.layers:
        hidden, found = layer(hidden, *places, past_key_values=past_key_values, **keywords)
        if wants_all:
            states.append(hidden)
        if output_attentions:
            weights.append(found)
    hidden = decoder.norm(hidden)
    return BaseModelOutputWithPast(
        last_hidden_state=hidden,
        past_key_values=past_key_values,
        hidden_states=(*states[:-1], hidden) if wants_all else None,
        attentions=tuple(weights) if output_attentions else None,
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
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **keywords: Any,
    ) -> CausalLMOutputWithPast:
        """labels [B, T] as ids: they are shifted here; -100 does not count."""
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **keywords,
        )
        logits = self.lm_head(kept(out.last_hidden_state, logits_to_keep))
        return CausalLMOutputWithPast(
            loss=self.own_loss(logits, labels, input_ids, **keywords) if labels is not None else None,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
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
