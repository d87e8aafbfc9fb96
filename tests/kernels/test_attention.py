"""Attention for flat batches: each path against the twin that defines it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from luthier.kernels.attention import (
    UnsupportedAttention,
    choose_path,
    dense_attention,
    flat_attention,
    per_document_attention,
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
