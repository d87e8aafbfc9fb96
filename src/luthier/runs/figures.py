"""What a run's files say of it, read once: for the report, the summary at the end and the curves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from luthier.config.documents import read_yaml
from luthier.config.plain_yaml import OF_A_RUN
from luthier.errors import LuthierError
from luthier.runs.recorder import read_lines
from luthier.runs.run_folder import METRICS, SAMPLES, TIMINGS

Line = dict[str, Any]
Kind = TypeVar("Kind", list[Any], dict[str, Any])


@dataclass(frozen=True)
class RunFigures:
    """The record of a run. What is not there, or cannot be read, is empty, and `missing` names the file."""

    folder: Path
    steps: list[Line]
    evaluations: list[Line]
    timings: list[Line]
    samples: list[Line]
    config: dict[str, Any]
    config_text: str
    answers: list[Line]
    ledger: dict[str, Any]
    manifest: dict[str, Any]
    missing: list[str] = field(default_factory=list)

    @property
    def first_evaluation(self) -> Line | None:
        """The model as it came: the evaluation of step 0, where there is one."""
        return self.evaluations[0] if self.evaluations and self.evaluations[0]["step"] == 0 else None

    @property
    def last_evaluation(self) -> Line | None:
        return self.evaluations[-1] if self.evaluations and self.evaluations[-1]["step"] > 0 else None

    @cached_property
    def trained_tokens(self) -> int:
        """Of the whole run: each step's line has the count so far."""
        return int(self.steps[-1].get("trained_tokens") or 0) if self.steps else 0

    @cached_property
    def seconds(self) -> float:
        """Time in optimizer steps, over all starts of the run."""
        return sum(float(line.get("step_s") or 0) for line in self.timings)

    @cached_property
    def peak_memory_bytes(self) -> float | None:
        return max(
            (line["memory_bytes"] for line in self.timings if line.get("memory_bytes") is not None), default=None
        )

    @cached_property
    def tokens_per_s(self) -> float | None:
        """Of the whole run: each step's speed weighs as much as it lasted."""
        known = [
            (line["tokens_per_s"], line["step_s"])
            for line in self.timings
            if line.get("tokens_per_s") is not None and line.get("step_s")
        ]
        seconds = sum(weight for _, weight in known)
        return sum(value * weight for value, weight in known) / seconds if seconds else None

    def up_to(self, step: int) -> RunFigures:
        """The record as it was at a checkpoint, which was asked nothing."""
        steps, evaluations, timings, samples = (
            [line for line in lines if line["step"] <= step]
            for lines in (self.steps, self.evaluations, self.timings, self.samples)
        )
        state = {"state": f"checkpoint of step {step}"}
        return replace(
            self,
            steps=steps,
            evaluations=evaluations,
            timings=timings,
            samples=samples,
            answers=[],
            manifest={**self.manifest, **state},
        )


def read_figures(folder: Path | str) -> RunFigures:
    """Reads the files of a run's folder."""
    place, missing = Path(folder), list[str]()
    metrics = [line for line in read_lines(place / METRICS) if isinstance(line.get("step"), int)]
    missing += [name for name in (METRICS, TIMINGS, SAMPLES) if not (place / name).is_file()]
    config, text = _config(place / "config.yaml", missing)
    answers = _json(place / "answers.json", list, missing)
    return RunFigures(
        folder=place,
        steps=[line for line in metrics if "loss" in line],
        evaluations=[line for line in metrics if "eval_loss" in line],
        timings=[line for line in read_lines(place / TIMINGS) if isinstance(line.get("step"), int)],
        samples=[line for line in read_lines(place / SAMPLES) if isinstance(line.get("step"), int)],
        config=config,
        config_text=text,
        answers=[line for line in answers if isinstance(line, dict)],
        ledger=_json(place / "ledger.json", dict, missing),
        manifest=_json(place / "manifest.json", dict, missing),
        missing=missing,
    )


def _config(path: Path, missing: list[str]) -> tuple[dict[str, Any], str]:
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError:
        missing.append(path.name)
        return {}, ""
    try:
        return read_yaml(path, OF_A_RUN).tree, text
    except LuthierError:
        return {}, text


def _json(path: Path, kind: type[Kind], missing: list[str]) -> Kind:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, kind):
        missing.append(path.name)
        return kind()
    return found


def points(lines: list[Line], key: str) -> list[tuple[float, float]]:
    """(step, value) of the lines that have a number under `key`."""
    return [(float(line["step"]), float(line[key])) for line in lines if isinstance(line.get(key), (int, float))]


def at(tree: Mapping[str, Any], *path: str) -> Any:
    """The value at a path of nested maps, None where there is none."""
    node: Any = tree
    for key in path:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node
