"""`luthier inspect`: what a model is made of, and what one batch does to it; nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from luthier import config
from luthier.cli import main
from luthier.inspecting.gradients import Gradients, one_batch
from luthier.inspecting.gradients import as_text as gradients_as_text
from luthier.inspecting.module_tree import as_text, collapsed, totals, tree
from tests.helpers.tiny_models import save_twin, tiny_llama, twin

LAYERS = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    tiny_llama(folder / "model", num_hidden_layers=LAYERS)
    rows = [{"instruction": f"Say {number}", "output": f"number {number}"} for number in range(8)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def shown(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    assert main(["inspect", *map(str, arguments)]) == code
    return capsys.readouterr().out


def found(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(shown(capsys, *arguments, "--json"))
    return parsed


def line_of(text: str, module: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [module]]
    return line.split()


# ---------------------------------------------------------------------------
# The tree
# ---------------------------------------------------------------------------


def test_the_tree_of_a_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in the tutorial: each module with its class; alike layers once; and what is held how."""
    text = shown(capsys, place / "model", "dtype=float32")
    assert line_of(text, "0-2")[1:4] == ["3", "x", "LlamaDecoderLayer"]
    assert line_of(text, "q_proj")[1:7] == ["Linear", "64", "x", "64", "float32", "32.0"]
    assert len(shown(capsys, place / "model", "dtype=float32", "--all").splitlines()) > 2 * len(text.splitlines())


