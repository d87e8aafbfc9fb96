"""Every family of models with every method: it learns, is saved, is read again elsewhere, and is merged.

In `make test` each family has one method, one layout and one way with activations, in turn; in `make prove` it has all of them.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier import config
from luthier.api import Run
from luthier.inference import verified_export
from luthier.models.flat import Verdict, stock_attention
from luthier.training import build, loop, run
from tests.helpers.covering_array import Trial
from tests.helpers.elsewhere import LOGITS, read_elsewhere
from tests.helpers.tiny_models import save_twin

FAMILIES = (
    "llama", "gemma", "gemma3_text", "qwen3", "mistral", "phi3", "gpt_neox", "bloom", "falcon", "gpt2", "opt",
    "qwen3_moe", "gpt_oss", "lfm2", "yuan", "baichuan", "baichuan_alibi",
)  # fmt: skip
METHODS = {
    "full": ("tuning=full", "learning_rate=2e-3"),
    "freeze": ("tuning=freeze", "learning_rate=2e-3"),
    "lora": ("tuning=lora", "learning_rate=5e-3"),
    "lora int8": ("tuning=lora", "learning_rate=5e-3", "quantization=int8"),
    "lora nf4": ("tuning=lora", "learning_rate=5e-3", "quantization=nf4"),
}
MERGED_INTO = {"lora": "as trained", "lora int8": "16bit", "lora nf4": "dequantized"}
"""What an adapter is merged into, by `--base`."""
VALUES = {
    "family": FAMILIES,
    "method": tuple(METHODS),
    "layout": ("as proven", "padded"),
    "activation_checkpointing": ("false", "true"),
}
TURNS = [
    {
        "family": family,
        "method": VALUES["method"][turn % len(METHODS)],
        "layout": VALUES["layout"][turn % 2],
        "activation_checkpointing": VALUES["activation_checkpointing"][turn // 2 % 2],
    }
    for turn, family in enumerate(FAMILIES)
]
ALL = [dict(zip(VALUES, values, strict=True)) for values in itertools.product(*VALUES.values())]
NEVER_FLAT = {"bloom", "falcon", "gpt_oss", "lfm2"}
RENAMED = {"gpt_neox", "qwen3_moe"}
"""transformers stores some of their weights under other names than the model has."""
STEPS = 8
IDS = [[5, 9, 42, 77, 300, 12, 8, 101, 33]]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad(), stock_attention(model):
        found: torch.Tensor = model.eval()(torch.tensor(IDS)).logits.float()
    return found


def trained(trial: Trial, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, torch.Tensor]:
    """A run of the trial, and the logits of the model as it is right behind the last step."""
    family, base = trial["family"], folder / trial["family"]
    if not base.exists():
        save_twin(base, family)
        rows = [
            {"instruction": f"Say {number}.", "output": f"{number} it is, and it is {number}."} for number in range(8)
        ]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    jobs = []
    step = loop.optimizer_step
    with monkeypatch.context() as patch:
        patch.setattr(loop, "optimizer_step", lambda job, *rest: (jobs.append(job), step(job, *rest))[1])
        if trial["layout"] == "padded":
            patch.setattr(build, "prove", lambda *_: Verdict(False, "a test asks for padding"))
        finished = run.execute(
            config.load(
                None,
                [
                    f"model={base}",
                    f"data={folder / 'rows.jsonl'}",
                    f"output_dir={folder / '-'.join(trial.values()).replace(' ', '_')}",
                    "dtype=float32",
                    "global_batch_size=8",
                    f"max_steps={STEPS}",
                    "warmup_steps=0",
                    "lr_scheduler_type=constant",
                    f"activation_checkpointing={trial['activation_checkpointing']}",
                    *METHODS[trial["method"]],
                ],
            ),
            say=lambda text: None,
        )
    losses = [line["loss"] for line in Run(finished).metrics if "loss" in line]
    assert all(map(math.isfinite, losses)), trial
    assert losses[-1] < 0.95 * losses[0], (trial, losses)
    return finished, logits(jobs[-1].policy.model)


def refuse_unmoved(folder: Path, base: Path) -> None:
    """What was to be trained is not what it was at the start, and nothing else has changed."""
    trained = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["trained_tensors"]
    adapter = folder / "adapter" / "adapter_model.safetensors"
    if adapter.is_file():
        assert all(tensor.any() for name, tensor in load_file(adapter).items() if "lora_B" in name)
        return
    before = load_file(base / "model.safetensors")
    after = {name: tensor for path in folder.glob("model/*.safetensors") for name, tensor in load_file(path).items()}
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    if base.name not in RENAMED:
        assert {re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in changed} <= trained.keys()
    assert len(changed) > 0.6 * sum(trained.values()), changed


def check(trials: list[Trial], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains all trials of a family, then reads all results in one other process."""
    found = {done: (trial, behind) for trial in trials for done, behind in [trained(trial, folder, monkeypatch)]}
    read_elsewhere(list(found), IDS)
    for done, (trial, behind) in found.items():
        refuse_unmoved(done, folder / trial["family"])
        again = load_file(done / LOGITS)["logits"]
        assert torch.allclose(again, behind, atol=1e-5), (trial, (again - behind).abs().max())
        layout = json.loads((done / "manifest.json").read_text(encoding="utf-8"))["decisions"]["layout"]
        assert layout == ("padded" if trial["layout"] == "padded" or trial["family"] in NEVER_FLAT else "flat")
        if trial["method"] in MERGED_INTO:
            merged = verified_export.export(
                str(done),
                "merged",
                done / "merged",
                base=MERGED_INTO[trial["method"]],
                unproven=True,
                say=lambda _: None,
            )
            assert merged.drift.max_logit_difference < 1e-4, trial
        if trial["method"] == "lora nf4":
            assert merged.choice is not None
            assert merged.choice.max_logit_difference < 1e-4, trial


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_with_a_method(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check([trial for trial in TURNS if trial["family"] == family], tmp_path, monkeypatch)


@pytest.mark.prove
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_with_everything(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check([trial for trial in ALL if trial["family"] == family], tmp_path, monkeypatch)


def test_each_value_has_its_turn() -> None:
    for key, values in VALUES.items():
        assert {trial[key] for trial in TURNS} == set(values)
