"""Every option of LoRA against arithmetic by hand, and the law that the reference is the policy at step 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from luthier import component, config
from luthier.data.steps.layout import micro_batches
from luthier.errors import UserError
from luthier.kernels.dropout import DropoutKeys
from luthier.kernels.lora import lora_layers
from luthier.models.adapters import load_adapter, save_adapter
from luthier.models.load import fingerprint, load_model
from luthier.models.source import ModelSource
from luthier.models.sources.resolve import resolve
from luthier.policy.policy import Policy
from luthier.runs.beginning import RunStart
from luthier.training import build, run
from luthier.tuning import Start
from tests.helpers.jobs import make_samples
from tests.helpers.tiny_models import save_twin, tiny_llama, twin

BEGINNINGS = (True, "gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora", "eva")
SAMPLES = make_samples([24, 17, 9])
ROWS = [{"prompt": f"Say {number}.", "completion": f"{number}!"} for number in range(8)]


def adapted(model: Any, folder: Path = Path("none"), **settings: Any) -> Policy:
    """A policy as `training/build.py` makes it; `folder` is the model's."""
    lora, keys = component.load("tuning", "lora"), DropoutKeys(0)
    source = ModelSource(folder, "model", None, "folder")
    start = RunStart(keys, source=source, base={}, samples=SAMPLES, new={}, tell=lambda text: None)
    torch.manual_seed(0)
    tuned = lora(lora.Config(**settings)).apply(model, start)
    return Policy(tuned.model, keys, starts_at_base=tuned.off_is_start == "to the bit")


def layer_of(policy: Policy, name: str = "self_attn.q_proj") -> Any:
    return next(layer for found, layer in lora_layers(policy.model) if found.endswith(name))