def test_the_sums_are_those_of_torch(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = twin("llama", num_hidden_layers=LAYERS)
    sums = found(capsys, place / "model", "dtype=float32")["totals"]
    assert sums["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    tensors = [*model.parameters(), *model.buffers()]
    distinct = {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
    assert sums["bytes"] == sum(distinct.values())


@pytest.mark.parametrize(
    ("held", "cls", "kind", "bits"),
    [
        ("dtype=bfloat16", "Linear", "bfloat16", 16.0),
        ("quantization=int8", "Linear8bitLt", "int8", 8 + 32 / 64),  # a float32 scale for each row of 64
        ("quantization={kind: nf4, double_quant: false}", "Linear4bit", "nf4", 4 + 32 / 64),  # one for each 64 numbers
        ("quantization=fp4", "Linear4bit", "fp4", 4 + 8 / 64 + 2 * 32 / 4096),
        ("quantization=nf4", "Linear4bit", "nf4", 4 + 8 / 64 + 2 * 32 / 4096),  # in 8 bits, their own scale and offset
    ],
)
def test_how_weights_are_held(
    held: str, cls: str, kind: str, bits: float, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    modules = {module["name"]: module for module in found(capsys, place / "model", held)["modules"]}
    projection = modules["model.layers.2.self_attn.q_proj"]
    assert projection["class"] == cls
    (weight,) = projection["held"]
    assert weight["shape"] == [64, 64], "the matrix's shape, not that of its bytes"
    assert weight["held_as"] == kind
    assert weight["bits"] == pytest.approx(bits, abs=1e-3)
    assert modules["lm_head"]["class"] == "Linear"


@pytest.mark.parametrize("quantization", ["null", "int8", "nf4"])
def test_what_lora_trains(quantization: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sums = found(capsys, place / "model", "tuning=lora", "r=4", f"quantization={quantization}")["totals"]
    of_a_layer = 4 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 128) * 3)
    assert sums["trained"] == LAYERS * of_a_layer
    base = sum(parameter.numel() for parameter in twin("llama", num_hidden_layers=LAYERS).parameters())
    assert sums["parameters"] == base + sums["trained"]


def test_full_tuning_trains_all(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sums = found(capsys, f"model={place / 'model'}", "data=unused", "tuning=full", "dtype=bfloat16")["totals"]
    assert sums["trained"] == sums["parameters"]
    assert list(sums["held_as"]) == ["float32"], "trained weights are float32 whatever is computed in"


def test_a_tied_head_is_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tied = tiny_llama(tmp_path / "tied", tie_word_embeddings=True)
    text = shown(capsys, tied)
    assert line_of(text, "lm_head")[5:7] == ["=", "model.embed_tokens.weight"]
    assert found(capsys, tied)["totals"]["parameters"] == sum(
        p.numel() for p in twin("llama", tie_word_embeddings=True).parameters()
    )


def test_experts_and_layers_of_two_kinds() -> None:
    text = as_text(tree(twin("gemma3_text")))
    assert "4 x Gemma3DecoderLayer" in text
    assert "4 x 64 x 64 + 4 x 64 x 32" in " ".join(line_of(as_text(tree(twin("qwen3_moe"))), "experts"))


def test_unlike_neighbours_stay_apart() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3))
    node = tree(model)
    assert [(child.name, child.count) for child in collapsed(node).children] == [("0-1", 2), ("2", 1), ("4", 1)]
    assert totals(node) == totals(collapsed(node))


def test_an_adapter(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    given = [f"model={place / 'model'}", f"data={place / 'train.jsonl'}", f"output_dir={run}", "max_steps=2"]
    assert main(["train", *given, "quantization=nf4"]) == 0
    capsys.readouterr()
    assert "lora.Linear4bit" in shown(capsys, run), "the base is held as in the run"
    shown(capsys, run, "quantization=int8", code=2)


def test_new_tokens_on_an_adapter_that_has_them(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tree of a configuration that can be trained, with the rows of its new tokens."""
    keys = [f"model={place / 'model'}", f"data={place / 'train.jsonl'}", "data.add_tokens=[<violin>, <lute>]"]
    assert main(["train", *keys, "max_steps=1", f"output_dir={tmp_path / 'run'}"]) == 0
    capsys.readouterr()
    fresh, later = (shown(capsys, *keys, *more) for more in ([], [f"adapter_path={tmp_path / 'run'}"]))
    assert fresh == later
    assert "TrainableTokens" in later


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    shown(capsys, "./nothing-there", code=2)


# ---------------------------------------------------------------------------
# Gradients of one batch
# ---------------------------------------------------------------------------


def gradients(place: Path, *overrides: str) -> Gradients:
    given = [f"model={place / 'model'}", f"data={place / 'train.jsonl'}", "output_dir=never", "dtype=float32"]
    return one_batch(config.load(None, [*given, *overrides]))


@pytest.mark.parametrize("quantization", ["null", "int8", "nf4"])
def test_gradients_of_lora(quantization: str, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The frozen base needs none; B has one at once, A from the second step on, because B begins at zero."""
    monkeypatch.chdir(tmp_path)
    seen = gradients(place, f"quantization={quantization}")
    states = {module.name.split(".")[-2]: module.state for module in seen.modules if module.required}
    assert states == {"lora_A": "learns from the second step", "lora_B": "learns"}
    for module in seen.modules:
        if module.required:
            first, second = module.update, module.second_update
            assert first is None, "A got no gradient in this step, B was zero"
            assert (second is not None) == (module.state == "learns from the second step")
    table = [line for line in gradients_as_text(seen).splitlines() if "lora_" in line]
    assert all(("none yet" in line) == ("lora_A" in line) for line in table)
    assert all(module.before is None for module in seen.modules)
    assert all(module.after is None for module in seen.of("frozen"))
    assert len(seen.of("frozen")) == LAYERS * 9 + 3
    assert seen.exit_code == 0
    assert seen.verdict[0].startswith("fine: all 42")
    assert not list(tmp_path.iterdir()), "nothing is saved"


def test_norms_and_updates_of_full_tuning(place: Path) -> None:
    """Against the definition: the gradient of the mean loss over the batch, and AdamW's first step of rate x sign."""
    rate = 1e-3
    seen = gradients(place, "tuning=full", f"learning_rate={rate}", "global_batch_size=8", "weight_decay=0")
    modules = {module.name: module for module in seen.modules}
    weight = load_file(place / "model" / "model.safetensors")["lm_head.weight"]
    head = modules["lm_head"]
    assert head.update == pytest.approx(rate * weight.numel() ** 0.5 / float(weight.norm()), rel=0.05)
    whole = sum(module.after**2 for module in seen.modules if module.after) ** 0.5
    run = place / "one-step"
    given = [f"model={place / 'model'}", f"data={place / 'train.jsonl'}", f"output_dir={run}", "dtype=float32"]
    more = ["tuning=full", f"learning_rate={rate}", "global_batch_size=8", "weight_decay=0", "max_steps=1"]
    assert main(["train", *given, *more, "warmup_steps=0"]) == 0
    (line,) = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    assert whole == pytest.approx(line["grad_norm"], rel=1e-5)
    assert (seen.exit_code, len(seen.of("learns"))) == (0, LAYERS * 9 + 3)


def changed(source: Path, target: Path, name: str, value: float) -> Path:
    """A copy of a model, the weights whose names hold `name` all of one value."""
    save_twin(target, "llama", num_hidden_layers=LAYERS)
    weights = load_file(source / "model.safetensors")
    for key, tensor in weights.items():
        if name in key:
            tensor.fill_(value)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_dead_modules_are_named(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An MLP of zeros gets no gradient, ever, for gate, up and down are multiplied; nor does the norm before it."""
    dead = changed(place / "model", tmp_path / "dead", "layers.1.mlp", 0.0)
    given = [f"model={dead}", f"data={place / 'train.jsonl'}", "tuning=full", "dtype=float32", "--gradients"]
    text = shown(capsys, *given, code=2)
    assert "DEAD: 4 trained modules" in text
    assert "model.layers.1.mlp.gate_proj" in text
    assert "do: " in text


def test_what_is_not_finite_is_named(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights that float16 holds, with products that it does not."""
    large = changed(place / "model", tmp_path / "large", "layers.2.mlp", 3e4)
    given = [f"model={large}", f"data={place / 'train.jsonl'}", "dtype=float16", "--gradients"]
    text = shown(capsys, *given, code=4)
    assert "NOT FINITE" in text
    assert "train.jsonl:" in text
    assert "that of model.layers.2.mlp." in text
    assert "bfloat16" in text


def test_a_rate_that_is_too_large(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"model={place / 'model'}", f"data={place / 'train.jsonl'}", "tuning=full", "dtype=float32"]
    text = shown(capsys, *given, "learning_rate=0.1", "--gradients")
    assert "LARGE: one step changes" in text
    assert "learning_rate=" in text
    assert "SMALL" in shown(capsys, *given, "learning_rate=1e-12", "--gradients")


def test_gradients_in_half_precision_are_those_of_float32(place: Path) -> None:
    """The loss scale is taken out again."""
    exact = {module.name: module.after for module in gradients(place).modules if module.after}
    half = {module.name: module.after for module in gradients(place, "dtype=float16").modules if module.after}
    assert half == {name: pytest.approx(value, rel=0.02) for name, value in exact.items()}
    assert torch.isfinite(torch.tensor(list(half.values()))).all()


def test_gradients_for_programs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"model={place / 'model'}", f"data={place / 'train.jsonl'}", "dtype=float32", "--gradients"]
    seen = found(capsys, *given)
    assert len(seen["rows"]) == 8
    assert {"name", "required", "before", "after", "update", "second_update", "state"} == set(seen["modules"][0])
