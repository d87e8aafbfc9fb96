"""A signal at any moment of a run: it is finished and saved, or ended and whole; and the same command goes on."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.faults.conftest import Small, Whole, different, emptied
from tests.faults.test_disk import gone_on
from tests.helpers.command_line import luthier
from tests.helpers.faults import Plan, What

MOMENTS = 60
SIGNALS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP}
EXITS = {"SIGINT": (0, 130), "SIGTERM": (0, 143), "SIGHUP": (0, 129)}
"""0: the run came to its end first. Before the first step, and twice, a signal ends the process at once."""
EARLIER = re.compile(r"checkpoints/step-00000[1-5]")


@pytest.mark.parametrize(
    ("name", "what", "part"),
    [
        ("SIGTERM", What.SIGNAL, 0),
        *(
            pytest.param(name, what, part, marks=pytest.mark.prove)
            for name in SIGNALS
            for what in (What.SIGNAL, What.SIGNAL_TWICE)
            for part in (1, 2, 3)
        ),
    ],
)
def test_a_signal_at_any_moment(name: str, what: What, part: int, small: Small, whole: Whole, tmp_path: Path) -> None:
    run, wrong = tmp_path.resolve() / "place" / "run", list[str]()
    count = len(whole.operations)
    moments = [1 + at * (count - 1) // MOMENTS for at in range(MOMENTS)]
    for at in moments[part - 1 :: 3] if part else moments[5::20]:
        emptied(run)
        ended = small.train(run, plan=Plan(what, at, SIGNALS[name]))
        operation = whole.operations[at - 1]
        if ended.code not in (*EXITS[name], -SIGNALS[name]):
            wrong.append(f"{at}: {operation}: exit {ended.code}: {ended.said[-300:]}")
        if "Traceback" in ended.said:
            wrong.append(f"{at}: {operation}: {ended.said[-600:]}")
        # It saves where it stops, so the checkpoints before the last may be of other steps.
        found = [why for why in gone_on(small, run, whole) if not EARLIER.match(why)]
        wrong += [f"{at}: {operation}: {why}" for why in found]
    assert not wrong, "\n".join(wrong)


@pytest.mark.prove
@pytest.mark.parametrize("part", [1, 2, 3])
def test_a_stop_for_a_while_changes_nothing(part: int, small: Small, whole: Whole, tmp_path: Path) -> None:
    """SIGSTOP, and on: as when a laptop sleeps."""
    run = tmp_path.resolve() / "place" / "run"
    for at in range(1 + part * 30, len(whole.operations), 100):
        emptied(run)
        plan = Plan(What.SIGNAL, at, signal.SIGSTOP)
        pid = small.commands.start(small.command(run), plan, under=(run.parent,), LUTHIER_CACHE=str(small.cache(run)))
        small.commands.wait_until_stopped(pid)
        time.sleep(0.05)
        os.kill(pid, signal.SIGCONT)
        ended = small.commands.ended()
        assert ended.code == 0, ended.said
        assert not different(run, whole)


@pytest.mark.prove
@pytest.mark.parametrize("part", [1, 2, 3])
def test_two_processes_at_one_folder(
    part: int, small: Small, whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whenever the second comes: one of them makes the run, the other says so and touches nothing."""
    run = tmp_path.resolve() / "place" / "run"
    for at in range(part * 10, len(whole.operations), 30):
        emptied(run)
        plan = Plan(What.SIGNAL, at, signal.SIGSTOP)
        pid = small.commands.start(small.command(run), plan, under=(run.parent,), LUTHIER_CACHE=str(small.cache(run)))
        small.commands.wait_until_stopped(pid)
        second = luthier(*map(str, small.command(run, *["--resume"] * (at % 2))))
        said = capsys.readouterr().err
        os.kill(pid, signal.SIGCONT)
        ended = small.commands.ended()
        assert sorted((second, ended.code)) == [0, 2], f"{at}: {whole.operations[at - 1]}: {second} {said} {ended}"
        other = said if second else ended.said
        assert "another run is writing" in other or "is not empty" in other or "--resume" in other, other
        assert not different(run, whole)
