"""The base in fewer bits, and in float16: on a CPU, for real. What is trained is float32 beside it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from luthier import component, config
from luthier.data.steps.layout import micro_batches
from luthier.engines import _replicas
from luthier.errors import UserError
from luthier.inference.chat import Chat, Settings
from luthier.inference.opened import open_model
from luthier.kernels.dropout import DropoutKeys
from luthier.models import load
from luthier.models.checks import QUANTIZED, quantized
from luthier.models.dequantized import dequantize
from luthier.models.load import load_model
from luthier.policy.policy import Policy
from luthier.runs.recorder import read_lines
from luthier.training import run
from tests.helpers.jobs import make_samples
from tests.helpers.tiny_models import save_twin, tiny_llama

KINDS = ("int8", "nf4", "fp4")
LARGEST_ERROR = {"int8": 0.01, "nf4": 0.11, "fp4": 0.15}
"""Of a projection's weights under a normal distribution, relative to their norm (8, 4 and 4 bits)."""

FAST = ("learning_rate=3e-3", "lr_scheduler_type=constant_with_warmup")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("quantized") / "model")


def held(model: Path, kind: str, dtype: torch.dtype = torch.float32, **keys: Any) -> Any:
    component_class = component.load("quantization", kind)
    quantization = component_class(component_class.Config(**keys))
    return load_model(model, dtype=dtype, device="cpu", quantization=quantization)


