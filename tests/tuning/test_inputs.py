"""EVA's sketch against the decomposition that it stands for, and LoftQ's way to the weights that quantization was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from luthier import component
from luthier.errors import UserError
from luthier.kernels.dropout import DropoutKeys
from luthier.kernels.lora import lora_layers
from luthier.models.load import load_model
from luthier.models.source import ModelSource
from luthier.runs.beginning import RunStart
from luthier.tuning import Tuned, _inputs
from luthier.tuning._inputs import Sketch
from tests.helpers.jobs import make_samples
from tests.helpers.properties import examples
from tests.helpers.tiny_models import save_twin, twin

CPU = torch.device("cpu")
SAMPLES = make_samples([24, 17, 9])


def vectors(count: int, features: int, rank: int, seed: int, decay: float = 0.5) -> torch.Tensor:
    """[count, features] of a rank, each direction shorter than the one before."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(count, rank, generator=generator, dtype=torch.float64)
    right = torch.linalg.qr(torch.randn(features, rank, generator=generator, dtype=torch.float64)).Q
    return left * decay ** torch.arange(rank) @ right.T


def sketched(seen: torch.Tensor, keep: int, pieces: int) -> torch.Tensor:
    sketch = Sketch(seen.shape[1], keep, CPU)
    for piece in seen.tensor_split(pieces):
        sketch.add(piece[None])
    return sketch.main_directions()


@given(st.integers(1, 8), st.integers(8, 40), st.integers(1, 60), st.integers(1, 5), st.integers(0, 10**6))
@examples(40)
def test_as_many_directions_as_are_held_are_exact(rank: int, features: int, count: int, pieces: int, seed: int) -> None:
    seen = vectors(count, features, rank, seed)
    found = sketched(seen, 8, pieces)
    sizes = torch.linalg.svdvals(seen)
    real = int((sizes > 1e-5 * sizes[0]).sum())
    assert len(found) >= real
    torch.testing.assert_close(found @ found.T, torch.eye(len(found), dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(
        (seen @ found.T).norm(dim=0), sizes[: len(found)], rtol=1e-4, atol=1e-5 * float(sizes[0])
    )


def test_of_more_directions_the_main_ones_are_held() -> None:
    """A spectrum as that of a language model's layers, with one direction a thousand times as long as the rest."""
    seen = vectors(4000, 256, 256, seed=3, decay=0.97)
    seen[:, 7] *= 1000
    found = sketched(seen, 64, 40)[:16]
    best = torch.linalg.svd(seen, full_matrices=False).Vh[:16]
    without = seen - seen @ best[:1].T @ best[:1]
    held, most = ((without @ part[1:].T).square().sum() for part in (found, best))
    assert float((found[0] @ best[0]).abs()) > 1 - 1e-9
    assert float(held / most) > 0.97


@pytest.mark.parametrize("rows", [0, 1, 30])
def test_no_direction_is_found_in_nothing(rows: int) -> None:
    assert sketched(torch.zeros(rows, 12), 8, 1).shape == (0, 12)


def begun(model: Any, folder: Path, **settings: Any) -> Tuned:
    source = ModelSource(folder, "model", None, "folder")
    start = RunStart(DropoutKeys(0), source=source, base={}, samples=SAMPLES, new={}, tell=lambda text: None)
    lora = component.load("tuning", "lora")
    tuned: Tuned = lora(lora.Config(**settings)).apply(model, start)
    return tuned


def test_layers_that_read_nothing_begin_as_ever(tmp_path: Path) -> None:
    """A model whose embeddings are zero, as far as its first layer; more ranks than directions."""
    model = twin("llama")
    model.get_input_embeddings().weight.data.zero_()
    torch.manual_seed(0)
    usual = dict(lora_layers(begun(twin("llama"), tmp_path, r=8).model))
    torch.manual_seed(0)
    for name, layer in lora_layers(begun(model, tmp_path, r=8, init_lora_weights="eva").model):
        if name == "model.layers.0.self_attn.q_proj":
            assert torch.equal(layer.lora_A["default"].weight, usual[name].lora_A["default"].weight)
        assert layer.lora_A["default"].weight.isfinite().all()


def test_layers_that_read_the_same_share_a_sketch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Sketch] = []
    whole = Sketch.__init__

    def noted(self: Sketch, *arguments: Any) -> None:
        made.append(self)
        whole(self, *arguments)

    monkeypatch.setattr(_inputs.Sketch, "__init__", noted)
    layers = dict(lora_layers(begun(twin("llama"), tmp_path, r=4, init_lora_weights="eva").model))
    assert len(layers) == 14
    assert len(made) == 8  # of queries, keys and values; of the output; of gate and up; of down; in two layers
    first = "model.layers.0.self_attn."
    weights = [layers[first + name].lora_A["default"].weight for name in ("q_proj", "k_proj", "o_proj")]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def quantized(folder: Path) -> Any:
    nf4 = component.load("quantization", "nf4")
    return load_model(folder, dtype=torch.float32, device="cpu", quantization=nf4(nf4.Config()))


def test_loftq_finds_weights_that_are_stored_without_the_models_prefix(tmp_path: Path) -> None:
    """As a decoder without its head is stored."""
    folder = save_twin(tmp_path / "model", "llama", tie_word_embeddings=True)
    plain = begun(quantized(folder), folder, r=8, init_lora_weights="loftq")
    file = folder / "model.safetensors"
    save_file({name.removeprefix("model."): value for name, value in load_file(file).items()}, file, {"format": "pt"})
    other = begun(quantized(folder), folder, r=8, init_lora_weights="loftq")
    for (name, one), (_, two) in zip(lora_layers(plain.model), lora_layers(other.model), strict=True):
        assert torch.equal(one.lora_B["default"].weight, two.lora_B["default"].weight), name


def test_loftq_refuses_files_that_hold_something_else(tmp_path: Path) -> None:
    folder = save_twin(tmp_path / "model", "llama")
    file, key = folder / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    weights = load_file(file)
    for changed, said in (
        (weights | {key: weights[key].flip(0)}, "is another one than the model has"),
        (weights | {key: weights[key].T.contiguous()}, "is another one than the model has"),
        ({name: value for name, value in weights.items() if name != key}, f"do not hold {key}"),
        (weights | {key: weights[key].to(torch.int8)}, f"hold {key} as I8"),
    ):
        save_file(weights, file, {"format": "pt"})
        model = quantized(folder)
        save_file(changed, file, {"format": "pt"})
        with pytest.raises(UserError, match=said):
            begun(model, folder, r=8, init_lora_weights="loftq")
