"""The run's record: files first, then the screen and the trackers.

`metrics.jsonl` has one line a step and holds only what is a function of the run, so two equal runs have equal files, to
the bit; `timings.jsonl` has the rest; `samples.jsonl` has what the model answered on the way; `row_losses.jsonl` has one line
a step with the loss of each of its rows.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import EnvironmentProblem
from luthier.runs.run_folder import GOES_ON, METRICS, RECORD, ROW_LOSSES, SAMPLES, TIMINGS
from luthier.runs.screen import Screen
from luthier.runs.trackers import Trackers
from luthier.system.faults import faults_told
from luthier.system.files import append_to, make_folder, write_file
from luthier.system.locks import Lock

if TYPE_CHECKING:
    from luthier.config import RunConfig


class Recorder:
    """Writes a run's lines as they come. On every process but the main one all methods do nothing.

    Args:
        folder: the run's folder; made if it is not there. Files that are there are continued: `cut_back` them first.
        config: as resolved; its `training.logging_steps` spaces the screen and the trackers, never the files.
        total_steps: optimizer steps of the whole run.
        start_step: steps that a resumed run has behind it.
        main: whether this process is the one that writes.
        quiet: nothing on the screen; files and trackers as ever.
        lock: of the folder; where it is no longer in its place, the folder was removed or moved.

    Raises:
        EnvironmentProblem: a tracker of `report_to` is not installed, or does not start; or, here and in all that writes, the
            folder cannot be written.
    """

    def __init__(
        self,
        folder: Path | str,
        config: RunConfig,
        *,
        total_steps: int,
        start_step: int = 0,
        main: bool = True,
        quiet: bool = False,
        lock: Lock | None = None,
    ) -> None:
        self._main = main
        self._lock = lock
        if not main:
            return
        self.folder = Path(folder)
        with faults_told(self.folder, *GOES_ON):
            make_folder(self.folder)
        self._total_steps = total_steps
        self._first_step = start_step + 1
        self._every = config.training.logging_steps
        self._trackers = Trackers(self.folder, config, start_step=start_step, on_failure=self.note)
        with faults_told(self.folder, *GOES_ON):
            self._files = {name: append_to(self.folder / name) for name in RECORD}
        self._screen = Screen(total_steps=total_steps, start_step=start_step, quiet=quiet)

    def step(self, line: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """One optimizer step. `line`: step, epoch, loss, learning_rate, grad_norm, token_accuracy, trained_tokens
        (of the run so far). `timing`: step_s, tokens_per_s, memory_bytes, and on a CPU cpu_pressure, the share of the step in
        which a task of the machine waited for a core; its step is taken from `line`."""
        if not self._main:
            return
        self._check_place()
        step = line["step"]
        self._write(METRICS, line)
        self._write(TIMINGS, {"step": step, **timing})
        shown = step % self._every == 0 or step in (self._first_step, self._total_steps)
        self._screen.step(line, timing, shown)
        if shown:
            self._trackers.step(line, timing)

    def evaluation(self, line: Mapping[str, Any]) -> None:
        """Held-out figures after `line["step"]` steps: eval_loss, eval_perplexity, eval_token_accuracy, eval_tokens.
        Step 0 is the model as it came."""
        if not self._main:
            return
        self._write(METRICS, line)
        self._screen.evaluation(line)
        self._trackers.evaluation(line)

    def sample(self, step: int, prompt: str, answer: str) -> None:
        """What the model answered to one of `training.sample_prompts` after `step` steps."""
        if self._main:
            self._write(SAMPLES, {"step": step, "prompt": prompt, "answer": answer})
            self._screen.sample(step, prompt, answer)

    def row_losses(self, step: int, rows: Sequence[int], losses: Sequence[float]) -> None:
        """The loss of each row that the step learned from, before it did: a sum over the trained tokens of all samples that it
        gave, in nats. `rows` are places in the training data, as the run's encoded examples have them."""
        if self._main:
            shown = [float(f"{loss:.7g}") for loss in losses]
            self._write(ROW_LOSSES, {"step": step, "rows": list(rows), "losses": shown})

    def note(self, text: str) -> None:
        """A line for the person who watches; on the screen only."""
        if self._main:
            self._screen.note(text)

    def sync(self) -> None:
        """Puts all lines on the disk. Called before a checkpoint is published, none is ever ahead of the record."""
        if self._main:
            self._check_place()
            for name, file in self._files.items():
                with faults_told(self.folder / name, *GOES_ON):
                    file.flush()
                    os.fsync(file.fileno())

    def _check_place(self) -> None:
        if self._lock is not None and not self._lock.is_in_place():
            gone = "it was removed, moved or replaced while the run was writing it"
            raise EnvironmentProblem(str(self.folder), gone, "a folder that stays", "put it back, or start again")

    def close(self) -> None:
        """Ends the display and the trackers and closes the files. May be called twice."""
        if not self._main or not self._files:
            return
        try:
            self.sync()
        finally:
            self._screen.close()
            for file in self._files.values():
                with suppress(OSError):  # what could not be written was told
                    file.close()
            self._files = {}
            self._trackers.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, name: str, line: Mapping[str, Any]) -> None:
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()
        }
        # A lone surrogate is not UTF-8; written with a backslash it is JSON's own escape, and reads back as it was.
        text = json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"
        with faults_told(self.folder / name, *GOES_ON):
            self._files[name].write(text.encode("utf-8", errors="backslashreplace"))
            self._files[name].flush()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file of a run. Empty where there is none; a line that is torn by a crash is left out."""
    if not path.is_file():
        return []
    return [found for raw in path.read_bytes().split(b"\n") if (found := _parse(raw)) is not None]


def cut_back(folder: Path | str, step: int) -> None:
    """Drops the lines after `step` from the run's record, and a line that a crash has torn.

    What remains is the record of an uninterrupted run at that step, to the bit. Each file is replaced in one move. A
    run that begins anew (no checkpoint) is cut back to -1: the evaluation of step 0 goes too.

    Raises:
        EnvironmentProblem: the folder cannot be written.
    """
    for name in RECORD:
        path = Path(folder) / name
        if not path.is_file():
            continue
        with faults_told(path, *GOES_ON):
            before = path.read_bytes()
            lines = (raw for raw in before.split(b"\n") if _is_up_to(raw, step))
            after = b"".join(raw + b"\n" for raw in lines)
            if (
                after != before or path.stat().st_nlink > 1
            ):  # what is appended must not come into a second name of the file
                write_file(path, after)


def steps_without_a_line(folder: Path | str, step: int) -> int:
    """How many of the first `step` steps the record does not have."""
    found = {line.get("step") for line in read_lines(Path(folder) / METRICS) if "loss" in line}
    return len(set(range(1, step + 1)) - found)


def _is_up_to(raw: bytes, step: int) -> bool:
    found = _parse(raw)
    return found is not None and isinstance(found.get("step"), int) and found["step"] <= step


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(raw.decode("utf-8"))
    except ValueError:  # cut in the middle of a character, or of the JSON
        return None
    return found if isinstance(found, dict) else None