def factors(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()


def move(policy: Policy, seed: int = 1, size: float = 0.05) -> None:
    """What training does, as far as these tests need it."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn(parameter.shape, generator=generator)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(3, 40)[None]).logits
    return found


def logps(policy: Policy) -> torch.Tensor:
    (batch,) = micro_batches(SAMPLES, [0, 1, 2], layout="padded", max_tokens=512, step=0, processes=1, rank=0)
    with torch.no_grad():
        return policy(batch).logps


@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_update_is_scaled_as_written(use_rslora: bool) -> None:
    policy = adapted(twin("llama"), r=4, lora_alpha=12, use_rslora=use_rslora)
    move(policy)
    layer, x = layer_of(policy), torch.randn(5, 64)
    a, b = factors(layer)
    by_hand = x @ layer.get_base_layer().weight.T + (12 / 2 if use_rslora else 12 / 4) * (x @ a.T) @ b.T
    torch.testing.assert_close(layer(x), by_hand)


def test_dora_trains_length_and_direction_apart() -> None:
    policy = adapted(twin("llama"), r=4, lora_alpha=8, use_dora=True)
    before = logits(policy.core)
    with policy.model.disable_adapter():
        torch.testing.assert_close(before, logits(policy.core), atol=1e-6, rtol=0)
    move(policy)
    layer, x = layer_of(policy), torch.randn(5, 64)
    a, b = factors(layer)
    direction = layer.get_base_layer().weight + 2 * b @ a
    length = layer.lora_magnitude_vector["default"].weight
    torch.testing.assert_close(layer(x), x @ (length[:, None] * direction / direction.norm(dim=1, keepdim=True)).T)


@pytest.mark.parametrize("how", BEGINNINGS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_reference_is_the_policy_at_step_0(how: Any, dropout: float) -> None:
    plain = twin("llama")
    base = {name: parameter.detach().clone() for name, parameter in plain.named_parameters()}
    before = logits(plain)
    policy = adapted(plain, r=4, init_lora_weights=how, lora_dropout=dropout)
    policy.keep_reference()
    torch.testing.assert_close(logits(policy.core.eval()), before, atol=1e-5, rtol=0)
    policy.train()
    start = logps(policy)
    with policy.reference():
        assert float((logps(policy) - start).abs().max()) <= 1e-6
    move(policy)
    assert float((logps(policy) - start).abs().max()) > 1e-3
    with policy.reference():
        assert float((logps(policy) - start).abs().max()) <= 1e-6
    for name, parameter in policy.core.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(parameter, base[name.replace(".base_layer", "")]), name


@pytest.mark.parametrize("how", BEGINNINGS)
@pytest.mark.parametrize(
    "more", [{}, {"use_rslora": True}, {"rank_pattern": {"o_proj": 2}, "alpha_pattern": {"v_proj": 3}}]
)
def test_a_saved_adapter_belongs_to_the_untouched_base(tmp_path: Path, how: Any, more: dict[str, Any]) -> None:
    policy = adapted(twin("llama"), r=4, init_lora_weights=how, **more)
    move(policy)
    save_adapter(policy.model, tmp_path, {"name": "base"})
    ours = load_adapter(twin("llama"), tmp_path)
    plain = PeftModel.from_pretrained(twin("llama"), str(tmp_path))
    wanted = logits(policy.core)
    torch.testing.assert_close(logits(ours), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(plain), wanted, atol=1e-5, rtol=0)
    merged = plain.merge_and_unload()
    torch.testing.assert_close(logits(merged), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("how", ["pissa", "olora"])
def test_main_parts_are_those_of_peft(how: str) -> None:
    """peft writes the rest of the weight into the base; the function and its gradients are the same."""
    policy = adapted(twin("llama"), r=4, lora_alpha=8, target_modules=("q_proj", "down_proj"), init_lora_weights=how)
    plain = get_peft_model(
        twin("llama"),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=how),
    )
    own = {name: parameter for name, parameter in policy.model.named_parameters() if ".lora_" in name}
    for model in (policy.model, plain):
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            if ".lora_" in name:
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
    torch.testing.assert_close(logits(policy.core), logits(plain), atol=1e-5, rtol=0)
    for model in (policy.model, plain):
        model(input_ids=torch.arange(3, 40)[None], labels=torch.arange(3, 40)[None]).loss.backward()
    for name, parameter in plain.named_parameters():
        if ".lora_" in name:
            torch.testing.assert_close(own[name].grad, parameter.grad, atol=1e-5, rtol=1e-4)


def test_eva_begins_at_the_main_directions_of_the_inputs() -> None:
    """The sketch of 4 r directions holds all 64 of this layer, so it is exact."""
    policy = adapted(twin("llama"), r=16, init_lora_weights="eva")
    layer, seen = layer_of(policy, "1.self_attn.k_proj"), []
    hook = layer.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0][0]))
    with policy.model.disable_adapter(), torch.no_grad():
        for sample in SAMPLES:
            policy.core(input_ids=torch.as_tensor(sample.input_ids)[None])
    hook.remove()
    main = torch.linalg.svd(torch.cat(seen).double(), full_matrices=False).Vh[:16]
    same = (main @ factors(layer)[0].double().T).abs()
    torch.testing.assert_close(same, torch.eye(16, dtype=torch.float64), atol=1e-4, rtol=0)


def test_loftq_gives_back_what_quantization_lost(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model")
    nf4 = component.load("quantization", "nf4")
    held = load_model(tmp_path / "model", dtype=torch.float32, device="cpu", quantization=nf4(nf4.Config()))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    quantized = logits(held)
    policy = adapted(held, tmp_path / "model", r=16, init_lora_weights="loftq")
    assert (logits(policy.core) - logits(whole)).norm() < 0.9 * (quantized - logits(whole)).norm()
    assert not policy.starts_at_base
    policy.keep_reference()
    start = logps(policy)
    move(policy)
    with policy.reference():
        assert torch.equal(logps(policy), start)
    with pytest.raises(UserError, match="not held in 4 bits"):
        adapted(whole, init_lora_weights="loftq")


def test_ranks_scales_and_layers_by_pattern() -> None:
    policy = adapted(
        twin("llama"), r=4, lora_alpha=4, rank_pattern={"q_proj": 2, r"0\.mlp\.\w+": 6}, alpha_pattern={"v_proj": 12}
    )
    for name, layer in lora_layers(policy.model):
        rank = 2 if name.endswith("q_proj") else 6 if ".0.mlp." in name else 4
        assert factors(layer)[0].shape[0] == rank
        assert layer.scaling["default"] == (12 if name.endswith("v_proj") else 4) / rank
    some = adapted(twin("llama"), layers_to_transform=(1,))
    assert {name.split(".")[2] for name, _ in lora_layers(some.model)} == {"1"}
    assert len(list(lora_layers(some.model))) == 7


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_modules_are_trained_whole_and_ties_stay(tmp_path: Path, name: str) -> None:
    """The twins share one weight between embeddings and head."""
    whole = "embed_tokens" if name == "llama" else "wte"
    save_twin(tmp_path / "base", name, tie_word_embeddings=True)
    policy = adapted(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), r=4, modules_to_save=(whole,))
    assert any(whole in found for found in policy.trained_tensors())
    move(policy)
    rows = policy.core.get_input_embeddings().modules_to_save["default"].weight
    assert policy.core.get_output_embeddings().modules_to_save["default"].weight is rows
    (tmp_path / "adapter").mkdir()
    save_adapter(policy.model, tmp_path / "adapter", {"name": "base"})
    again = load_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(logits(again), logits(policy.core), atol=1e-6, rtol=0)
    merged = again.merge_and_unload()
    merged.tie_weights()
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    merged.save_pretrained(tmp_path / "merged")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert reloaded.get_output_embeddings().weight is reloaded.get_input_embeddings().weight
    torch.testing.assert_close(logits(reloaded), logits(policy.core), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_experts_are_adapted_when_asked_for_and_the_router_never(tmp_path: Path, name: str) -> None:
    policy = adapted(twin(name), r=2, experts=True)
    names = [name for name, _ in policy.named_parameters() if ".lora_" in name]
    assert any(".experts." in name for name in names)
    assert not any(".gate." in name or ".router." in name for name in names)
    before = logits(policy.core)
    move(policy)
    assert (logits(policy.core) - before).abs().max() > 1e-3
    save_adapter(policy.model, tmp_path, {"name": "base"})
    again = load_adapter(twin(name), tmp_path)
    torch.testing.assert_close(logits(again), logits(policy.core), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(again.merge_and_unload()), logits(policy.core), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"init_lora_weights": False}, "leaves B random"),
        ({"init_lora_weights": "orthogonal", "r": 3}, "an even r"),
        ({"use_dora": True, "init_lora_weights": "pissa"}, "use_dora with init_lora_weights: pissa"),
        ({"rank_pattern": {"q_pro": 2}}, "'q_pro' matches nothing"),
        ({"alpha_pattern": {"x": 2}}, "tuning.alpha_pattern"),
        ({"modules_to_save": ("embed",)}, "'embed' matches nothing"),
        ({"layers_to_transform": (2,)}, "layer 2; the model has 2"),
        ({"experts": True}, "has no experts"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        adapted(twin("llama"), **settings)


def test_b_learns_faster_by_the_ratio(tmp_path: Path) -> None:
    """AdamW's first step is as long as its rate, so the step of B is `loraplus_lr_ratio` times that of A."""
    from luthier.training.parameters import make_optimizer

    policy = adapted(twin("llama"), r=4)
    move(policy)
    keys = ["model=m", "data=d", f"output_dir={tmp_path}", "learning_rate=1e-3"]
    optimizer = make_optimizer(config.load(None, keys).training, policy, {".lora_B.": 16.0})
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    (-logps_with_gradient(policy)).backward()  # type: ignore[no-untyped-call]
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"]
    optimizer.step()
    for part, rate in (("lora_A", 1e-3), ("lora_B", 1.6e-2)):
        steps = [(p - before[name]).abs().max() for name, p in policy.named_parameters() if f".{part}." in name]
        torch.testing.assert_close(torch.stack(steps), torch.full((len(steps),), rate), rtol=0.01, atol=0)


def logps_with_gradient(policy: Policy) -> torch.Tensor:
    (batch,) = micro_batches(SAMPLES, [0, 1, 2], layout="padded", max_tokens=512, step=0, processes=1, rank=0)
    return policy(batch).logps.sum()


@pytest.mark.prove
def test_a_run_goes_on_from_an_adapter(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model")
    save_twin(tmp_path / "other", "llama", seed=5)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    keys = [f"data={tmp_path / 'train.jsonl'}", "dtype=float32", "max_steps=2", "data.eval=0.3", "eval_steps=1"]
    first, second = tmp_path / "first", tmp_path / "second"
    begin = [*keys, f"model={tmp_path / 'model'}", f"output_dir={first}", "learning_rate=1e-2"]
    run.execute(
        config.load(None, [*begin, "tuning={kind: lora, r: 3, init_lora_weights: pissa}"]), say=lambda text: None
    )
    go_on = [*keys, f"model={tmp_path / 'model'}", f"output_dir={second}"]
    said: list[str] = []
    same = "target_modules=[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"
    run.execute(config.load(None, [*go_on, f"adapter_path={first}", "lora_dropout=0.1", same]), say=said.append)
    assert any(line.startswith(f"goes on from {first}, rank 6; LoRA on 14 layers") for line in said)
    ends, begins = (
        [json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (first, second)
    )
    last = [line["eval_loss"] for line in ends if "eval_loss" in line][-1]
    assert begins[0]["eval_loss"] == pytest.approx(last, abs=1e-5)
    assert begins[-1]["eval_loss"] != begins[0]["eval_loss"]
    assert json.loads((second / "adapter" / "adapter_config.json").read_text())["r"] == 6
    for wrong, text in (
        (["r=8"], "beside tuning.adapter_path, which has its own"),
        (["target_modules=[q_proj]"], "beside tuning.adapter_path, which has its own"),
        ([f"model={tmp_path / 'other'}"], "was trained on .*model, this is .*other"),
        ([f"adapter_path={tmp_path}"], "holds no adapter_config.json"),
        ([f"adapter_path={tmp_path / 'none'}"], "there is no folder"),
    ):
        with pytest.raises(UserError, match=text):
            run.execute(config.load(None, [*go_on, f"adapter_path={first}", *wrong, f"output_dir={tmp_path / 'x'}"]))


def test_the_reference_of_a_run_that_goes_on_is_the_adapter(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model")
    policy = adapted(load_model(tmp_path / "model", dtype=torch.float32, device="cpu"), r=2)
    move(policy)
    (tmp_path / "adapter").mkdir()
    save_adapter(policy.model, tmp_path / "adapter", fingerprint(tmp_path / "model").as_dict())
    given = config.load(
        None,
        [f"model={tmp_path / 'model'}", "data=d", f"output_dir={tmp_path}", f"adapter_path={tmp_path / 'adapter'}"],
    )
    decisions = {"activation_checkpointing": False, "layout": "padded"}
    source = resolve(str(tmp_path / "model"))
    later, _ = build.build_policy(given, source, torch.float32, torch.device("cpu"), decisions)
    later.keep_reference()
    wanted = logps(policy)
    assert torch.equal(logps(later), wanted)
    move(later, seed=2)
    with later.reference():
        assert torch.equal(logps(later), wanted)


@pytest.mark.parametrize(
    ("name", "more", "targets", "rows", "said"),
    [
        ("llama", {"tie_word_embeddings": True}, ("lm_head",), {}, "shares its weight with the embeddings"),
        ("baichuan", {}, ("lm_head",), {}, "is a NormHead, no plain linear layer"),
        ("baichuan", {}, "all-linear", {"lm_head": [5]}, "cannot train single rows of .* head lm_head, a NormHead"),
        ("llama", {}, ("q_proj", "lm_head"), {"lm_head": [5]}, "of this model's head lm_head, which gets an adapter"),
    ],
)
def test_an_update_of_a_head_that_could_not_be_merged_is_refused(
    name: str, more: dict[str, Any], targets: str | tuple[str, ...], rows: dict[str, list[int]], said: str
) -> None:
    tuning = component.load("tuning", "lora")
    made = tuning(tuning.Config(target_modules=targets))
    with pytest.raises(UserError, match=said):
        made.apply(twin(name, **more), Start(DropoutKeys(0), rows))


def test_experts_by_code_of_the_models_own_are_trained_in_float32_only() -> None:
    """Llama 4 multiplies its experts itself: an update can only be added to their weights, which 16 bits round away."""
    small = {"hidden_size": 64, "intermediate_size": 32, "intermediate_size_mlp": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 4}
    settings = AutoConfig.for_model("llama4_text", vocab_size=128, interleave_moe_layer_step=1, **small, **heads)
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    policy = adapted(model, r=2, experts=True)
    before = logits(policy.core)
    move(policy)
    assert not torch.equal(logits(policy.core), before)
    with pytest.raises(UserError, match=r"(?s)added to weights in bfloat16.*model\.dtype=float32"):
        adapted(AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16), r=2, experts=True)
