"""The policy: chunks of the head against whole logits, flat against padded, the reference, an empty micro-batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from luthier.data.steps.layout import micro_batches
from luthier.models.flat import stock_attention
from luthier.policy.policy import Policy, enable_activation_checkpointing
from luthier.types import NO_TARGET, Sample
from tests.helpers.jobs import make_config, make_job, make_policy, make_samples

FAMILIES = [
    "llama",
    "qwen3",
    "phi3",
    "gpt_neox",
    "mistral",
    "gemma3_text",
    "qwen3_moe",
    "gpt2",
    "opt",
    "yuan",
    "baichuan",
]
LENGTHS = (13, 5, 40, 2, 9)


def gradients(policy: Policy, samples: list[Sample], layout: str, max_tokens: int) -> tuple[float, torch.Tensor]:
    """(loss sum, all gradients in one vector) of the samples under a layout."""
    policy.zero_grad()
    total = 0.0
    for batch in micro_batches(samples, list(range(len(samples))), layout=layout, max_tokens=max_tokens, step=3):
        loss = -policy(batch).logps.sum()
        loss.backward()
        total += float(loss.detach())
    return total, torch.cat([p.grad.flatten() for p in policy.parameters() if p.requires_grad])


@pytest.mark.parametrize("family", FAMILIES)
def test_flat_is_padded_is_alone(family: str, tmp_path: Path) -> None:
    """One flat micro-batch, padded micro-batches and one document at a time: the same loss and gradients, with dropout."""
    config = make_config(tmp_path, "lora_dropout=0.1")
    samples = make_samples(LENGTHS)
    flat, padded = make_policy(config, family), make_policy(config, family, "padded")
    flat.train()
    padded.train()
    loss, gradient = gradients(flat, samples, "flat", 512)
    for policy, layout, tokens in (
        (padded, "padded", 512),
        (padded, "padded", 1),
        (flat, "flat", 1),
        (flat, "flat", 20),
    ):
        other_loss, other = gradients(policy, samples, layout, tokens)
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert float((gradient - other).norm() / gradient.norm()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_flat_are_logits_alone(family: str, tmp_path: Path) -> None:
    policy = make_policy(make_config(tmp_path), family).eval()
    samples = make_samples(LENGTHS)
    (batch,) = micro_batches(samples, [0, 1, 2, 3, 4], layout="flat", max_tokens=512, step=0)
    order = [sample for row in batch.row_ids for sample in samples if sample.row == row]
    with torch.no_grad():
        hidden = policy.head.hidden(policy._inputs(batch, torch.device("cpu")))
        flat = policy.head(hidden[0]).split([len(sample) for sample in order])
        with stock_attention(policy.model):
            for sample, got in zip(order, flat, strict=True):
                want = policy.core(input_ids=torch.from_numpy(sample.input_ids)[None]).logits[0]
                assert float((got - want).abs().max() / want.abs().max()) < 1e-5


@pytest.mark.parametrize("tied", [False, True])
def test_head_in_chunks_is_the_whole_head(tied: bool, tmp_path: Path) -> None:
    """logps, entropy and logsumexp, and gradients; with an adapter on the head too where it is not tied."""
    config = make_config(tmp_path, "target_modules=[q_proj]" if tied else "target_modules=[q_proj, lm_head]")
    policy = make_policy(config, "llama", "padded", tie_word_embeddings=tied)
    samples = make_samples((30, 17))
    (batch,) = micro_batches(samples, [0, 1], layout="padded", max_tokens=512, step=0)
    batch.head_chunks = 5
    scores = policy(batch, want=("correct", "entropy", "logsumexp"))
    (scores.logps.sum() + scores.entropy.sum() + scores.logsumexp.square().sum()).backward()
    chunked = {name: p.grad.clone() for name, p in policy.named_parameters() if p.requires_grad}
    policy.zero_grad()
    lengths = torch.tensor(batch.lengths)
    logits = policy.core(
        input_ids=batch.input_ids, attention_mask=(torch.arange(30)[None] < lengths[:, None]).long()
    ).logits
    trained = batch.targets != NO_TARGET
    every = torch.log_softmax(logits[trained].float(), -1)
    logps = every.gather(-1, batch.targets[trained][:, None])[:, 0]
    entropy, logsumexp = -(every.exp() * every).sum(-1), logits[trained].float().logsumexp(-1)
    torch.testing.assert_close(scores.logps, logps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.entropy, entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.logsumexp, logsumexp, rtol=1e-5, atol=1e-5)
    assert torch.equal(scores.correct, every.argmax(-1) == batch.targets[trained])
    (logps.sum() + entropy.sum() + logsumexp.square().sum()).backward()
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(chunked[name], parameter.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunks", [1, 4])
def test_frozen_head_at_once_is_the_checkpointed_head(chunks: int, tmp_path: Path) -> None:
    """The gradient taken in the forward pass against its plain twin, with a different weight for every position."""
    policy = make_policy(make_config(tmp_path), "llama", "padded")
    (batch,) = micro_batches(make_samples((30, 17)), [0, 1], layout="padded", max_tokens=512, step=0)
    batch.head_chunks = chunks
    found = []
    for twin in (False, True):
        policy.head.__dict__["is_trained"] = twin
        policy.zero_grad()
        logps = policy(batch).logps
        (logps * torch.linspace(-1, 2, len(logps))).sum().backward()
        found.append((logps.detach(), torch.cat([p.grad.flatten() for p in policy.parameters() if p.requires_grad])))
    (fast, fast_gradient), (plain, plain_gradient) = found
    assert torch.equal(fast, plain)
    assert float((fast_gradient - plain_gradient).norm() / plain_gradient.norm()) < 1e-6


def test_activation_checkpointing_changes_nothing(tmp_path: Path) -> None:
    config = make_config(tmp_path, "lora_dropout=0.1")
    samples = make_samples(LENGTHS)
    plain, again = make_policy(config), make_policy(config)
    enable_activation_checkpointing(again.core)
    forwards = []
    again.core.model.layers[0].input_layernorm.register_forward_hook(lambda *_: forwards.append(1))
    plain.train()
    again.train()
    loss, gradient = gradients(plain, samples, "flat", 30)
    other_loss, other = gradients(again, samples, "flat", 30)
    assert loss == other_loss
    assert torch.equal(gradient, other)
    assert len(forwards) == 2 * len(micro_batches(samples, [0, 1, 2, 3, 4], layout="flat", max_tokens=30, step=3))


def test_an_empty_micro_batch_gives_zero_gradients_everywhere(tmp_path: Path) -> None:
    policy = make_policy(make_config(tmp_path, "lora_dropout=0.1")).train()
    batches = micro_batches(make_samples((9,)), [0], layout="flat", max_tokens=64, step=0, processes=2, rank=1)
    assert [batch.row_ids for batch in batches] == [[]]
    scores = policy(batches[0], want=("correct",))
    assert scores.logps.shape == (0,)
    scores.logps.sum().backward()
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert all(p.grad is not None and not p.grad.any() for p in trained)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_reference_is_the_policy_at_step_zero(tuning: str, tmp_path: Path) -> None:
    """With an adapter that starts at the base, one that does not, and with all weights tuned."""
    for warm in (False, True) if tuning == "lora" else (True,):
        config = make_config(tmp_path / f"{warm}", f"tuning={tuning}", "learning_rate=1e-2", "warmup_steps=0")
        samples = make_samples((12, 8))
        policy = make_policy(config, warm=warm)
        policy.keep_reference()
        (batch,) = micro_batches(samples, [0, 1], layout="flat", max_tokens=64, step=0)
        with torch.no_grad():
            start = policy(batch).logps
        from luthier.training.learning_check import LearningCheck
        from luthier.training.loop import train_step

        job = make_job(config, samples, policy)
        check = LearningCheck(policy)
        train_step(job, job.record, check)
        train_step(job, job.record, check)
        with torch.no_grad():
            with policy.reference():
                again = policy(batch).logps
            now = policy(batch).logps
        assert torch.equal(start, again)
        assert float((now - start).abs().max()) > 1e-3


def test_keys_of_another_batch_are_refused(tmp_path: Path) -> None:
    """A dropout without the keys of its positions is an error, never a draw from a generator."""
    policy = make_policy(make_config(tmp_path, "lora_dropout=0.5"), "llama", "padded").train()
    policy.keys.positions = None
    with pytest.raises(RuntimeError, match="keys"):
        policy.core(input_ids=torch.zeros(1, 4, dtype=torch.int64))


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_dropout_on_an_adapter_of_the_head(layout: str, tmp_path: Path) -> None:
    """Its mask is that of each position, in however many pieces the head is computed."""
    config = make_config(tmp_path, "target_modules=[q_proj, lm_head]", "lora_dropout=0.3")
    policy = make_policy(config, "llama", layout, tie_word_embeddings=False).train()
    samples = make_samples((30, 17))
    (batch,) = micro_batches(samples, [0, 1], layout=layout, max_tokens=512, step=0)
    whole = policy(batch).logps
    batch.head_chunks = 5
    torch.testing.assert_close(policy(batch).logps, whole, rtol=1e-5, atol=1e-5)
    assert float((policy.eval()(batch).logps - whole).abs().max()) > 1e-2


@pytest.mark.parametrize("chunks", [1, 4])
def test_pieces_of_the_head_are_one_split(chunks: int, tmp_path: Path) -> None:
    """The gradient of a slice is a tensor as large as what it was cut from: one a piece would be quadratic."""
    policy = make_policy(make_config(tmp_path, "target_modules=[lm_head]"), "llama", tie_word_embeddings=False)
    (batch,) = micro_batches(make_samples((30, 17)), [0, 1], layout="flat", max_tokens=512, step=0)
    batch.head_chunks = chunks
    taken: list[str] = []
    embedding = policy.core.get_input_embeddings()
    embedding.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_())
    walk, seen = [policy(batch).logps.grad_fn], set()
    while walk:
        node = walk.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        taken.append(node.name())
        walk += [before for before, _ in node.next_functions]
    of_attention = 3 * policy.core.config.num_hidden_layers
    assert len([name for name in taken if name.startswith("Split")]) == 1 + of_attention


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_the_reference_is_a_score_like_others(tuning: str, layout: str, tmp_path: Path) -> None:
    """With dropout on and activations computed again: the policy of step 0 without its dropout; the gradient is untouched by it."""
    more = ["lora_dropout=0.2"] if tuning == "lora" else []
    config = make_config(tmp_path, f"tuning={tuning}", "learning_rate=1e-2", "warmup_steps=0", *more)
    policy, samples = make_policy(config, layout=layout, warm=tuning == "full"), make_samples((12, 8))
    policy.keep_reference()
    enable_activation_checkpointing(policy.core)
    (batch,) = micro_batches(samples, [0, 1], layout=layout, max_tokens=64, step=0)
    start = policy.eval()(batch).logps.detach()
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    policy.train()
    found = []
    for want in ((), ("reference",)):
        policy.zero_grad()
        scores = policy(batch, want)
        scores.logps.sum().backward()
        found.append((scores, torch.cat([p.grad.flatten() for p in policy.parameters() if p.requires_grad])))
    (plain, gradient), (with_reference, same) = found
    assert torch.equal(gradient, same)
    assert torch.equal(plain.logps, with_reference.logps)
    assert torch.equal(with_reference.reference, start)
    assert plain.reference is None
    assert all(module.training for module in policy.modules())


def test_without_the_head_only_the_decoder_is_run(tmp_path: Path) -> None:
    policy = make_policy(make_config(tmp_path), "qwen3_moe")
    (batch,) = micro_batches(make_samples((12, 8)), [0, 1], layout="flat", max_tokens=64, step=0)
    rows: list[int] = []
    policy.core.get_output_embeddings().register_forward_hook(lambda _m, inputs, _o: rows.append(inputs[0].shape[-2]))
    with torch.no_grad():
        found = policy(batch, want=("routing",), head=False)
        whole = policy(batch, want=("routing",))
    assert rows[0] == 0
    assert sum(rows) == len(whole.logps) > 0
    assert len(found.logps) == 0
    assert all(map(torch.equal, found.routing.logits, whole.routing.logits))


def test_a_name_that_the_decoder_does_not_answer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None in the place of a misspelt name would be taken for an answer."""
    policy = make_policy(make_config(tmp_path), "llama", "padded")
    asked: list[object] = []

    def forward(inputs_embeds: torch.Tensor, use_cache: bool) -> None:
        asked.append(policy.core.model(inputs_embeds=inputs_embeds))
        asked.append(asked[0].past_key_values)  # type: ignore[attr-defined]
        asked.append(asked[0].last_hidden_sate)  # type: ignore[attr-defined]

    monkeypatch.setattr(policy.core, "forward", forward)
    with pytest.raises(AttributeError, match="last_hidden_sate"):
        policy.head(torch.zeros(2, 64))
    assert asked[1] is None
