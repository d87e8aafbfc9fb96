"""What the line of LoRA says: how much of attention, MLP, experts and the rest an adapter is on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from luthier import component, config
from luthier.api import train_from
from luthier.errors import UserError
from luthier.kernels.dropout import DropoutKeys
from luthier.tuning import Start
from luthier.tuning._anatomy import ATTENTION, EDGES, EXPERTS, MLP, OTHER, Anatomy, Weight, anatomy, count_of
from tests.helpers.tiny_models import TWINS, tiny_llama, twin

MIXTURES = ("qwen3_moe", "gpt_oss")
REST = {"yuan": "0 % of other", "lfm2": "98.8 % of other", "falcon_h1": "70 % of other"}
"""Convolutions get no adapter, nor does what a state-space kernel reads itself."""

EXAMPLES = {
    "llama": {ATTENTION: "self_attn.q_proj", MLP: "mlp.up_proj", EDGES: "lm_head"},
    "gpt_oss": {ATTENTION: "self_attn.o_proj", EXPERTS: "mlp.experts", OTHER: "mlp.router"},
    "qwen3_moe": {EXPERTS: "mlp.experts", OTHER: "mlp.gate"},
    "gpt_neox": {ATTENTION: "attention.dense", MLP: "mlp.dense_4h_to_h", EDGES: "embed_in"},
    "bloom": {ATTENTION: "self_attention.dense", MLP: "mlp.dense_h_to_4h", EDGES: "word_embeddings"},
    "gpt2": {ATTENTION: "attn.c_proj", MLP: "mlp.c_proj", EDGES: "wpe"},
    "opt": {ATTENTION: "self_attn.out_proj", MLP: "fc1", EDGES: "embed_positions"},
    "lfm2": {ATTENTION: "self_attn.out_proj", MLP: "feed_forward.w2", OTHER: "conv.in_proj"},
    "falcon_h1": {MLP: "feed_forward.up_proj", OTHER: "mamba.in_proj"},
}


def applied(model: Any, **settings: Any) -> tuple[Any, str]:
    lora = component.load("tuning", "lora")
    tuned = lora(lora.Config(**settings)).apply(model, Start(DropoutKeys(0)))
    return tuned.model, tuned.trained


def shared_and_routed() -> Any:
    """A mixture with a dense first layer and shared experts, whose names peft takes for the routed ones."""
    keys = {
        **TWINS["llama"],
        "model_type": "deepseek_v3",
        "num_key_value_heads": 4,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "vocab_size": 512,
    }
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(keys.pop("model_type"), **keys))


@pytest.mark.parametrize("name", TWINS)
def test_all_linear_is_all_attention_and_mlp_and_no_experts(name: str) -> None:
    line = applied(twin(name))[1]
    mlp = "0 % of 4 x 2 experts" if name in MIXTURES else "100 % of MLP"
    rest = ", 0 % of other" if name in MIXTURES else f", {REST[name]}" if name in REST else ""
    assert line.startswith(f"LoRA on 100 % of attention, {mlp}, 0 % of embeddings and head{rest}: ")


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_weight_is_of_one_part(name: str) -> None:
    parts = {weight.module: weight.part for weight in anatomy(twin(name)).weights}
    for part, end in EXAMPLES[name].items():
        found = {parts[module] for module in parts if f".{module}".endswith(f".{end}")}
        assert found == {part}, end


@pytest.mark.parametrize("name", TWINS)
def test_every_matrix_is_counted_once(name: str) -> None:
    model = twin(name)
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() >= 2)
    assert sum(weight.parameters for weight in anatomy(model).weights) == matrices


def test_a_part_of_a_part_is_a_share_of_its_parameters() -> None:
    line = applied(twin("llama"), target_modules=("q_proj", "lm_head"))[1]
    assert line.startswith("LoRA on 33.3 % of attention, 0 % of MLP, 50 % of embeddings and head: ")
    assert line.endswith(" in 3 layers: q_proj, lm_head")


def test_shares_are_rounded_down() -> None:
    """100 is all, and 0 is nothing."""
    weights = (Weight("small", MLP, 1), Weight("large", MLP, 9999))
    found = Anatomy(weights, "experts")
    assert found.coverage({"large"}) == "99.9 % of MLP"
    assert found.coverage({"small"}) == "<0.1 % of MLP"
    assert found.coverage({"small", "large"}) == "100 % of MLP"
    assert found.coverage(()) == "0 % of MLP"


def test_names_that_peft_takes_for_experts_are_left_out_and_said() -> None:
    adapted, line = applied(shared_and_routed())
    assert line.startswith("LoRA on 100 % of attention, 0 % of MLP, 0 % of 4 x 1 experts, ")
    names = [name for name, module in adapted.named_modules() if isinstance(module, LoraLayer)]
    assert names
    assert all(".self_attn." in name for name in names)


@pytest.mark.parametrize("asked", [("down_proj",), ("gate_proj", "up_proj", "down_proj"), r".*mlp\.(gate|up)_proj"])
def test_names_that_peft_takes_for_experts_are_refused(asked: Any) -> None:
    with pytest.raises(UserError, match="experts of this mixture"):
        applied(shared_and_routed(), target_modules=asked)


@pytest.mark.parametrize("asked", ["q_proj", "q_proj,v_proj", "q_proj, v_proj"])
def test_plain_names_given_as_a_text_are_names(asked: str) -> None:
    model, _ = applied(twin("llama"), target_modules=asked)
    found = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    assert found == {name.strip() for name in asked.split(",")}
    with pytest.raises(UserError, match=r"'W_pack' matches no linear layer") as caught:
        applied(twin("llama"), target_modules="W_pack")
    assert caught.value.fix == "tuning.target_modules=all-linear, or tuning.target_modules=q_proj,k_proj,v_proj"
    assert caught.value.expected.startswith("all-linear, or names of its layers: q_proj, k_proj")


@pytest.mark.parametrize(
    ("family", "asked", "meant"),
    [
        ("llama", ("W_pack", "o_proj"), "q_proj,k_proj,v_proj,o_proj"),
        ("llama", ("q_porj",), "q_proj"),
        ("gpt_neox", ("q_proj", "v_proj"), "query_key_value"),
        ("gpt2", ("q_proj",), "c_attn"),
        ("llama", ("nonsense",), ""),
        ("llama", r".*\.nonsense", ""),
    ],
)
def test_names_of_another_model_are_answered_with_those_of_this_one(family: str, asked: Any, meant: str) -> None:
    with pytest.raises(UserError, match="matches no linear layer") as caught:
        applied(twin(family), target_modules=asked)
    everything, _, named = caught.value.fix.partition(", or ")
    assert everything == "tuning.target_modules=all-linear"
    assert named == (f"tuning.target_modules={meant}" if meant else "")
    if meant:
        applied(twin(family), target_modules=meant)


def test_an_expression_means_what_it_says_on_such_a_mixture() -> None:
    """Else peft would take it for the last parts of the names that it matches, in all layers."""
    adapted, _ = applied(shared_and_routed(), target_modules=r".*layers\.1\.self_attn\.o_proj")
    names = [name for name, module in adapted.named_modules() if isinstance(module, LoraLayer)]
    assert names == ["base_model.model.model.layers.1.self_attn.o_proj"]


def test_numbers_as_names_are_no_short_names() -> None:
    """A projection in a list is called 0, as is the first layer."""
    model = twin("llama")
    model.model.extra = torch.nn.ModuleList([torch.nn.Linear(8, 8)])
    adapted, _ = applied(model)
    assert "model.extra.0" in adapted.peft_config["default"].target_modules
    assert "0" not in adapted.peft_config["default"].target_modules


def test_the_line_is_in_the_manifest_and_the_report(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model")
    (tmp_path / "train.jsonl").write_text('{"prompt": "Hello.", "completion": "Hello to you."}\n' * 3)
    keys = [f"model={tmp_path / 'model'}", f"data={tmp_path / 'train.jsonl'}", f"output_dir={tmp_path / 'run'}"]
    said: list[str] = []
    train_from(config.load(None, [*keys, "dtype=float32", "max_steps=1"]), say=said.append)
    line = next(text for text in said if text.startswith("LoRA on"))
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["trained"] == line
    assert line in (tmp_path / "run" / "report.html").read_text()


def test_weights_of_four_bits_count_as_what_they_stand_for(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    given = BitsAndBytesConfig(load_in_4bit=True)
    packed, whole = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=how)
        for how in (given, None)
    )
    assert sum(map(count_of, packed.parameters())) == sum(map(count_of, whole.parameters()))
    assert sum(parameter.numel() for parameter in packed.parameters()) < sum(map(count_of, packed.parameters()))
