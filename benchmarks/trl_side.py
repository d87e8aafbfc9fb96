"""What trl's trainers make of the same ids; run by another Python, which has trl, by tests and benchmarks.

    PYTHON trl_side.py GIVEN.json FOUND.json

GIVEN: `model`, a folder, and beside it `scored`, the same with a head of scores; `runs`, each with `name`, `trainer`, `settings` (of
its configuration), `steps`, `cuts` (pairs of rows a micro-batch and micro-batches a step) and `rows`: maps of the ids `prompt`,
`chosen`, `rejected`; for KTO of `prompt`, `answer`, `other` (the answer to another prompt), and `good`.
FOUND: name -> `losses`, of each step, and `apart`, how far the first gradient is from that of the first cut, as a whole
and in the tensor that differs most; a list of each, by cut.

The trainers get the ids as they are: a chat template's end, truncation and stop tokens are no part of the comparison.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

Row = dict[str, Any]


class FirstGradient(TrainerCallback):
    """Keeps the gradient of the first step."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not self.found:
            named = model.named_parameters()
            self.found = {name: p.grad.detach().clone() for name, p in named if p.grad is not None}


def apart(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> tuple[float, float]:
    """The norm of the difference of two gradients, relative to the second's norm: of the whole, and of the tensor that differs most."""
    lengths = {name: (float((some[name] - other).norm()), float(other.norm())) for name, other in others.items()}
    differences, norms = zip(*lengths.values(), strict=True)
    return math.hypot(*differences) / math.hypot(*norms), max(far / length for far, length in lengths.values())


def trainer_of(kind: str) -> tuple[Any, Any]:
    """(trainer, its configuration), which take the ids as they come, in their order."""
    if kind == "dpo":
        from trl import DPOConfig as Config
        from trl import DPOTrainer as Trainer
    elif kind == "sft":
        from trl import SFTConfig as Config
        from trl import SFTTrainer as Trainer
    elif kind == "kto":
        from trl import KTOConfig as Config
        from trl import KTOTrainer as Trainer
    elif kind == "reward":
        from trl import RewardConfig as Config
        from trl import RewardTrainer as Trainer
    elif kind == "orpo":
        from trl.experimental.orpo import ORPOConfig as Config
        from trl.experimental.orpo import ORPOTrainer as Trainer
    elif kind == "cpo":
        from trl.experimental.cpo import CPOConfig as Config
        from trl.experimental.cpo import CPOTrainer as Trainer
    else:
        raise ValueError(kind)

    class Given(Trainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def tokenize_row(self, feature: Any, model: Any = None) -> Any:
            return {}

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    return Given, Config


def columns(kind: str, row: Row) -> dict[str, Any]:
    """What the trainer would have made of the row."""
    prompt = row["prompt"]
    if kind == "kto":
        ids = {"prompt_ids": prompt, "completion_ids": row["answer"], "KL_completion_ids": row["other"]}
        return ids | {"label": row["good"]}
    answers = {name: row[name] for name in ("chosen", "rejected")}
    if kind == "sft":
        return {"input_ids": prompt + row["chosen"], "labels": [-100] * len(prompt) + row["chosen"]}
    if kind == "dpo":
        return {"prompt_ids": prompt, **{f"{name}_ids": ids for name, ids in answers.items()}}
    if kind == "reward":
        return {f"{name}_ids": prompt + ids for name, ids in answers.items()}
    found: dict[str, Any] = {"prompt": "", "chosen": "", "rejected": ""}
    for name, ids in answers.items():
        found[f"{name}_input_ids"] = prompt + ids
        found[f"{name}_attention_mask"] = [1] * (len(prompt) + len(ids))
        found[f"{name}_labels"] = [-100] * len(prompt) + ids
    return found | {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}


def model_of(kind: str, folder: Path) -> Any:
    if kind == "reward":
        return AutoModelForSequenceClassification.from_pretrained(folder.with_name("scored"), dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def run_of(
    run: dict[str, Any], model: str, batch: int, accumulation: int
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The loss of each step, and the first gradient."""
    trainer, config = trainer_of(run["trainer"])
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    keys = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "max_steps": run["steps"],
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "report_to": [],
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "max_length": 4096,
        "disable_tqdm": True,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        **run["settings"],
    }
    from datasets import Dataset  # here: what compares gradients is asked for without it

    gradient = FirstGradient()
    with tempfile.TemporaryDirectory() as folder:
        known = {name: value for name, value in keys.items() if name in config.__dataclass_fields__}
        made = trainer(
            model=model_of(run["trainer"], Path(model)),
            args=config(output_dir=folder, **known),
            train_dataset=Dataset.from_list([columns(run["trainer"], row) for row in run["rows"]]),
            processing_class=tokenizer,
            callbacks=[gradient],
        )
        made.train()
    return [line["loss"] for line in made.state.log_history if "loss" in line], gradient.found


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    found = {}
    for run in given["runs"]:
        made = [run_of(run, given["model"], *cut) for cut in run["cuts"]]
        gradients = [gradient for _, gradient in made]
        found[run["name"]] = {
            "losses": [losses for losses, _ in made],
            "apart": [apart(gradient, gradients[0]) for gradient in gradients],
        }
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
