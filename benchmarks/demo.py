"""What `make demo` gave in a fresh clone, and how long it took: the figures of docs/claims.md.

git clone . ../clone && time make -C ../clone demo
python benchmarks/demo.py ../clone --minutes 9.8 [--record]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from luthier.demo.requests import TRAINING_ROWS
from records import Figure, record
from sft_cpu import processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path)
    parser.add_argument("--minutes", type=float, required=True, help="of `make demo`, by the clock")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    demo = json.loads((given.clone / "runs" / "demo" / "demo.json").read_text(encoding="utf-8"))
    figures = []
    for found in demo["sets"]:
        for model in ("base", "tuned"):
            for measure in ("exact", "fields"):
                share = found[model][measure]
                interval = f"95 % interval [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"
                claim = f"demo, {found[model]['requests']} requests with {found['name']}, {model} model, {measure} ({interval})"
                figures.append(Figure(claim, round(100 * share["value"]), "%"))
    for what in ("training", "answering"):
        claim = f"demo: {what}" + (
            f" of {TRAINING_ROWS:,} rows, one epoch" if what == "training" else ", base and tuned model"
        )
        figures.append(Figure(claim, round(demo["seconds"][f"{what}_s"] / 60, 1), "minutes"))
    figures.append(Figure("`make demo` in a fresh clone, install and model included", given.minutes, "minutes"))
    for figure in figures:
        print(f"{figure.claim}: {figure.value} {figure.unit}")
    if given.record:
        device = f"{demo['device']['threads']} CPU threads, {processor()}, float32"
        record("demo", figures, command="make demo", device=device, commit=demo["commit"][:7])


if __name__ == "__main__":
    main()
