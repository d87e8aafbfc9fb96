"""Loading is strict: what does not fit is an error that names it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig

from luthier import component
from luthier.errors import UserError
from luthier.models.folder import SINGLE, summarise
from luthier.models.load import BaseInfo, fingerprint, load_model
from luthier.models.precision import choose_dtype
from luthier.models.reading import context_length, load_tokenizer
from luthier.models.source import ModelSource
from tests.helpers.tiny_models import TWINS, save_twin, tiny_llama, twin, twin_config


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "original")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def _load(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    return load_model(folder, dtype=dtype, device="cpu", **options)


def _change(folder: Path, change: Any) -> None:
    weights = load_file(folder / SINGLE)
    change(weights)
    save_file(weights, folder / SINGLE, metadata={"format": "pt"})


@pytest.mark.parametrize("name", sorted(TWINS))
def test_every_architecture_loads_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = _load(save_twin(tmp_path / name, name))
    expected = twin(name).state_dict()
    assert not model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_the_dtype_is_the_one_asked_for(folder: Path) -> None:
    assert {weight.dtype for weight in _load(folder, torch.bfloat16).parameters()} == {torch.bfloat16}


def test_many_files_are_one_model(folder: Path, tmp_path: Path) -> None:
    whole = _load(folder)
    whole.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    shutil.copy(folder / "tokenizer.json", tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    cut = _load(tmp_path / "shards")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))
    assert differing(fingerprint(folder), fingerprint(tmp_path / "shards")) == []
    assert summarise(folder, "x") == summarise(tmp_path / "shards", "x")


def test_quantized_loading(folder: Path) -> None:
    class FourBit:
        def loading_config(self, compute_dtype: torch.dtype) -> Any:
            return BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype
            )

    model = _load(folder, quantization=FourBit())
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert model(torch.arange(5)[None]).logits.isfinite().all()


def test_a_missing_weight(folder: Path) -> None:
    _change(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(UserError, match=r"1 weights that the model needs .* model.layers.1.mlp.up_proj.weight"):
        _load(folder)


def test_a_weight_too_many(folder: Path) -> None:
    _change(folder, lambda weights: weights.update({"model.layers.9.extra": torch.zeros(3)}))
    with pytest.raises(UserError, match="no place in the model"):
        _load(folder)


def test_a_weight_of_another_shape(folder: Path) -> None:
    _change(folder, lambda weights: weights.update({"model.norm.weight": torch.zeros(3)}))
    with pytest.raises(UserError, match=r"model\.norm\.weight"):
        _load(folder)


def differing(one: BaseInfo, other: BaseInfo) -> list[str]:
    """In what two bases are not the same model."""
    pairs = zip(one.as_dict().items(), other.as_dict().values(), strict=True)
    return [key.removesuffix("_hash") for (key, own), their in pairs if key.endswith("_hash") and own != their]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite(folder: Path, value: float) -> None:
    _change(folder, lambda weights: weights["model.layers.0.mlp.up_proj.weight"].view(-1)[7:8].fill_(value))
    with pytest.raises(UserError, match=r"NaN or infinity, the first is model.layers.0.mlp.up_proj.weight"):
        _load(folder)


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
def test_a_weight_that_is_not_finite_is_seen_before_it_is_quantized(folder: Path, kind: str) -> None:
    held = component.load("quantization", kind)
    quantization = held(held.Config())
    load_model(folder, dtype=torch.float32, device="cpu", quantization=quantization)
    _change(folder, lambda weights: weights["model.layers.0.mlp.up_proj.weight"].view(-1)[7:8].fill_(float("nan")))
    with pytest.raises(UserError, match=r"NaN or infinity, the first is model.layers.0.mlp.up_proj.weight"):
        load_model(folder, dtype=torch.float32, device="cpu", quantization=quantization)


def test_large_finite_weights_are_fine(folder: Path) -> None:
    _change(folder, lambda weights: weights["model.layers.0.mlp.up_proj.weight"].fill_(3e38))
    _load(folder)


def test_an_unknown_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "from-the-future"}))
    with pytest.raises(UserError, match="from-the-future"):
        _load(folder)


def test_a_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer cannot be loaded"):
        load_tokenizer(folder)


def test_a_tokenizer_larger_than_the_model(tmp_path: Path) -> None:
    small = tiny_llama(tmp_path / "small", vocab_size=300)
    with pytest.raises(UserError, match="the model 300 rows of embeddings"):
        load_tokenizer(small)


def test_a_tokenizer_keeps_its_template(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert "<|im_start|>" in str(tokenizer.chat_template)
    assert tokenizer.eos_token_id == 2


def test_choosing_a_dtype() -> None:
    assert choose_dtype("float16", "cpu") == (torch.float16, "as asked for")
    chosen, why = choose_dtype("auto", "cpu")
    assert chosen in (torch.float32, torch.bfloat16)
    assert "measured" in why
    assert str(chosen).removeprefix("torch.") in why


@pytest.mark.parametrize(("name", "length"), [("llama", 256), ("gpt2", 256), ("gemma3_text", None), ("bloom", None)])
def test_context_length(name: str, length: int | None) -> None:
    config = twin_config(name)
    assert context_length(config) == (length or getattr(config, "max_position_embeddings", None))


def test_a_fingerprint_tells_models_apart(original: Path, folder: Path, tmp_path: Path) -> None:
    base = fingerprint(original)
    assert differing(fingerprint(folder), base) == []
    assert differing(base, fingerprint(tiny_llama(tmp_path / "seed", seed=1))) == ["weights"]
    assert differing(base, fingerprint(tiny_llama(tmp_path / "theta", rope_theta=500.0))) != []
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    assert differing(base, fingerprint(folder)) == ["tokenizer"]
    named = fingerprint(ModelSource(original, "hf:org/name", "abc", "hub"))
    assert (named.name, named.commit) == ("hf:org/name", "abc")
    assert differing(named, base) == []
