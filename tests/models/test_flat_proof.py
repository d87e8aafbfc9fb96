"""The proof's verdicts on twins of many architectures; and each of them trains, flat or padded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, MistralConfig

from luthier.errors import EnvironmentProblem
from luthier.kernels import attention
from luthier.models import flat
from luthier.models.flat import LENGTHS, TOLERANCE, WINDOW_TOKENS, prove, reduced, stock_attention, use_flat_attention
from luthier.training.loop import run_steps
from tests.helpers.jobs import make_config, make_job, make_policy, make_samples
from tests.helpers.tiny_models import twin, twin_config

VERDICTS = {
    "llama": True, "qwen3": True, "qwen3_moe": True, "phi3": True, "gpt_neox": True, "mistral": True,
    "gemma": True, "gemma3_text": True, "gpt2": True, "opt": True,
    "yuan": True, "baichuan": True, "baichuan_alibi": True,
    "gpt_oss": False, "lfm2": False, "falcon_h1": False, "bloom": False, "falcon": False,
}  # fmt: skip
"""By what each one's code does with flat batches: attention sinks, convolutions, state-space layers and masks made without positions."""

FILTERED = {"yuan"}
"""Of those that run flat, the ones in which a token is mixed with its neighbours beside attention: they share no prompts."""


@pytest.mark.parametrize("family", VERDICTS)
def test_verdict(family: str) -> None:
    verdict = prove(twin_config(family), torch.float32)
    assert verdict.flat is VERDICTS[family], verdict
    assert verdict.shares is (VERDICTS[family] and family not in FILTERED), verdict
    assert verdict == prove(twin_config(family), torch.float32)