def projection(loaded: Any) -> nn.Module:
    found: nn.Module = loaded.model.layers[0].mlp.up_proj
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_weights_nearly(kind: str, model: Path) -> None:
    """Each column of the matrix by itself, and no better than that many bits allow."""
    exact = load_file(model / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    with torch.no_grad():
        product = projection(held(model, kind))(torch.eye(64)).T
    error = float((product - exact).norm() / exact.norm())
    assert LARGEST_ERROR[kind] / 20 < error < LARGEST_ERROR[kind]


def test_nf4_is_nearer_than_fp4(model: Path) -> None:
    exact = load_file(model / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    with torch.no_grad():
        errors = [float((projection(held(model, kind))(torch.eye(64)).T - exact).norm()) for kind in ("nf4", "fp4")]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_four_bits_are_computed_in(dtype: str, model: Path) -> None:
    """As the run computes, or as asked for; the library must not choose another on the first input."""
    asked = getattr(torch, dtype)
    for loaded in (held(model, "nf4", asked), held(model, "nf4", torch.float32, compute_dtype=dtype)):
        layer = projection(loaded)
        with torch.no_grad():
            layer(torch.ones(2, 64, dtype=torch.float32))
        assert layer.compute_dtype == asked


@pytest.mark.parametrize("kind", KINDS)
def test_linear_layers_of_a_class_of_their_own_are_held_too(kind: str, tmp_path: Path) -> None:
    base = save_twin(tmp_path / "falcon", "falcon")
    loaded = held(base, kind)
    layers, share = quantized(loaded)
    assert layers == 4 * loaded.config.num_hidden_layers
    whole = sum(weight.numel() for weight in load_model(base, dtype=torch.float32, device="cpu").parameters())
    inside = sum(m.in_features * m.out_features for m in loaded.modules() if type(m).__name__ in QUANTIZED)
    assert share == pytest.approx(inside / whole)
    plain = load_model(base, dtype=torch.float32, device="cpu")
    assert {type(m).__name__ for m in plain.modules() if isinstance(m, nn.Linear)} == {"FalconLinear", "Linear"}


def test_a_model_of_which_nothing_can_be_held_so_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "plain_linear", lambda _: nullcontext())
    with pytest.raises(UserError, match="none of its layers can be held in fewer bits: FalconLinear"):
        held(save_twin(tmp_path / "falcon", "falcon"), "nf4")


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_weights_stay_as_they_were_packed(kind: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU with bfloat16 arithmetic bitsandbytes packs them anew while nothing is trained, for a product without a gradient."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    loaded = held(model, kind)
    with torch.no_grad():
        loaded.eval()(torch.arange(5)[None])
    states = [module.weight.quant_state for module in loaded.modules() if type(module).__name__ == "Linear4bit"]
    assert states
    assert not any(getattr(state, "packing_format_for_cpu", False) for state in states)
    wide = torch.ones(1, 3, 64, requires_grad=True)
    projection(loaded)(wide).sum().backward()
    assert wide.grad is not None
    assert float(wide.grad.abs().max()) > 0


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_rows_that_are_no_whole_number_of_blocks(kind: str, tmp_path: Path) -> None:
    """bitsandbytes 0.50.2 unpacks them with other blocks' scales on processors with AVX-512: right, or refused."""
    odd = tiny_llama(tmp_path / "odd", intermediate_size=96)
    exact = load_file(odd / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    unpacked, refused = None, ""
    try:
        unpacked = dequantize(held(odd, kind), torch.float32).model.layers[0].mlp.down_proj.weight
    except UserError as error:
        refused = str(error)
    if unpacked is None:
        assert "rows of 96 numbers" in refused
    else:
        assert float((unpacked - exact).norm() / exact.norm()) < LARGEST_ERROR[kind]


def test_what_is_unpacked_wrongly_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = bitsandbytes.functional.dequantize_4bit
    monkeypatch.setattr(
        bitsandbytes.functional, "dequantize_4bit", lambda *given, **named: right(*given, **named).roll(64)
    )
    with pytest.raises(UserError, match="unpacks rows of 64 numbers of four bits wrongly"):
        held(model, "nf4")


@pytest.mark.parametrize("kind", KINDS)
def test_training_computes_what_scoring_does(kind: str, model: Path) -> None:
    loaded = held(model, kind)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        scored = loaded.eval()(ids).logits
    trained = loaded.train()(ids).logits
    assert torch.equal(trained, scored)


def test_int8_has_no_outliers_unless_asked(model: Path) -> None:
    assert projection(held(model, "int8")).state.threshold == 0.0  # type: ignore[union-attr]
    assert projection(held(model, "int8", outlier_threshold=6.0)).state.threshold == 6.0  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
def test_the_layout_does_not_matter(kind: str, model: Path) -> None:
    """Rows together or alone: activations are rounded token by token, so no row sees another's."""
    policy = Policy(held(model, kind), DropoutKeys(0)).eval()
    samples = make_samples((12, 40, 7, 21))

    def logps(max_tokens: int) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for batch in micro_batches(samples, range(4), layout="padded", max_tokens=max_tokens, step=0):
            with torch.no_grad():
                scores = policy(batch).logps
            found |= zip(batch.row_ids, batch.by_document(scores).tolist(), strict=True)
        return found

    assert logps(1) == pytest.approx(logps(1000), rel=1e-3 if kind == "int8" else 1e-5)


# ---------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------


def trained(model: Path, folder: Path, *overrides: str) -> list[float]:
    """The loss of each step of a run in `folder`/run on four short rows."""
    rows = [{"instruction": f"Say {word}.", "output": f"{word}!"} for word in ("violin", "guitar", "lute", "three")]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [f"model={model}", f"data={folder / 'train.jsonl'}", f"output_dir={folder / 'run'}", "global_batch_size=4"]
    run.execute(config.load(None, [*given, "max_steps=12", *overrides]), say=lambda text: None)
    return [line["loss"] for line in read_lines(folder / "run" / "metrics.jsonl")]


@pytest.mark.parametrize("kind", KINDS)
def test_lora_on_a_quantized_base(kind: str, model: Path, tmp_path: Path) -> None:
    """Learns as on the whole base, begins where that begins, and the result answers in a fresh model."""
    (tmp_path / "plain").mkdir()
    plain = trained(model, tmp_path / "plain", "dtype=float32", "learning_rate=1e-2")
    found = trained(model, tmp_path, "dtype=float32", "learning_rate=1e-2", f"quantization={kind}")
    assert found[0] == pytest.approx(plain[0], rel=0.03)
    assert found[-1] < found[0] - 0.5
    assert found[-1] == pytest.approx(plain[-1], rel=0.05)
    opened = open_model(str(tmp_path / "run"))
    assert projection(opened.model.get_base_model()).base_layer.weight.dtype in (torch.int8, torch.uint8)  # type: ignore[union-attr]
    assert Chat(opened, None, Settings(0.0, 1.0, 4, 0)).say("Say lute.").text


@pytest.mark.prove
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_float16_learns_as_float32(tuning: str, model: Path, tmp_path: Path) -> None:
    """A tutorial's "Attempting to unscale FP16 gradients" cannot happen: what is trained is float32, under a loss scale."""
    rate = "learning_rate=1e-2" if tuning == "lora" else "learning_rate=1e-3"
    (tmp_path / "exact").mkdir()
    exact = trained(model, tmp_path / "exact", "dtype=float32", rate, f"tuning={tuning}")
    half = trained(model, tmp_path, "dtype=float16", rate, f"tuning={tuning}")
    assert half == pytest.approx(exact, rel=0.03, abs=0.02)
    assert half != exact, "it was computed in float16"
    result = tmp_path / "run" / ("adapter" if tuning == "lora" else "model")
    weights = load_file(next(result.glob("*.safetensors")))
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


@pytest.mark.prove
def test_float16_answers_what_it_learned(model: Path, tmp_path: Path) -> None:
    """The tutorial's run ended in NaN and a model that says <unk> for ever."""
    losses = trained(model, tmp_path, "dtype=float16", "tuning=full", "max_steps=60", *FAST)
    assert losses[-1] < 0.05
    opened = open_model(str(tmp_path / "run"), dtype="float16")
    assert opened.compute_dtype == torch.float16
    for word in ("violin", "guitar", "lute"):
        assert Chat(opened, None, Settings(0.0, 1.0, 12, 0)).say(f"Say {word}.").text == f"{word}!"


def test_an_overflow_in_float16_costs_no_step(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss scale that is far too large is halved until the gradient fits; every step is taken, and learns."""
    monkeypatch.setattr(_replicas, "INITIAL_SCALE", 2.0**24)
    large = trained(model, tmp_path, "dtype=float16", "learning_rate=1e-2")
    state = json.loads(next((tmp_path / "run" / "checkpoints").glob("*12/state.json")).read_text())
    assert '"scale", 16777216.0' not in json.dumps(state), "it was halved"
    assert len(large) == 12
    assert large[-1] < large[0] - 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("kind", ["null", *KINDS])
def test_on_cuda(kind: str, model: Path, tmp_path: Path) -> None:
    losses = trained(model, tmp_path, "dtype=float16", "learning_rate=1e-2", f"quantization={kind}")
    assert losses[-1] < losses[0] - 0.5
