"""Attention for flat batches: each path against the twin that defines it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from luthier.kernels.attention import (
    UnsupportedAttention,
    _lengths,
    choose_path,
    dense_attention,
    document_arguments,
    flat_attention,
    per_document_attention,
    varlen_attention,
)
from tests.helpers.properties import examples


def qkv(tokens: int, heads: int, kv_heads: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(1, h, tokens, 16, generator=generator, requires_grad=True) for h in (heads, kv_heads, kv_heads)
    )


@examples(40)
@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=6),
    window=st.sampled_from([None, 1, 3, 8, 100]),
    heads=st.sampled_from([(4, 4), (4, 2), (4, 1)]),
    slopes=st.sampled_from([None, (0.5, 0.25, 0.0, 2.0)]),
)
def test_per_document_is_the_definition(
    lengths: list[int], window: int | None, heads: tuple[int, int], slopes: tuple[float, ...] | None
) -> None:
    edges = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    inputs = qkv(sum(lengths), *heads)
    twins = [x.detach().clone().requires_grad_() for x in inputs]
    alibi = None if slopes is None else torch.tensor(slopes)
    got = per_document_attention(*inputs, edges, 0.25, window, slopes=alibi)
    want = dense_attention(*twins, edges, 0.25, window, alibi)
    assert got.shape == (1, sum(lengths), heads[0], 16)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    direction = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    (got * direction).sum().backward()
    (want * direction).sum().backward()
    for one, other in zip(inputs, twins, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


SHARING = [(9, 0), (14, 6), (5, 4), (7, 0), (1, 0), (12, 1)]
"""Tokens of documents, and how many of the first are those of the nearest before that shares none."""


def edges_of(lengths: Sequence[int]) -> list[int]:
    return [0, *accumulate(lengths)]


def in_the_row(documents: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Edges of what stands in the row of each document, and of whole documents."""
    return edges_of([length - shared for length, shared in documents]), edges_of([length for length, _ in documents])


documents_that_share = st.lists(
    st.integers(1, 20).flatmap(lambda length: st.tuples(st.just(length), st.integers(0, length - 1))),
    min_size=1,
    max_size=6,
)


