"""A finished demo on requests that nobody looked at while its recipe was chosen.

    python benchmarks/demo_other_requests.py runs/demo --seed 20261129 [--record]

The recipe (wishes, form of answer, rows, values, template, rate) was chosen by the results on the two sets that `luthier demo` prints. So
the same generators are asked for other requests, with another seed, and the tuned model answers them once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from luthier.demo import flow, requests
from luthier.demo.judge import figures, judge
from luthier.inference.opened import open_model
from records import Figure, record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seed", type=int, default=20261129)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    demo = json.loads((given.run / "demo.json").read_text(encoding="utf-8"))
    opened = open_model(str(given.run))
    results = []
    for name, pairs in requests.held_out_sets(seed=given.seed).items():
        texts = flow.answer(opened, [pair.request for pair in pairs])
        found = figures([judge(pair.yaml, text) for pair, text in zip(pairs, texts, strict=True)])
        for measure, share in (("exact", found.exact), ("fields", found.fields)):
            interval = f"95 % interval [{100 * share.low:.0f}, {100 * share.high:.0f}]"
            print(f"{name}, {measure}: {100 * share.value:.0f} % ({interval})")
            claim = f"demo, {len(pairs)} other requests with {name}, tuned model, {measure} ({interval})"
            results.append(Figure(claim, round(100 * share.value), "%"))
    if given.record:
        record(
            "demo_other_requests",
            results,
            command=f"python benchmarks/demo_other_requests.py runs/demo --seed {given.seed}",
            device=f"{demo['device']['threads']} CPU threads",
            commit=demo["commit"][:7],
        )


if __name__ == "__main__":
    main()
