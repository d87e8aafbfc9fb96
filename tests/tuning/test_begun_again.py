"""A run that goes on has the beginning that it had, whatever would be computed or read now; and `compare` finds it again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn

from luthier import config
from luthier.component import ComponentConfig
from luthier.errors import UserError
from luthier.inference import comparison
from luthier.inference.asked import Asked
from luthier.inference.opened import open_model
from luthier.objectives.sft import SFT
from luthier.runs import beginning, run_folder
from luthier.training import run
from luthier.tuning import _inputs, _starts
from luthier.types import LossOut, MicroBatch, Policy
from tests.helpers.killing import outcome
from tests.helpers.tiny_models import save_twin

ROWS = [{"prompt": f"Say {number}.", "completion": f"{number}!"} for number in range(12)]
IDS = torch.arange(3, 30)[None]


class Against(SFT):
    """Learns to be likelier than the reference: a sum of -log sigmoid(log p - log p_reference) over trained tokens."""

    class Config(ComponentConfig):
        """It has no keys of its own."""

    wants = ("reference",)

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        scores = policy(batch, self.wants)
        return LossOut({"tokens": -nn.functional.logsigmoid(scores.logps - scores.reference).sum()})


AGAINST = f"objective={__name__}:Against"


def quiet(_text: str) -> None:
    """What is said on the way."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("begun")
    save_twin(folder / "model", "llama")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    rates = ["max_steps=4", "save_steps=2", "global_batch_size=4", "learning_rate=1e-2"]
    return [f"model={folder / 'model'}", f"data={folder / 'train.jsonl'}", "dtype=float32", *rates]


