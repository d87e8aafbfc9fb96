"""What the models of this folder share: norm, rotary positions, who sees whom, and the call of transformers' attention.

Shapes: B rows, T new tokens, K keys (those of the cache and the new ones), H heads, D size of a head, C hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What transformers calls keys and values of earlier tokens: `cache` since 5.24."""

DENSE = ("sdpa", "eager")
"""Implementations of attention that take a mask; others get the lengths of the documents."""


class RMSNorm(nn.Module):
    """w * x / sqrt(mean(x^2) + eps) over the last dimension; the statistics in float32, rounded to w's dtype before w."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(self.weight.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


class NativeModel(PreTrainedModel):  # type: ignore[misc]
    """What transformers has to know of the models of this folder."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = (CACHE,)
    _supports_sdpa = True
    _supports_attention_backend = True
    # Some published files hold the rotary frequencies as a training module had rounded them; they are computed here.
    _keys_to_ignore_on_load_unexpected = (r"rotary_emb\.inv_freq",)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """transformers would look for its own call of attention in the model's file; here it is in `attend`."""
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RMSNorm):
            initialization.ones_(module.weight)


def rotary_tables(positions: torch.Tensor, head_size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """positions [B, T] -> cos and sin [B, 1, T, D]: angle p * 10000^(-2i/D) for the pair (i, i + D/2).

    Computed anew in each forward pass, in float32: no buffer that a model built on the meta device would leave empty.
    """
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device=positions.device) / head_size
    angles = positions[..., None].float() * (1.0 / 10000.0**exponents)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """x [B, H, T, D] turned by its positions."""
    cos, sin = tables
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def documents_of(
    shape: tuple[int, int], position_ids: torch.Tensor | None, edges: torch.Tensor | None
) -> torch.Tensor | None:
    """[B, T]: the number of each token's document, from 1; None where every row is one document.

    Args:
        shape: B, T.
        position_ids: [B or 1, T]; a position that does not follow the one before it begins a document.
        edges: cumulative lengths of the documents of the one row, from 0 (`cu_seq_lens_q`).
    """
    rows, length = shape
    if edges is not None:
        places = torch.arange(length, device=edges.device)
        return torch.searchsorted(edges[1:].to(places.dtype).contiguous(), places, right=True)[None] + 1
    if position_ids is None or position_ids.shape[-1] < 2:
        return None
    starts = F.pad(position_ids.diff(dim=-1) != 1, (1, 0))
    return starts.cumsum(-1).expand(rows, length) + 1 if bool(starts.any()) else None


def visible(segments: torch.Tensor, queries: int) -> torch.Tensor:
    """segments [B, K] -> [B, 1, T, K] bool: key j is seen by query i where j <= i and both are of one segment.

    Segment 0 is padding: no token sees it. Itself it sees every token before it, or, where there is none, itself: what
    comes of it reaches no other token.
    """
    keys = segments.shape[1]
    places = torch.arange(keys, device=segments.device)
    asking = places[keys - queries :, None]
    mine = segments[:, keys - queries :, None]
    seen = ((segments[:, None] == mine) | (mine == 0)) & (segments != 0)[:, None] & (places <= asking)
    return (seen | ((places == asking) & ~seen.any(-1, keepdim=True)))[:, None]


def additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask of bools as numbers to add to scores."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **keywords: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """query, key, value [B, H, T or K, D] -> [B, T, C], and the weights where the implementation gives them."""
    name = module.config._attn_implementation
    function = eager_attention if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    out, weights = function(module, query, key, value, mask, scaling=query.shape[-1] ** -0.5, dropout=0.0, **keywords)
    return out.reshape(*out.shape[:2], -1), weights


def eager_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    **_keywords: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, by plain products; `mask` is added to the scores. Softmax in float32."""
    scores = query @ key.transpose(-1, -2) * scaling
    if mask is not None:
        scores = (scores + mask).clamp(min=torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


def kept(hidden: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The positions of hidden [B, T, C] whose logits are wanted.

    Args:
        hidden: last hidden states.
        logits_to_keep: the last n (0: all), positions [n] of every row or [B, n] of each, or a mask [B, T] of bools,
            which gives [n, C].
    """
    if isinstance(logits_to_keep, int):
        return hidden[:, -logits_to_keep:]
    if logits_to_keep.dtype == torch.bool:
        return hidden[logits_to_keep] if logits_to_keep.dim() == 2 else hidden[:, logits_to_keep]
    if logits_to_keep.dim() == 2:
        return hidden.take_along_dim(logits_to_keep[..., None], dim=1)
    return hidden[:, logits_to_keep]
