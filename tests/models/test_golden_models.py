"""The native architectures against what the original programs computed, recorded in ../shared/golden.

A case is skipped where the recordings are not here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import luthier  # noqa: F401 - it makes the architectures known
from luthier.models.load import load_model

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
CASES = sorted(file.parent.name for file in GOLDEN.glob("*/case.json"))
pytestmark = pytest.mark.skipif(not CASES, reason="the recordings lie in ../shared/golden, which is not here")

LOGITS, LOSS, GRADIENT = 1e-4, 1e-5, 1e-4
"""Largest differences; of gradients, of their norm, relative."""


@pytest.fixture(params=CASES or [""], scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def case(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / name / "case.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def golden(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / name / "golden.safetensors")


def load(name: str, **changes: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype=torch.float32, **changes)


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    return load(name).eval()


def inputs(golden: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: golden[key] for key in ("input_ids", "attention_mask", "labels")}


def largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_logits_loss_and_hidden_states(name: str, golden: dict[str, torch.Tensor], mode: str, attention: str) -> None:
    model = load(name, attn_implementation=attention).train(mode == "train")
    with torch.no_grad():
        out = model(**inputs(golden), output_hidden_states=True)
    real = golden["attention_mask"].bool()
    assert largest((out.logits - golden[f"logits_{mode}"])[real]) < LOGITS
    assert abs(float(out.loss - golden[f"loss_{mode}"])) < LOSS
    if mode == "eval":
        recorded = [key for key in golden if key.startswith("hidden_eval_")]
        assert len(out.hidden_states) == len(recorded)
        for index, hidden in enumerate(out.hidden_states):
            assert largest((hidden - golden[f"hidden_eval_{index}"])[real]) < LOGITS


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients(name: str, golden: dict[str, torch.Tensor], case: dict[str, Any], checkpointing: bool) -> None:
    model = load(name).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model(**inputs(golden)).loss.backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    for key, recorded in case["grads_train_loss"].items():
        gradient = gradients[key]
        assert gradient is not None, key
        flat = gradient.double().flatten()
        probe = (flat * torch.cos(0.37 * torch.arange(len(flat), dtype=torch.float64) + 0.1)).sum()
        assert list(gradient.shape) == recorded["shape"]
        assert abs(float(flat.norm()) - recorded["norm"]) <= GRADIENT * recorded["norm"] + 1e-7, key
        assert abs(float(probe) - recorded["probe"]) <= GRADIENT * recorded["norm"] + 1e-7, key
    for key, tensor in golden.items():
        if key.startswith("grad."):
            assert largest(gradients[key.removeprefix("grad.")] - tensor) < LOGITS, key


@torch.no_grad()
def test_each_row_alone(model: Any, golden: dict[str, torch.Tensor]) -> None:
    """Right-padded is alone, and so is left-padded, where the originals of one of the models were not."""
    for ids, mask, logits in zip(golden["input_ids"], golden["attention_mask"], golden["logits_eval"], strict=True):
        alone = ids[mask.bool()][None]
        assert largest(model(alone).logits[0] - logits[mask.bool()]) < LOGITS
        width = len(mask) + 3
        left = torch.full((1, width), int(model.config.pad_token_id))
        left[0, -alone.shape[1] :] = alone
        seen = torch.zeros(1, width, dtype=torch.int64)
        seen[0, -alone.shape[1] :] = 1
        positions = (seen.cumsum(-1) - 1).masked_fill(seen == 0, 1)
        for keywords in ({}, {"position_ids": positions}):
            padded = model(left, attention_mask=seen, **keywords).logits[0, -alone.shape[1] :]
            assert largest(padded - logits[mask.bool()]) < LOGITS


def greedy(model: Any, ids: torch.Tensor, **keywords: Any) -> torch.Tensor:
    config = {"max_new_tokens": 12, "do_sample": False, "top_k": None, "top_p": None, "temperature": None}
    config |= {"repetition_penalty": 1.0, "eos_token_id": None, "pad_token_id": model.config.pad_token_id}
    out: torch.Tensor = model.generate(ids, **config, **keywords)
    return out[:, ids.shape[1] :]


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_tokens(model: Any, golden: dict[str, torch.Tensor], case: dict[str, Any], use_cache: bool) -> None:
    prompt = golden["gen_prompt"]
    tokens = greedy(model, prompt, use_cache=use_cache)
    assert tokens.tolist() == golden["gen_tokens_cached"].tolist()
    for recorded in (case.get("gen_short_prompts") or {}).values():
        length = len(prompt[0])
        shorter = next(
            n
            for n in range(1, length + 1)
            if greedy(model, prompt[:, :n], use_cache=use_cache)[0].tolist() == recorded["tokens"]
        )
        assert shorter <= 3


def test_greedy_tokens_of_a_left_padded_batch(
    model: Any, golden: dict[str, torch.Tensor], case: dict[str, Any]
) -> None:
    """As recorded where the original gave the row alone too; else as each row alone."""
    ids, mask = golden["gen_batch_input_ids"], golden["gen_batch_attention_mask"]
    batch = greedy(model, ids, attention_mask=mask)
    assert torch.equal(batch, greedy(model, ids, attention_mask=mask, use_cache=False))
    for row, (one, seen) in enumerate(zip(ids, mask, strict=True)):
        assert batch[row].tolist() == greedy(model, one[seen.bool()][None])[0].tolist()
    if case["gen_batch_row1_equals_unpadded"]:
        assert torch.equal(batch, golden["gen_batch_tokens"])
    whole = mask.bool().all(-1)
    assert torch.equal(batch[whole], golden["gen_batch_tokens"][whole])


@torch.no_grad()
def test_step_by_step(model: Any, golden: dict[str, torch.Tensor]) -> None:
    """Logits through the cache, token by token and in pieces, are those of one pass."""
    ids = golden["input_ids"][:1]
    whole = model(ids).logits
    for pieces in ([1] * ids.shape[1], [3, 1, 4, 2, ids.shape[1] - 10]):
        cache, found = None, []
        for piece in ids.split(pieces, dim=1):
            out = model(piece, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits)
        assert largest(torch.cat(found, dim=1) - whole) < LOGITS


@torch.no_grad()
def test_in_bfloat16(name: str, golden: dict[str, torch.Tensor], case: dict[str, Any]) -> None:
    """No further from float32 than the original was, but for the luck of rounding."""
    if "bf16_vs_fp32_eval_max_diff_real" not in case or "logits_eval" not in golden:
        pytest.skip("this case records nothing in bfloat16")
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype=torch.bfloat16).eval()
    logits = model(golden["input_ids"], attention_mask=golden["attention_mask"]).logits.float()
    real = golden["attention_mask"].bool()
    assert largest((logits - golden["logits_eval"])[real]) < 1.5 * case["bf16_vs_fp32_eval_max_diff_real"]


@torch.no_grad()
def test_packed_rows(model: Any, golden: dict[str, torch.Tensor]) -> None:
    """Two samples in a row: by a mask of who sees whom (7B), by numbers of samples (13B)."""
    if "packed_input_ids" not in golden:
        pytest.skip("this case records no packed row")
    keywords = {"attention_mask": golden.get("packed_mask3d", golden.get("packed_mask_ids"))}
    if "packed_position_ids" in golden:
        keywords["position_ids"] = golden["packed_position_ids"]
    mask = keywords["attention_mask"]
    real = (mask if mask.dim() == 2 else mask.diagonal(dim1=1, dim2=2)) != 0
    logits = model(golden["packed_input_ids"], **keywords).logits
    assert largest((logits - golden["packed_logits"])[real]) < LOGITS


@torch.no_grad()
def test_z_loss(name: str, golden: dict[str, torch.Tensor], case: dict[str, Any]) -> None:
    if "loss_train_with_z_loss_weight_0.01" not in case:
        pytest.skip("this case records no z-loss")
    model = load(name).train()
    model.config.z_loss_weight = 0.01
    assert abs(float(model(**inputs(golden)).loss) - case["loss_train_with_z_loss_weight_0.01"]) < LOSS


def test_what_the_filter_computes(name: str, model: Any, golden: dict[str, torch.Tensor]) -> None:
    if "lfa0_in" not in golden:
        pytest.skip("this case has no filter")
    with torch.no_grad():
        out = model.model.layers[0].self_attn.lf_gate(golden["lfa0_in"], None)
    assert largest(out - golden["lfa0_out"]) < LOGITS


def test_rows_of_the_loss_mask(case: dict[str, Any]) -> None:
    if "get_loss_mask" not in case:
        pytest.skip("this case records no mask of the loss")
    from luthier.models.architectures.yuan.model import asked_for

    ids = torch.tensor(case["get_loss_mask"]["input_ids"])
    assert asked_for(ids, 185, 187).long().tolist() == case["get_loss_mask"]["mask"]


def test_slopes(case: dict[str, Any]) -> None:
    if "slopes_40_heads" not in case:
        pytest.skip("this case has no ALiBi")
    from luthier.models.architectures.baichuan.model import alibi_slopes

    assert alibi_slopes(40) == pytest.approx(case["slopes_40_heads"], rel=1e-12)


def test_padding_gets_no_gradient_as_input(name: str, golden: dict[str, torch.Tensor], case: dict[str, Any]) -> None:
    model = load(name).train()
    model(**inputs(golden)).loss.backward()
    row = model.get_input_embeddings().weight.grad[model.config.pad_token_id].norm()
    recorded = case.get("embed_grad_row_norm_pad", case.get("embed_grad_row_norm_eod_pad"))
    assert float(row) == pytest.approx(recorded, rel=GRADIENT, abs=1e-7)


def test_saved_with_the_published_names(name: str, model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    saved, published = load_file(tmp_path / "model.safetensors"), load_file(GOLDEN / name / "model.safetensors")
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert set(saved) == {key for key in published if "rotary_emb" not in key} - tied
    assert all(torch.equal(tensor, published[key]) for key, tensor in saved.items())
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, model(ids).logits)


def test_luthier_loads_the_folder(name: str, tmp_path: Path) -> None:
    """Though its config.json asks for code."""
    from tests.helpers.tiny_models import tiny_tokenizer

    for file in ("config.json", "model.safetensors", "generation_config.json"):
        if (GOLDEN / name / file).is_file():
            (tmp_path / file).write_bytes((GOLDEN / name / file).read_bytes())
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load_model(tmp_path, dtype=torch.float32, device="cpu").config.model_type in ("yuan", "baichuan")
