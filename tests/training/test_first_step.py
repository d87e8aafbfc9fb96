"""Before anything is learned the policy is its reference: the first step's figures are known, however a run begins. What breaks that is
found before the first update.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from luthier.errors import UserError
from luthier.policy.policy import Policy
from luthier.system.paths import cache_dir
from luthier.training import reference
from luthier.types import MicroBatch
from tests.helpers.killing import Worker, write_config
from tests.training.test_preferences import figures, trained

EXACT = 1e-6
KNOWN = {"dpo": 0.6931471805599453, "{kind: dpo, loss: ipo}": 25.0, "kto": 0.5}
"""objective -> the loss of the first step."""

STARTS = {
    **{how: [f"tuning={{kind: lora, r: 4, init_lora_weights: {how}}}"] for how in ("gaussian", "orthogonal", "pissa", "olora", "eva")},
    "dora": ["tuning={kind: lora, r: 4, use_dora: true}"],
    "nf4": ["tuning={kind: lora, r: 4}", "quantization=nf4"],
    "loftq": ["tuning={kind: lora, r: 4, init_lora_weights: loftq}", "quantization=nf4"],
    "int8": ["tuning={kind: lora, r: 4}", "quantization=int8"],
    "head": ["tuning={kind: lora, r: 4, modules_to_save: [lm_head]}"],
    "full": ["tuning=full"],
    "freeze": ["tuning={kind: freeze, last_layers: 1}"],
}  # fmt: skip
GOES_ON = "goes on"


def starts(folder: Path, config_file: Path, start: str) -> list[str]:
    """The overrides of a beginning; of one that goes on, an adapter is trained first."""
    if start != GOES_ON:
        return STARTS[start]
    trained(config_file, folder / "before", "learning_rate=1e-2", "tuning={kind: lora, r: 4}")
    return [f"tuning={{kind: lora, adapter_path: {folder / 'before'}}}"]


def check(run: Path, objective: str) -> None:
    found = figures(run)
    assert found[1, "loss"] == pytest.approx(KNOWN[objective], rel=EXACT)
    assert found[1, "margin"] == pytest.approx(0, abs=EXACT)


@pytest.mark.parametrize("start", [pytest.param(start, marks=pytest.mark.prove) for start in (*STARTS, GOES_ON)])
@pytest.mark.parametrize("objective", KNOWN)
@pytest.mark.parametrize("how", ["kept", "live"])
def test_the_first_step_is_known(objective: str, start: str, how: str, tmp_path: Path) -> None:
    config_file = write_config(tmp_path, objective)
    trained(
        config_file,
        tmp_path / "run",
        *starts(tmp_path, config_file, start),
        f"objective.reference={how}",
        "max_steps=1",
    )
    check(tmp_path / "run", objective)


@pytest.mark.prove
@pytest.mark.processes
@pytest.mark.parametrize("start", ["pissa", "nf4", "full", GOES_ON])
def test_on_two_processes(start: str, worker: Worker, tmp_path: Path) -> None:
    config_file = write_config(tmp_path, "dpo")
    overrides = starts(tmp_path, config_file, start)
    lines = [line.replace("=", ": ", 1) for line in overrides if "=" in line and not line.startswith("quantization")]
    text = config_file.read_text().replace("tuning: {kind: lora, r: 4, lora_dropout: 0.1}", "\n".join(lines))
    if "quantization=nf4" in overrides:
        text = text.replace("dtype: float32}", "dtype: float32, quantization: nf4}")
    config_file.write_text(text.replace("num_train_epochs: 3", "max_steps: 1"))
    worker.run(config_file, tmp_path / "run", "new", processes=2)
    check(tmp_path / "run", "dpo")


def of_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of other prompts is taken for these."""

    def path(_job: object, samples: object, _base: object) -> Path:
        return cache_dir() / "reference" / f"{len(samples)}.f32"  # type: ignore[arg-type]

    monkeypatch.setattr(reference, "_path", path)


def with_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is scored as in training."""

    @torch.no_grad()
    def scored(self: Policy, batch: MicroBatch) -> torch.Tensor:
        was = self.training
        self.train()
        try:
            with self.reference():
                return self._scored(batch, (), head=True).logps
        finally:
            self.train(was)

    monkeypatch.setattr(Policy, "reference_logps", scored)


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], list[str], list[str]]] = {
    "a template that differs": (of_other_rows, ["data.chat_template=chatml"], ["data.system=Say no."]),
    "dropout in the reference": (
        with_dropout,
        ["learning_rate=3e-2"],
        ["tuning={{kind: lora, adapter_path: {before}, lora_dropout: 0.5}}"],
    ),
}
"""What is broken, and the overrides of a run before it and of the run that must stop."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, before, then = FAULTS[fault]
    plant(monkeypatch)
    config_file = write_config(tmp_path, "dpo")
    trained(config_file, tmp_path / "before", *before, "max_steps=3")
    with pytest.raises(UserError, match=r"before anything was learned, and must be .*; nothing was updated"):
        trained(config_file, tmp_path / "run", *(one.format(before=tmp_path / "before") for one in then))
    assert not (tmp_path / "run" / "checkpoints").exists()
