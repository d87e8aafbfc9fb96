"""The reference is the policy at step 0, however it began; and what is said of a beginning is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier import config
from luthier.data.dataset.prepare import Prepared, prepare
from luthier.data.steps.layout import micro_batches
from luthier.errors import UserError
from luthier.models.precision import DTYPES
from luthier.models.reading import add_tokens
from luthier.models.sources.resolve import resolve
from luthier.policy.policy import Policy
from luthier.training import build, run
from luthier.tuning import Tuned
from tests.helpers.jobs import make_samples
from tests.helpers.tiny_models import save_twin, tiny_tokenizer

NEW = ("<violin>", "<lute>")
SAMPLES = make_samples([24, 17, 9])
ROWS = [{"prompt": f"Say <violin> {number}.", "completion": f"{number} <lute>!"} for number in range(12)]


def quiet(_text: str) -> None:
    """What is said on the way."""


class Place:
    """Models, data, and an adapter on each model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def keys(self, name: str, *more: str) -> list[str]:
        """Of a run on the twin `name`, which has rows of embeddings to spare."""
        model = self.folder / name
        if not model.exists():
            save_twin(model, name)
        data = f"data={self.folder / 'train.jsonl'}"
        return [f"model={model}", data, f"output_dir={self.folder / 'unused'}", "dtype=float32", *more]

    def adapter(self, name: str, dtype: str) -> Path:
        """A run that moved its adapter."""
        folder = self.folder / f"{name}-{dtype}"
        if not folder.exists():
            given = self.keys(name, f"dtype={dtype}", "max_steps=3", "learning_rate=1e-1", f"output_dir={folder}")
            run.execute(config.load(None, given), say=quiet)
        return folder

    def begin(self, name: str, *more: str) -> tuple[Policy, Tuned]:
        """A policy as a run makes it."""
        given = config.load(None, self.keys(name, *more))
        source, tokenizer = resolve(given.model.path), tiny_tokenizer()
        new = add_tokens(tokenizer, given.data.add_tokens)
        data = prepared(given, tokenizer)
        decisions = {"activation_checkpointing": False, "layout": "padded"}
        dtype, cpu = DTYPES[given.model.dtype], torch.device("cpu")
        return build.build_policy(given, source, dtype, cpu, decisions, data=data, new=new)


def prepared(given: config.RunConfig, tokenizer: Any) -> Prepared:
    from luthier.objectives.sft import SFT

    return prepare(given, tokenizer, context_length=256, objective=SFT(SFT.Config()))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("beginnings"))


def move(policy: Policy) -> None:
    """What training does, as far as these tests need it."""
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def logps(policy: Policy) -> torch.Tensor:
    (batch,) = micro_batches(SAMPLES, [0, 1, 2], layout="padded", max_tokens=512, step=0, processes=1, rank=0)
    with torch.no_grad():
        return policy(batch).logps


BIT, ROUNDED, ELSEWHERE = "to the bit", "to rounding", "no"
HALF, WHOLE, DORA, TOKENS = (
    "dtype=bfloat16",
    "modules_to_save=[embed_tokens]",
    "use_dora=true",
    f"data.add_tokens=[{', '.join(NEW)}]",
)
CASES = [
    *[("llama", [f"init_lora_weights={how}"], BIT) for how in ("true", "gaussian", "eva", "pissa_niter_4")],
    *[("llama", [f"init_lora_weights={how}", HALF], BIT) for how in ("true", "eva", "pissa", "olora")],
    *[("llama", [f"init_lora_weights={how}", "lora_dropout=0.3"], BIT) for how in ("true", "pissa", "olora")],
    ("llama", ["init_lora_weights=orthogonal"], ROUNDED),
    ("llama", ["init_lora_weights=orthogonal", "lora_dropout=0.3", HALF], ROUNDED),
    ("llama", [DORA], ROUNDED),
    ("llama", [DORA, "lora_dropout=0.3"], ROUNDED),
    ("llama", [DORA, HALF], ROUNDED),
    ("llama", [WHOLE], BIT),
    ("llama", [WHOLE, HALF], ROUNDED),
    ("llama", ["modules_to_save=[norm]", "init_lora_weights=pissa", HALF], ROUNDED),
    ("llama", [TOKENS], BIT),
    ("llama", [TOKENS, HALF], BIT),
    ("llama", [TOKENS, WHOLE, HALF], ROUNDED),
    *[("llama", ["quantization=nf4", more, HALF], BIT) for more in ("init_lora_weights=eva", TOKENS)],
    ("llama", ["quantization=nf4", "lora_dropout=0.3"], BIT),
    ("llama", ["quantization=nf4", DORA], ROUNDED),
    *[("llama", ["quantization=nf4", "init_lora_weights=loftq", more], ELSEWHERE) for more in ("r=8", HALF)],
    ("llama", ["quantization=nf4", "init_lora_weights=loftq", "lora_dropout=0.3"], ELSEWHERE),
    ("llama", ["quantization=int8"], BIT),
    ("llama", ["quantization=int8", WHOLE, HALF], ROUNDED),
    *[(name, ["experts=true", more], BIT) for name in ("qwen3_moe", "gpt_oss") for more in ("r=4", HALF)],
]


@pytest.mark.parametrize(("name", "settings", "off"), CASES, ids=lambda value: str(value))
def test_the_reference_is_the_policy_at_step_0(place: Place, name: str, settings: list[str], off: str) -> None:
    policy, tuned = place.begin(name, *settings)
    assert tuned.off_is_start == off
    holds(policy, off)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("more", ["lora_dropout=0.0", "lora_dropout=0.3"])
def test_so_is_that_of_a_run_that_goes_on(place: Place, dtype: str, more: str) -> None:
    policy, tuned = place.begin("llama", f"adapter_path={place.adapter('llama', dtype)}", f"dtype={dtype}", more)
    assert tuned.off_is_start == ELSEWHERE
    holds(policy, ELSEWHERE)


def holds(policy: Policy, off: str) -> None:
    policy.keep_reference()
    policy.train()
    start = logps(policy)
    with policy.model.disable_adapter():
        distance = float((logps(policy) - start).abs().max())
    assert distance == 0 if off == BIT else distance < 0.1 if off == ROUNDED else distance > 1e-3
    with policy.reference():
        assert float((logps(policy) - start).abs().max()) <= 1e-6
    move(policy)
    assert float((logps(policy) - start).abs().max()) > 1e-3
    with policy.reference():
        assert float((logps(policy) - start).abs().max()) <= 1e-6


def test_dora_on_int8_is_refused_where_it_cannot_be_computed(place: Place) -> None:
    with pytest.raises(UserError, match="use_dora on weights in int8 on a CPU"):
        place.begin("llama", "quantization=int8", DORA)


def test_all_weights_in_bfloat16_begin_as_they_are_saved(place: Place) -> None:
    """A and A0 are rounded alike, so that their difference is zero also in the saved adapter."""
    policy, _ = place.begin("llama", "init_lora_weights=pissa", HALF, "optim=adamw_bf16")
    layer = policy.core.model.layers[0].mlp.up_proj
    assert torch.equal(layer.lora_A["default"].weight, layer.start_A)
    holds(policy, BIT)
