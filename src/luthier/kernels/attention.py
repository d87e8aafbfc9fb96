"""Causal attention that keeps the documents of a flat batch apart.

The definition, for query i and key j of one document (i, j count from the document's start; w is the window, if any):

    out_i = sum_j softmax_j(scaling * q_i . k_j + s * (j - i)) v_j     over j <= i and i - j < w

where s is the head's slope in a model with ALiBi, else 0, and nothing flows between documents. `dense_attention` says it with
one mask over the whole batch and is the twin that defines the others; `per_document_attention` computes each document alone;
`varlen_attention` is torch's fused kernel for CUDA, which knows no slopes.

Documents that begin alike may share their first tokens: those stand in the row once, as the first ones of the nearest document
before that shares nothing. Such a document has fewer queries than keys, and they are its last places. `edges` count what stands in
the row of each document, `key_edges` whole documents.

transformers calls `flat_attention` by its registered name. It refuses every keyword that it does not implement (sinks,
soft-cap, position bias, a mask), so that no model is computed differently from what it means.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

NAME = "luthier_flat"

IGNORED = frozenset(
    {
        "position_ids",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "num_items_in_batch",
        "cache_position",
        "position_embeddings",
        "is_causal",
        "seq_idx",
        "logits_to_keep",
        "return_dict",
    }
)
"""Keywords that change nothing here: positions are already in q and k, and only causal models are tuned."""


class UnsupportedAttention(ValueError):
    """The model asks its attention for something that the flat path does not implement; it runs padded instead."""


def register() -> None:
    """Makes the flat path known to transformers under NAME. Doing it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, flat_attention)


def flat_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    key_places: torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface.

    query [1, heads, T, head size], key and value [1, kv heads, T, head size] -> [1, T, heads, head size]; slopes [heads].

    Args:
        key_places: [keys] where the keys of all documents stand in the row, document after document; None where none is shared.

    Raises:
        UnsupportedAttention: a mask, an unknown keyword, a cache, or no document lengths; dropout where tokens are shared.
    """
    unknown = _unknown(others)
    if (
        unknown
        or attention_mask is not None
        or getattr(module, "is_causal", True) is False
        or others.get("is_causal") is False
    ):
        raise UnsupportedAttention(
            f"flat attention does not implement {', '.join(unknown) or 'a mask or two-way attention'}"
        )
    if cu_seq_lens_q is None or max_length_q is None or query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise UnsupportedAttention("flat attention needs one row, no cache and the lengths of its documents")
    if key_places is not None and (dropout or cu_seq_lens_k is None or max_length_k is None):
        raise UnsupportedAttention("shared tokens are attended to without dropout, by the lengths of whole documents")
    kind = query.device.type
    if torch.is_autocast_enabled(
        kind
    ):  # as torch's own attention does; a rotation in float32 has widened query and key
        query, key, value = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (query, key, value))
    scale = scaling if scaling is not None else float(query.shape[-1]) ** -0.5
    plain = dropout == 0.0 and alibi_slopes is None
    if plain and choose_path(query.device, query.dtype, query.shape[-1], value.shape[-1]) == "varlen":
        lengths: tuple[Any, ...] = (cu_seq_lens_q, max_length_q)
        if key_places is not None:
            key, value = key.index_select(2, key_places), value.index_select(2, key_places)
            lengths = (*lengths, cu_seq_lens_k, max_length_k)
        out = varlen_attention(query, key, value, scale, sliding_window, *lengths)
    else:
        edges = cu_seq_lens_q.tolist()
        whole = () if key_places is None or cu_seq_lens_k is None else (cu_seq_lens_k.tolist(),)
        out = per_document_attention(query, key, value, edges, scale, sliding_window, dropout, alibi_slopes, *whole)
    return out, None


def _unknown(keywords: dict[str, Any]) -> list[str]:
    """Those that would change something."""
    asked = (name for name, given in keywords.items() if given is not None and given is not False)
    return sorted(name for name in asked if name not in IGNORED)


def document_arguments(own: Sequence[int], whole: Sequence[int], device: torch.device) -> dict[str, Any]:
    """What `flat_attention` is to be told of the documents of a row, as arguments of the model.

    Args:
        own: tokens of each document that stand in the row.
        whole: tokens of each document; more than its own where it shares some with one before.
    """
    edges = [0, *accumulate(own)]
    queries = torch.tensor(edges, dtype=torch.int32, device=device)
    given = {"cu_seq_lens_q": queries, "cu_seq_lens_k": queries, "max_length_q": max(own), "max_length_k": max(own)}
    if list(own) == list(whole):
        return given
    keys, places, lender = [0, *accumulate(whole)], list[int](), 0
    for (start, end), (first, last) in zip(pairwise(edges), pairwise(keys), strict=True):
        shared = (last - first) - (end - start)
        lender = lender if shared else start
        places += [*range(lender, lender + shared), *range(start, end)]
    return given | {
        "cu_seq_lens_k": torch.tensor(keys, dtype=torch.int32, device=device),
        "max_length_k": max(whole),
        "key_places": torch.tensor(places, device=device),
    }


def choose_path(device: torch.device, dtype: torch.dtype, head_size: int, value_size: int) -> str:
    """`varlen` where torch's fused kernel can serve, else `per_document`.

    The kernel (FlashAttention-2) wants CUDA capability 8.0 or more, 16-bit floats, one head size up to 256 that 8 divides. Older
    cards (T4, 2080 Ti, 1080 Ti) and CPUs go document by document.
    """
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return "per_document"
    capable = torch.cuda.get_device_capability(device) >= (8, 0)
    return (
        "varlen" if capable and head_size == value_size and head_size <= 256 and head_size % 8 == 0 else "per_document"
    )


def per_document_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    edges: list[int],
    scaling: float,
    window: int | None,
    dropout: float = 0.0,
    slopes: torch.Tensor | None = None,
    key_edges: list[int] | None = None,
) -> torch.Tensor:
    """Each document by torch's scaled_dot_product_attention. Shapes as in flat_attention; `edges` are cumulative lengths from 0."""
    groups = query.shape[1] // key.shape[1]
    # On CUDA the kernel that saves memory on older cards and in float32 takes no fewer heads of keys and values; torch would fall
    # back to scores of [T, T].
    fewer = groups > 1 and query.device.type == "cpu"
    if groups > 1 and not fewer:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    own, whole = _lengths(edges), _lengths(key_edges or edges)
    bias = None if slopes is None else alibi_bias(slopes, max(whole), window).to(query.dtype)
    parts = []
    # One split, not a slice a document: the gradient of a slice is as large as the whole.
    documents = zip(*(torch.split(tensor, own, dim=2) for tensor in (query, key, value)), whole, strict=True)
    before = key[:, :, :0], value[:, :, :0]
    for q, k, v, length in documents:
        shared = length - q.shape[2]
        if shared:
            k, v = (torch.cat([one[:, :, :shared], other], dim=2) for one, other in zip(before, (k, v), strict=True))
        else:
            before = k, v
        mask = None
        if bias is not None:
            mask = bias[:, shared:length, :length]
        elif shared or (window is not None and length > window):
            mask = _window_mask(length, window or length, query.device)[shared:]
        part = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=fewer
        )
        parts.append(part.transpose(1, 2))
    return torch.cat(parts, dim=1)


