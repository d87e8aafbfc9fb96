"""The record of a run: what is in the files, and what a resume leaves of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier import config
from luthier.runs.recorder import Recorder, cut_back, read_lines
from luthier.runs.run_folder import METRICS, SAMPLES, TIMINGS
from tests.helpers.properties import examples

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
LINES = st.fixed_dictionaries({"loss": FLOATS, "learning_rate": FLOATS, "text": st.text()})


def run_config(**training: Any) -> config.RunConfig:
    tree = {"model": "org/name", "data": "train.jsonl", "output_dir": "runs/mine", "training": training}
    return config.from_dict(tree)


def record(folder: Path, steps: range, total: int, start: int = 0, *, quiet: bool = True) -> None:
    """What a run of these steps leaves: a step, an evaluation every third, a sample with it."""
    with Recorder(folder, run_config(), total_steps=total, start_step=start, quiet=quiet) as recorder:
        if start == 0:
            recorder.evaluation({"step": 0, "eval_loss": 3.0})
        for step in steps:
            line = {"step": step, "loss": 1 / step, "learning_rate": 2e-4 / 3**step}
            recorder.step(line, {"step_s": 0.1, "tokens_per_s": 300.0, "memory_bytes": 1e9})
            recorder.row_losses(step, [2 * step, 2 * step + 1], [1 / step, 12345.678901])
            if step % 3 == 0:
                recorder.evaluation({"step": step, "eval_loss": 2 / step})
                recorder.sample(step, "who?", "我\n\u2028me \ud83d")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@examples(25)
@given(lines=st.lists(LINES, max_size=5))
def test_every_value_reads_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    with Recorder(folder, run_config(), total_steps=9, quiet=True) as recorder:
        for step, line in enumerate(lines, 1):
            recorder.step({"step": step, **line}, {})
    assert repr(read_lines(folder / METRICS)) == repr([{"step": step, **line} for step, line in enumerate(lines, 1)])


@examples(40)
@given(total=st.integers(1, 12), data=st.data())
def test_a_run_cut_back_and_gone_on_with_equals_an_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory, total: int, data: st.DataObject
) -> None:
    whole, killed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("killed")
    record(whole, range(1, total + 1), total)
    died = data.draw(st.integers(0, total), label="last step before the kill")
    kept = data.draw(st.integers(0, died), label="step of the checkpoint")
    record(killed, range(1, died + 1), total)
    for name in (METRICS, TIMINGS, SAMPLES):  # lines of the step that was being written, torn anywhere
        line = json.dumps({"step": died + 1, "answer": "我是"}, ensure_ascii=False).encode()
        with (killed / name).open("ab") as file:
            file.write(line[: data.draw(st.integers(0, len(line) - 1), label=f"bytes of the torn line of {name}")])
    cut_back(killed, kept if kept else -1)
    record(killed, range(kept + 1, total + 1), total, start=kept)
    assert contents(killed) == contents(whole)


def test_cut_back_restores_a_line_that_lacks_only_its_end_of_line(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_bytes(b'{"step": 1}\n{"step": 2}')
    cut_back(tmp_path, 2)
    assert (tmp_path / METRICS).read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert [path.name for path in tmp_path.iterdir()] == [METRICS], "no temporary file stays, no file is made"


def test_other_processes_write_and_show_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    recorder = Recorder(folder, run_config(), total_steps=3, main=False)
    recorder.step({"step": 1, "loss": 1.0}, {"step_s": 1.0})
    recorder.evaluation({"step": 1, "eval_loss": 1.0})
    recorder.sample(1, "a", "b")
    recorder.note("note")
    recorder.sync()
    recorder.close()
    assert not folder.exists()
    assert capsys.readouterr() == ("", "")


def test_lines_are_on_file_before_the_next_step(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, run_config(logging_steps=10), total_steps=3, quiet=True)
    recorder.step({"step": 1, "loss": 1.5}, {"step_s": 0.5, "tokens_per_s": 10.0, "memory_bytes": 7})
    assert (tmp_path / METRICS).read_text() == '{"step": 1, "loss": 1.5}\n', "timings stay out of it"
    assert read_lines(tmp_path / TIMINGS) == [{"step": 1, "step_s": 0.5, "tokens_per_s": 10.0, "memory_bytes": 7}]
    recorder.close()
    recorder.close()


def test_a_number_that_json_has_not_is_null(tmp_path: Path) -> None:
    with Recorder(tmp_path, run_config(), total_steps=3, quiet=True) as recorder:
        recorder.evaluation({"step": 1, "eval_loss": math.inf, "eval_perplexity": math.nan})
    assert (tmp_path / METRICS).read_text() == '{"step": 1, "eval_loss": null, "eval_perplexity": null}\n'


def test_logging_steps_space_the_screen_and_not_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Recorder(tmp_path, run_config(logging_steps=4), total_steps=10) as recorder:
        for step in range(1, 11):
            recorder.step({"step": step, "loss": 1.0}, {"step_s": 1.0})
    shown = capsys.readouterr().out.splitlines()
    assert [line.split("/")[0].split()[-1] for line in shown] == ["1", "4", "8", "10"], "the first and the last too"
    assert len(read_lines(tmp_path / METRICS)) == 10