@pytest.mark.parametrize("family", ["bloom", "falcon"])
def test_what_has_no_hook_is_said_in_plain_words_and_once(family: str, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        verdict = flat._prove(reduced(twin_config(family)), torch.float32, torch.device("cpu"))
        with pytest.raises(ValueError, match="cannot be replaced"):
            use_flat_attention(twin(family))
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert verdict.why.startswith("it does not take flat batches: its attention cannot be replaced")
    assert "Error" not in verdict.why
    assert not caplog.records


@pytest.mark.parametrize("family", VERDICTS)
def test_verdict_in_bfloat16(family: str) -> None:
    verdict = prove(twin_config(family), torch.bfloat16)
    assert verdict.flat is VERDICTS[family]
    assert verdict.shares is (VERDICTS[family] and family not in FILTERED), verdict


@pytest.mark.prove
@pytest.mark.parametrize("family", VERDICTS)
def test_each_trains(family: str, tmp_path: Path) -> None:
    """Ten steps of LoRA in the layout that the proof allows: the loss falls, the learning check passes."""
    layout = "flat" if VERDICTS[family] else "padded"
    config = make_config(
        tmp_path,
        "learning_rate=1e-2",
        "max_steps=10",
        "global_batch_size=4",
        "warmup_steps=0",
        "lr_scheduler_type=constant",
    )
    policy = make_policy(config, family, layout, warm=False)
    job = make_job(config, make_samples((13, 5, 21, 9)), policy, layout=layout, max_tokens=30)
    losses: list[float] = []
    job.record.recorder.step = lambda line, timing: losses.append(line["loss"])  # type: ignore[method-assign]
    run_steps(job, job.record)
    assert losses[-1] < losses[0] - 0.05, losses


def test_documents_of_the_proof_are_longer_and_shorter_than_the_window() -> None:
    assert min(LENGTHS) < WINDOW_TOKENS < max(LENGTHS)


def test_a_naive_attention_function_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attention that forgets the documents, or the window, does not pass."""
    whole = attention.per_document_attention
    monkeypatch.setattr(
        attention, "per_document_attention", lambda q, k, v, edges, *rest: whole(q, k, v, [0, edges[-1]], *rest)
    )
    assert "leak" in prove(twin_config("llama", hidden_size=32, num_attention_heads=2), torch.float32).why
    monkeypatch.setattr(
        attention,
        "per_document_attention",
        lambda q, k, v, edges, scale, window, *rest: whole(q, k, v, edges, scale, None, *rest),
    )
    assert "differ" in prove(twin_config("mistral", hidden_size=32, num_attention_heads=2), torch.float32).why


def test_an_answer_that_sees_another_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or sees too little of what it shares: then documents may lie flat, and share nothing."""
    whole = attention.document_arguments

    def all_of_the_lender(own: Sequence[int], lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
        longer = [length + (length > mine) for mine, length in zip(own, lengths, strict=True)]
        return whole(own, longer, device)

    def nothing_shared(own: Sequence[int], lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
        return whole(own, own, device)

    for hidden, wrong in ((48, all_of_the_lender), (80, nothing_shared)):
        monkeypatch.setattr(attention, "document_arguments", wrong)
        found = prove(twin_config("llama", hidden_size=hidden, num_attention_heads=2), torch.float32)
        assert found.flat
        assert not found.shares
        assert "logits of documents that share tokens differ" in found.why_apart


def test_the_twin_of_a_large_model_is_small() -> None:
    for config in (LlamaConfig(), MistralConfig(sliding_window=4096)):
        small = reduced(config)
        assert small.num_hidden_layers == 2
        assert small.hidden_size <= 1024
        assert (
            small.num_attention_heads // small.num_key_value_heads
            == config.num_attention_heads // config.num_key_value_heads
        )
    assert small.sliding_window == WINDOW_TOKENS
    assert config.num_hidden_layers == 32, "the model's own configuration is left alone"


def test_one_layer_of_each_kind() -> None:
    assert reduced(twin_config("gemma3_text")).layer_types == ["sliding_attention", "full_attention"]


def test_the_proof_draws_from_no_generator() -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    prove(twin_config("llama", hidden_size=48, num_attention_heads=3, num_key_value_heads=3), torch.float32)
    assert torch.equal(torch.rand(3), want)


def test_generation_runs_with_the_stock_attention() -> None:
    model = twin("llama")
    stock = model.config._attn_implementation
    use_flat_attention(model)
    with stock_attention(model):
        assert model.config._attn_implementation == stock
    assert model.config._attn_implementation == "luthier_flat"


class _Louder(torch.autograd.Function):
    """x, with a gradient that is a quarter too large."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return 1.25 * gradients[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_wrong_gradient_is_caught(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of keys alone, in an attention whose outputs are right."""
    whole = attention.per_document_attention
    monkeypatch.setattr(attention, "per_document_attention", lambda q, k, *rest: whole(q, _Louder.apply(k), *rest))
    verdict = prove(twin_config("llama", hidden_size=96, num_attention_heads=6, num_key_value_heads=3), dtype)
    assert not verdict.flat
    assert "gradients of documents flat differ" in verdict.why
    assert verdict.agreement is not None
    assert verdict.agreement <= TOLERANCE[dtype]


def test_what_does_not_run_alone_goes_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = flat.twin

    def broken(*given: Any) -> Any:
        model = whole(*given)
        model.forward = lambda **_: torch.zeros(2) @ torch.zeros(3)
        return model

    monkeypatch.setattr(flat, "twin", broken)
    verdict = prove(twin_config("llama", hidden_size=80, num_attention_heads=5, num_key_value_heads=5), torch.float32)
    assert not verdict.flat
    assert "does not run by the stock attention: " in verdict.why


def test_padded_that_is_no_better_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = flat._padded
    with monkeypatch.context() as patch:
        patch.setattr(flat, "_padded", lambda *given: [2 * logits for logits in whole(*given)])
        why = prove(twin_config("lfm2", hidden_size=96), torch.float32).why
    assert "leak into one another" in why
    assert "padded, its gradients differ too" in why
    assert "padded" not in prove(twin_config("lfm2"), torch.float32).why


def test_a_fault_of_the_machine_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be kept, and the next run would go another way."""

    def no_room(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes")

    monkeypatch.setattr(flat, "_alone", no_room)
    with pytest.raises(EnvironmentProblem, match="not enough memory"):
        prove(twin_config("llama", hidden_size=144, num_attention_heads=9, num_key_value_heads=9), torch.float32)


def test_a_verdict_holds_for_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package by which transformers computes otherwise asks for a proof of its own."""
    config, proofs = twin_config("llama", hidden_size=112, num_attention_heads=7, num_key_value_heads=7), []
    whole, known = flat._prove, metadata.version
    monkeypatch.setattr(flat, "_prove", lambda *given: proofs.append(1) or whole(*given))
    prove(config, torch.float32)
    prove(config, torch.float32)
    assert len(proofs) == 1
    monkeypatch.setattr(metadata, "version", lambda name: "1.0" if name == "causal-conv1d" else known(name))
    prove(config, torch.float32)
    assert len(proofs) == 2