@pytest.fixture(scope="module")
def first(keys: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to go on from."""
    folder = tmp_path_factory.mktemp("first") / "run"
    run.execute(config.load(None, [*keys, "r=4", f"output_dir={folder}"]), say=quiet)
    return folder


def stopped_at_2(whole: Path, folder: Path) -> Path:
    """The folder of a finished run of four steps, as it was when it was killed after the second."""
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / ("adapter" if (folder / "adapter").is_dir() else "model"))
    shutil.rmtree(folder / "checkpoints" / "step-000004")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"state": "running"}))
    return folder


def goes_on_to_the_same(given: list[str], place: Path, change: Callable[[], None]) -> None:
    run.execute(config.load(None, [*given, f"output_dir={place / 'whole'}"]), say=quiet)
    stopped = stopped_at_2(place / "whole", place / "stopped")
    change()
    run.execute(config.load(None, [*given, f"output_dir={stopped}"]), resume=True, say=quiet)
    assert outcome(stopped) == outcome(place / "whole")


def other_values(patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """What `name` computes comes out otherwise from now on: its layer's A and B are moved afterwards."""
    whole = getattr(owner, name)

    def moved(*arguments: Any, **named: Any) -> Any:
        found = whole(*arguments, **named)
        modules = [one for one in arguments if isinstance(one, nn.Module)]
        for path, parameter in (pair for module in modules for pair in module.named_parameters()):
            if "lora_" in path:
                parameter.data += 0.1
        return found

    patch.setattr(owner, name, moved)


@pytest.mark.parametrize("tuning", ["full", "freeze"])
def test_an_objective_may_look_back_where_no_adapter_is(keys: list[str], tmp_path: Path, tuning: str) -> None:
    """The reference is the base itself, whose files are there at the resume too."""
    goes_on_to_the_same([*keys, f"tuning={tuning}", AGAINST], tmp_path, lambda: None)


@pytest.mark.parametrize("objective", ["objective=sft", AGAINST])
@pytest.mark.parametrize(
    ("tuning", "owner", "name"),
    [
        (["init_lora_weights=pissa"], _starts, "begin_at_main_parts"),
        (["init_lora_weights=olora", "lora_dropout=0.1"], LoraLayer, "olora_init"),
        (["init_lora_weights=orthogonal"], LoraLayer, "orthogonal_init"),
        (["init_lora_weights=eva"], _inputs, "begin_at_inputs"),
        (["init_lora_weights=loftq", "quantization=nf4"], _starts, "begin_at_what_was_lost"),
        (["use_dora=true"], LoraLayer, "reset_lora_parameters"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_resume_keeps_the_beginning(
    keys: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tuning: list[str],
    owner: Any,
    name: str,
    objective: str,
) -> None:
    given = [*keys, "r=4", *tuning, objective]
    goes_on_to_the_same(given, tmp_path, lambda: other_values(monkeypatch, owner, name))


@pytest.mark.parametrize(
    ("how", "owner", "name"),
    [("pissa", _starts, "_take_main_parts"), ("loftq", _starts, "_lost"), ("eva", _inputs, "_sketches")],
)
def test_a_resume_computes_no_beginning(
    keys: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, owner: Any, name: str
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError(f"{name} was called again")

    given = [*keys, "r=4", f"init_lora_weights={how}", *(["quantization=nf4"] if how == "loftq" else [])]
    goes_on_to_the_same(given, tmp_path, lambda: monkeypatch.setattr(owner, name, refuse))


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(keys: list[str], tmp_path: Path) -> None:
    given = [*keys, "r=4", "init_lora_weights=pissa"]
    run.execute(config.load(None, [*given, f"output_dir={tmp_path / 'whole'}"]), say=quiet)
    stopped = stopped_at_2(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(stopped / "checkpoints")
    file = stopped / "beginning" / "tensors.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    run.execute(config.load(None, [*given, f"output_dir={stopped}"]), resume=True, say=quiet)
    assert outcome(stopped) == outcome(tmp_path / "whole")


def test_a_damaged_beginning_is_named(keys: list[str], tmp_path: Path) -> None:
    given = [*keys, "r=4", "init_lora_weights=pissa"]
    run.execute(config.load(None, [*given, f"output_dir={tmp_path / 'whole'}"]), say=quiet)
    stopped = stopped_at_2(tmp_path / "whole", tmp_path / "stopped")
    (stopped / "beginning" / "tensors.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"tensors\.safetensors is not what was written"):
        run.execute(config.load(None, [*given, f"output_dir={stopped}"]), resume=True, say=quiet)


def test_a_beginning_that_nobody_looks_back_to_may_be_missing(keys: list[str], first: Path, tmp_path: Path) -> None:
    given = [*keys, f"adapter_path={first}"]
    goes_on_to_the_same(given, tmp_path, lambda: shutil.rmtree(tmp_path / "stopped" / run_folder.BEGINNING))


def test_a_resume_that_fails_before_its_first_step_says_so(keys: list[str], tmp_path: Path) -> None:
    given = [*keys, "r=4", "init_lora_weights=pissa"]
    run.execute(config.load(None, [*given, f"output_dir={tmp_path / 'whole'}"]), say=quiet)
    stopped = stopped_at_2(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(stopped / run_folder.BEGINNING)
    with pytest.raises(UserError, match="what the run began with"):
        run.execute(config.load(None, [*given, f"output_dir={stopped}"]), resume=True, say=quiet)
    assert json.loads((stopped / "manifest.json").read_text())["state"] == "failed"


def test_nothing_is_kept_of_what_begins_as_its_base(first: Path) -> None:
    assert not (first / run_folder.BEGINNING).exists()


def test_a_resume_refuses_another_adapter_to_go_on_from(keys: list[str], first: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(first, copy)
    given = [*keys, f"adapter_path={copy}", "lora_dropout=0.1", AGAINST]
    goes_on_to_the_same(given, tmp_path, lambda: None)
    again = stopped_at_2(tmp_path / "whole", tmp_path / "again")
    file = copy / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor + 1e-3 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(UserError, match="the adapter changed since the run began"):
        run.execute(config.load(None, [*given, f"output_dir={again}"]), resume=True, say=quiet)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def compared(target: Path) -> comparison.Comparison:
    return comparison.compare_target(str(target), Asked(("Say 3.",), max_new_tokens=2))


@pytest.mark.prove
def test_compare_goes_back_to_the_adapter_that_a_run_went_on_from(keys: list[str], first: Path, tmp_path: Path) -> None:
    run.execute(config.load(None, [*keys, f"adapter_path={first}", f"output_dir={tmp_path / 'run'}"]), say=quiet)
    opened = open_model(str(tmp_path / "run"))
    wanted = logits(open_model(str(first)).model)
    with opened.policy(with_reference=True).reference():
        assert torch.equal(logits(opened.model), wanted)
    assert not torch.equal(logits(opened.model), wanted)
    found = compared(tmp_path / "run")
    assert found.base.endswith(f"model with the adapter of {first}")
    assert compared(first).base.endswith("/model")
    shutil.copytree(tmp_path / "run" / "adapter", tmp_path / "alone")
    with pytest.raises(UserError, match="the folder of a run"):
        compared(tmp_path / "alone")


def test_compare_goes_back_to_where_loftq_began(keys: list[str], tmp_path: Path) -> None:
    """That is neither the quantized base nor the one in 16 bits."""
    given = [*keys, "init_lora_weights=loftq", "quantization=nf4", "r=4", f"output_dir={tmp_path / 'run'}"]
    run.execute(config.load(None, given), say=quiet)
    opened = open_model(str(tmp_path / "run"))
    began = beginning.read(tmp_path / "run")
    with opened.model.disable_adapter():
        quantized = logits(opened.model)
    with opened.policy(with_reference=True).reference():
        start = logits(opened.model)
        weights = dict(opened.model.named_parameters())
        assert all(torch.equal(weights[name.removeprefix("model.")], value) for name, value in began.items())
    whole = logits(open_model(keys[0].removeprefix("model=")).model)
    assert (start - whole).norm() < (quantized - whole).norm()
    assert compared(tmp_path / "run").base.endswith("model as its adapter began (loftq)")