def _lengths(edges: list[int]) -> list[int]:
    return [end - start for start, end in pairwise(edges)]


def alibi_bias(slopes: torch.Tensor, length: int, window: int | None = None) -> torch.Tensor:
    """slopes [heads] -> [heads, length, length] in float32: slope * (j - i) where key j is seen by query i, else -inf."""
    position = torch.arange(length, device=slopes.device)
    distance = position - position[:, None]
    bias = slopes.float()[:, None, None] * distance
    return bias.masked_fill(~_window_mask(length, window or length, slopes.device), -torch.inf)


def _window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    """[length, length] bool: key j is seen by query i where 0 <= i - j < window."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)


def dense_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    edges: list[int],
    scaling: float,
    window: int | None,
    slopes: torch.Tensor | None = None,
    key_edges: list[int] | None = None,
) -> torch.Tensor:
    """The definition: one mask over the whole batch. Quadratic in T; the twin for tests."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    own, whole = (torch.tensor(_lengths(each), device=query.device) for each in (edges, key_edges or edges))
    shared = whole - own
    number = torch.arange(len(own), device=query.device)
    lender = torch.where(shared == 0, number, 0).cummax(0).values
    document = number.repeat_interleave(own)
    starts = torch.tensor(edges[:-1], device=query.device)
    place = (shared - starts)[document] + torch.arange(query.shape[2], device=query.device)
    distance = place[:, None] - place
    of_others = (lender[document][:, None] == document) & (place < shared[document][:, None])
    seen = ((document[:, None] == document) | of_others) & (distance >= 0) & (distance < (window or math.inf))
    scores = (query.float() @ key.float().transpose(-1, -2)) * scaling
    if slopes is not None:
        scores = scores - slopes[:, None, None] * distance
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return (weights @ value.float()).to(query.dtype).transpose(1, 2)


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    window: int | None,
    cu_seq_lens: torch.Tensor,
    longest: int,
    key_cu_seq_lens: torch.Tensor | None = None,
    longest_keys: int = 0,
) -> torch.Tensor:
    """torch's fused kernel for documents of different lengths (CUDA). Causality is said explicitly: its default window is two-way,
    and the keyword for it came and went between torch releases. Fewer heads of keys and values are not repeated where it takes them.
    Where a document has more keys than queries, key and value hold those of all documents one after the other."""
    from torch.nn.attention.varlen import varlen_attn

    accepted = _keywords_of(varlen_attn)
    left = -1 if window is None else window - 1
    options: dict[str, Any] = {"scale": scaling}
    if "window_size" in accepted:
        options["window_size"] = (left, 0)
    elif window is not None:
        raise UnsupportedAttention("this torch has no attention window in varlen_attn")
    if "is_causal" in accepted:
        options["is_causal"] = True
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and "enable_gqa" in accepted:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    edges = cu_seq_lens.to(torch.int32)
    keys, most = (edges, longest) if key_cu_seq_lens is None else (key_cu_seq_lens.to(torch.int32), longest_keys)
    attend = cast(Callable[..., torch.Tensor], varlen_attn)  # a tensor, unless more is asked for
    out = attend(q, k, v, edges, keys, longest, most, **options)
    return out.unsqueeze(0)


@cache
def _keywords_of(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