def fitting(documents: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """No more is shared than the lender has, and nothing where there is none."""
    lender, out = 0, list[tuple[int, int]]()
    for length, wanted in documents:
        shared = min(wanted, lender)
        lender = lender if shared else length
        out.append((length, shared))
    return out


@examples(40)
@given(
    wanted=documents_that_share,
    window=st.sampled_from([None, 1, 3, 8, 100]),
    heads=st.sampled_from([(4, 4), (4, 2), (4, 1)]),
    slopes=st.sampled_from([None, (0.5, 0.25, 0.0, 2.0)]),
)
def test_shared_tokens_are_attended_to_as_by_the_definition(
    wanted: list[tuple[int, int]], window: int | None, heads: tuple[int, int], slopes: tuple[float, ...] | None
) -> None:
    """Of outputs and gradients; and the definition is that of documents which stand whole."""
    documents = fitting(wanted)
    edges, keys = in_the_row(documents)
    inputs = qkv(edges[-1], *heads)
    twins = [x.detach().clone().requires_grad_() for x in inputs]
    given_ = document_arguments(_lengths(edges), _lengths(keys), torch.device("cpu"))
    places = given_.get("key_places", torch.arange(edges[-1]))
    alibi = None if slopes is None else torch.tensor(slopes)
    got = per_document_attention(*inputs, edges, 0.25, window, slopes=alibi, key_edges=keys)
    want = dense_attention(*twins, edges, 0.25, window, alibi, keys)
    whole = dense_attention(*(x[:, :, places] for x in twins), keys, 0.25, window, alibi)
    own = [
        at
        for (length, shared), end in zip(documents, keys[1:], strict=True)
        for at in range(end - length + shared, end)
    ]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole[:, own], want, rtol=1e-5, atol=1e-5)
    direction = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    (got * direction).sum().backward()
    (want * direction).sum().backward()
    for one, other in zip(inputs, twins, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_what_is_said_of_documents_that_share() -> None:
    edges, keys = in_the_row(SHARING)
    said = document_arguments(_lengths(edges), _lengths(keys), torch.device("cpu"))
    assert said["cu_seq_lens_q"].tolist() == edges
    assert said["cu_seq_lens_k"].tolist() == keys
    assert (said["max_length_q"], said["max_length_k"]) == (11, 14)
    assert said["key_places"].tolist() == [
        *range(9), *range(6), *range(9, 17), *range(4), 17, *range(18, 25), 25, 25, *range(26, 37),
    ]  # fmt: skip
    query, key, value = (x.detach() for x in qkv(edges[-1], 4, 2))
    got, _ = flat_attention(nn.Module(), query, key, value, scaling=0.25, **said)
    assert torch.equal(got, per_document_attention(query, key, value, edges, 0.25, None, key_edges=keys))
    with pytest.raises(UnsupportedAttention, match="without dropout"):
        flat_attention(nn.Module(), query, key, value, dropout=0.1, **said)
    alone = document_arguments([3, 4], [3, 4], torch.device("cpu"))
    assert "key_places" not in alone
    assert alone["cu_seq_lens_q"] is alone["cu_seq_lens_k"]


def test_an_answer_is_moved_by_the_shared_tokens_alone() -> None:
    query, key, value = (x.detach() for x in qkv(12, 2, 2))
    edges, keys = [0, 8, 12], [0, 8, 17]  # of the second document the first five tokens are those of the first
    before = per_document_attention(query, key, value, edges, 0.25, None, key_edges=keys)
    for places, moves in ((slice(5, 8), False), (slice(0, 1), True)):
        changed = [x.clone() for x in (query, key, value)]
        for x in changed:
            x[:, :, places] += 1.0
        after = per_document_attention(*changed, edges, 0.25, None, key_edges=keys)
        assert torch.equal(before[:, 8:], after[:, 8:]) is not moves


def test_documents_do_not_touch() -> None:
    """Changing document A moves document B by exactly 0."""
    query, key, value = (x.detach() for x in qkv(12, 2, 2))
    before = per_document_attention(query, key, value, [0, 5, 12], 0.25, None)
    changed = [x.clone() for x in (query, key, value)]
    for x in changed:
        x[:, :, :5] += 1.0
    after = per_document_attention(*changed, [0, 5, 12], 0.25, None)
    assert torch.equal(before[:, 5:], after[:, 5:])
    assert not torch.equal(before[:, :5], after[:, :5])


@pytest.mark.parametrize(
    "extra",
    [
        {"s_aux": torch.zeros(2)},
        {"softcap": 30.0},
        {"position_bias": torch.zeros(1)},
        {"attention_mask": torch.ones(1)},
        {"is_causal": False},
        {"a_keyword_of_tomorrow": 1},
    ],
)
def test_what_is_not_implemented_is_refused(extra: dict[str, object]) -> None:
    lengths = {"cu_seq_lens_q": torch.tensor([0, 4]), "max_length_q": 4}
    with pytest.raises(UnsupportedAttention):
        flat_attention(nn.Module(), *qkv(4, 2, 2), **lengths, **extra)


def test_under_autocast_all_are_of_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation in float32 widens query and key; the path is chosen by their type, and no fused kernel takes two."""
    asked = list[torch.dtype]()

    def chosen(device: torch.device, dtype: torch.dtype, head: int, value: int) -> str:
        asked.append(dtype)
        return choose_path(device, dtype, head, value)

    monkeypatch.setattr("luthier.kernels.attention.choose_path", chosen)
    lengths = {"cu_seq_lens_q": torch.tensor([0, 5, 12]), "max_length_q": 7}
    query, key, value = (part.bfloat16() for part in qkv(12, 4, 2))
    narrow, _ = flat_attention(nn.Module(), query, key, value, **lengths)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = flat_attention(nn.Module(), query.float(), key.float(), value, **lengths)
    assert mixed.dtype == torch.bfloat16
    assert asked == [torch.bfloat16, torch.bfloat16]
    assert torch.equal(mixed, narrow)


def test_without_document_lengths_it_is_refused() -> None:
    with pytest.raises(UnsupportedAttention, match="lengths"):
        flat_attention(nn.Module(), *qkv(4, 2, 2))


@pytest.mark.parametrize(
    ("dtype", "head", "value"), [(torch.bfloat16, 64, 64), (torch.float32, 64, 64), (torch.bfloat16, 257, 257)]
)
def test_a_cpu_goes_document_by_document(dtype: torch.dtype, head: int, value: int) -> None:
    assert choose_path(torch.device("cpu"), dtype, head, value) == "per_document"


@pytest.mark.parametrize(
    ("capability", "dtype", "head", "value", "path"),
    [
        ((9, 0), torch.bfloat16, 128, 128, "varlen"),
        ((8, 0), torch.float16, 64, 64, "varlen"),
        ((8, 0), torch.float32, 64, 64, "per_document"),
        ((7, 5), torch.float16, 64, 64, "per_document"),
        ((6, 1), torch.float16, 64, 64, "per_document"),
        ((9, 0), torch.bfloat16, 512, 512, "per_document"),
        ((9, 0), torch.bfloat16, 192, 128, "per_document"),
    ],
)
def test_table_of_cuda_paths(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, head: int, value: int, path: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_path(torch.device("cuda"), dtype, head, value) == path


KV_HEADS, HEAD_SIZE, LENGTHS = 2, 64, (5, 130, 1, 64)


def heads_of(query_heads: int, size: int = HEAD_SIZE, **where: Any) -> list[torch.Tensor]:
    return [
        torch.randn(1, heads, sum(LENGTHS), size, **where).requires_grad_()
        for heads in (query_heads, KV_HEADS, KV_HEADS)
    ]


def test_a_cpu_keeps_keys_and_values_with_the_heads_that_they_have() -> None:
    kept = set[int]()
    given = heads_of(8)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.add(x.numel()) or x, lambda x: x):
        per_document_attention(*given, [0, sum(LENGTHS)], HEAD_SIZE**-0.5, None)
    assert given[1].numel() in kept
    assert sum(LENGTHS) * 8 * HEAD_SIZE == given[0].numel() == max(kept)


@pytest.mark.parametrize("sharing", [False, True])
@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("query_heads", [2, 8])
def test_the_fused_call_fits_this_torch(window: int | None, query_heads: int, sharing: bool) -> None:
    """Its arguments, shapes and backward pass, without a card; and keys and values are kept with the heads that they have."""
    given = heads_of(query_heads, device="meta", dtype=torch.bfloat16)
    edges = torch.tensor([0, *LENGTHS]).cumsum(0).to("meta")
    whole = (edges, max(LENGTHS)) if sharing else ()
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        out = varlen_attention(*given, HEAD_SIZE**-0.5, window, edges, max(LENGTHS), *whole)
    assert out.shape == (1, sum(LENGTHS), query_heads, HEAD_SIZE)
    out.sum().backward()
    assert [part.grad.shape for part in given] == [part.shape for part in given]
    wide = {shape for shape in kept if len(shape) == 3}
    assert wide == {(sum(LENGTHS), query_heads, HEAD_SIZE), (sum(LENGTHS), KV_HEADS, HEAD_SIZE)}


needs_the_fused_kernel = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="torch's fused attention wants a CUDA card of capability 8.0 or more",
)


@needs_the_fused_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("query_heads", [2, 8])
@pytest.mark.parametrize("window", [None, 1, 8, 100])
def test_the_fused_kernel_is_the_definition(
    window: int | None, query_heads: int, size: int, dtype: torch.dtype
) -> None:
    """Outputs and gradients, against the definition in float32 of the same 16-bit numbers."""
    torch.manual_seed(0)
    given = heads_of(query_heads, size, device="cuda", dtype=dtype)
    exact = [part.detach().float().requires_grad_() for part in given]
    edges = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    out = varlen_attention(*given, size**-0.5, window, torch.tensor(edges, device="cuda"), max(LENGTHS))
    want = dense_attention(*exact, edges, size**-0.5, window)
    direction = torch.randn_like(want)
    out.backward(direction.to(dtype))
    want.backward(direction)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 3e-3
    pairs = [(out, want), *((part.grad, whole.grad) for part, whole in zip(given, exact, strict=True))]
    for got, right in pairs:
        assert float((got.float() - right).norm() / right.norm()) < tolerance


@needs_the_fused_kernel
@pytest.mark.parametrize("window", [None, 4])
def test_the_fused_kernel_is_the_definition_where_tokens_are_shared(window: int | None) -> None:
    torch.manual_seed(0)
    edges, keys = in_the_row(SHARING)
    said = document_arguments(_lengths(edges), _lengths(keys), torch.device("cuda"))
    given = [torch.randn(1, heads, edges[-1], 64, device="cuda").bfloat16() for heads in (8, 2, 2)]
    got, _ = flat_attention(nn.Module(), *given, sliding_window=window, **said)
    want = dense_attention(*(part.float() for part in given), edges, 64**-0.5, window, None, keys)
    assert float((got.float() - want).norm() / want.norm()) < 2e-2
