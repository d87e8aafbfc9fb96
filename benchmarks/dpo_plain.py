"""DPO as it is plainly done, and by trl's trainer: one step after the other on given ids, timed.

    PYTHON dpo_plain.py plain|trl GIVEN.json FOUND.json

GIVEN: `model`, a folder; `rows` of the ids `prompt`, `chosen` and `rejected`; `pairs` a micro-batch, `accumulate` of these a step,
`steps`, `rate`, `rank` and `targets` of LoRA; `bf16`, whether products are of bfloat16; and, for trl, `eval`, held-out rows, which are
measured before the first step and after every `every`. FOUND: `seconds` of each step, `losses`, `peak`, the most memory of the
process in GB, and `margins`, by step, of each held-out row: beta times how far the log-ratios of its answers are apart.

`plain` has the policy and a second model, which never changes; both run over all pairs of a micro-batch, each answer behind its
prompt and padded. Neither needs luthier: PYTHON is one that has trl.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

BETA = 0.1


def adapter(given: dict[str, Any]) -> LoraConfig:
    rank = given["rank"]
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=given["targets"], task_type="CAUSAL_LM")


def loaded(given: dict[str, Any]) -> Any:
    return AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)


def sums(model: Any, ids: torch.Tensor, seen: torch.Tensor, answered: torch.Tensor) -> torch.Tensor:
    """[B] log-probabilities of the answers of [B, T] ids."""
    logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits[:, :-1]
    logps = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (logps * answered[:, 1:]).sum(-1)


def plain(given: dict[str, Any]) -> tuple[list[float], list[float], dict[int, list[float]]]:
    """Seconds and loss of each step; nothing is held out."""
    torch.manual_seed(0)
    policy, reference = get_peft_model(loaded(given), adapter(given)).train(), loaded(given).eval()
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=given["rate"])
    seconds, losses = list[float](), list[float]()
    rows = iter(given["rows"])
    for _ in range(given["steps"]):
        started, total = time.perf_counter(), 0.0
        for _ in range(given["accumulate"]):
            some = [next(rows) for _ in range(given["pairs"])]
            whole = [row["prompt"] + row[name] for name in ("chosen", "rejected") for row in some]
            asked = torch.tensor([len(row["prompt"]) for row in some] * 2)[:, None]
            ids = pad_sequence([torch.tensor(one) for one in whole], batch_first=True)
            place = torch.arange(ids.shape[1])
            seen = place < torch.tensor([len(one) for one in whole])[:, None]
            with torch.no_grad():
                before = sums(reference, ids, seen.long(), seen & (place >= asked))
            ratios = sums(policy, ids, seen.long(), seen & (place >= asked)) - before
            chosen, rejected = ratios.chunk(2)
            loss = -logsigmoid(BETA * (chosen - rejected)).mean() / given["accumulate"]
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        losses.append(total)
    return seconds, losses, {}


def margins(model: Any, given: dict[str, Any]) -> list[float]:
    """Of each held-out row, under a policy whose adapter is its only difference from the reference."""
    found = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=given["bf16"]):
        for row in given["eval"]:
            of = []
            for name in ("chosen", "rejected"):
                ids = torch.tensor([row["prompt"] + row[name]])
                seen = torch.ones_like(ids)
                answered = (torch.arange(ids.shape[1]) >= len(row["prompt"]))[None]
                with model.disable_adapter():
                    before = sums(model, ids, seen, answered)
                of.append(sums(model, ids, seen, answered) - before)
            found.append(BETA * float(of[0] - of[1]))
    return found


class Watch(TrainerCallback):
    """Times the steps, and measures the held-out rows between them."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.margins = given, dict[int, list[float]]()
        self.seconds: list[float] = []
        self.started = 0.0

    def measure(self, step: int, model: Any) -> None:
        if self.given.get("eval") and step % self.given["every"] == 0:
            model.eval()
            self.margins[step] = margins(model, self.given)
            model.train()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.measure(0, model)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.seconds.append(time.perf_counter() - self.started)
        self.measure(state.global_step, model)


def by_trl(given: dict[str, Any]) -> tuple[list[float], list[float], dict[int, list[float]]]:
    """As its trainer does by default, with the same ids, batches, adapter and rate."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from trl import DPOConfig, DPOTrainer

    class Given(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = [{f"{name}_ids": row[name] for name in ("prompt", "chosen", "rejected")} for row in given["rows"]]
    watch = Watch(given)
    with tempfile.TemporaryDirectory() as folder:
        settings = DPOConfig(
            output_dir=folder, per_device_train_batch_size=given["pairs"], gradient_accumulation_steps=given["accumulate"],
            max_steps=given["steps"], learning_rate=given["rate"], lr_scheduler_type="constant", warmup_steps=0, beta=BETA,
            weight_decay=0.0, logging_steps=1, report_to=[], bf16=given["bf16"], use_cpu=True, save_strategy="no", max_length=4096,
            disable_tqdm=True,
        )  # fmt: skip
        made = Given(
            model=loaded(given),
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=adapter(given),
            callbacks=[watch],
        )
        made.train()
    return watch.seconds, [line["loss"] for line in made.state.log_history if "loss" in line], watch.margins


def main() -> None:
    way, source, target = sys.argv[1:]
    given = json.loads(Path(source).read_text(encoding="utf-8"))
    torch.set_num_threads(given["threads"])
    seconds, losses, held_out = (plain if way == "plain" else by_trl)(given)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    found = {"seconds": seconds, "losses": losses, "peak": peak, "margins": held_out}
    Path(target).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
