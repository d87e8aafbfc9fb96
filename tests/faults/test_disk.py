"""A run, killed or refused by the disk at every single thing that it asks of it, comes to the same end."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from luthier.system.faults import WORDS
from tests.faults.conftest import Small, Whole, different, emptied
from tests.helpers.faults import Ended, Plan, What

EVERY = 9
"""Of the operations, in the quick suite."""
SHARES = 8
"""The whole is cut into so many tests."""
AT_MOST = 500

ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EDQUOT": errno.EDQUOT}
RARER = {name: getattr(errno, name) for name in ("EMFILE", "ENFILE", "ESTALE", "EFBIG", "EROFS", "EACCES")}
HARMLESS = ("unlink", "rmdir", "mkdir")
"""What luthier takes away again is no part of the run, and a folder may be there: where that fails, it goes on."""

KILLS = {"before": What.KILL, "in the middle": What.KILL_IN_THE_MIDDLE}
ALL = [
    pytest.param(range(at, AT_MOST, SHARES), id=f"{at} of {SHARES}", marks=pytest.mark.prove)
    for at in range(1, SHARES + 1)
]


@pytest.mark.parametrize("moments", [pytest.param(range(1, AT_MOST, EVERY), id="every 9th"), *ALL])
@pytest.mark.parametrize(
    "what",
    [pytest.param(what, id=name, marks=() if name == "before" else pytest.mark.prove) for name, what in KILLS.items()],
)
def test_a_kill_at_any_moment(what: What, moments: range, small: Small, whole: Whole, tmp_path: Path) -> None:
    run = tmp_path.resolve() / "place" / "run"
    wrong = list[str]()
    for at in moments:
        if at > len(whole.operations) or (what == What.KILL_IN_THE_MIDDLE and whole.operations[at - 1][0] != "write"):
            continue  # only writes have a middle
        emptied(run)
        ended = small.train(run, plan=Plan(what, at))
        assert ended.code == -9, ended.said
        wrong += [f"{at}: {ended.operations[at - 1]}: {why}" for why in gone_on(small, run, whole)]
    assert not wrong, "\n".join(wrong)
    assert max(moments) > len(whole.operations)


@pytest.mark.parametrize("moments", [pytest.param(range(5, AT_MOST, 5 * EVERY), id="every 45th"), *ALL])
@pytest.mark.parametrize(
    "error", ["EIO", *(pytest.param(name, marks=pytest.mark.prove) for name in ("ENOSPC", "EDQUOT"))]
)
def test_an_error_at_any_moment(error: str, moments: range, small: Small, whole: Whole, tmp_path: Path) -> None:
    run, number = tmp_path.resolve() / "place" / "run", (ERRORS | RARER)[error]
    told, wrong = 0, list[str]()
    for at in moments:
        if at > len(whole.operations):
            continue
        emptied(run)
        ended = small.train(run, plan=Plan(What.FAIL_ONCE, at, number))
        name, path = ended.operations[at - 1]
        # By the room that was kept for the manifest; the last thing in writing it is that its folder is synced.
        mended = path.endswith(("/manifest.json", "/run")) or ".luthier-new-manifest" in path
        if ended.code == 0 and (name in HARMLESS or (mended and error != "EIO")):
            wrong += [f"{at}: {name} {path}: {why}" for why in different(run, whole) if ".luthier-" not in why]
        else:
            told += 1
            wrong += [f"{at}: {name} {path}: {why}" for why in told_wrongly(ended, error, run)]
        wrong += [f"{at}: {name} {path}: {why}" for why in gone_on(small, run, whole)]
    assert not wrong, "\n".join(wrong)
    assert told > 3


@pytest.mark.prove
@pytest.mark.parametrize("error", RARER)
def test_a_rarer_error(error: str, small: Small, whole: Whole, tmp_path: Path) -> None:
    test_an_error_at_any_moment(error, range(1 + list(RARER).index(error), AT_MOST, 10), small, whole, tmp_path)


def gone_on(small: Small, run: Path, whole: Whole) -> list[str]:
    """What is wrong when the same command goes on."""
    again = small.train(run, "--resume")
    if again.code:
        return [f"--resume: exit {again.code}: {again.said[-600:]}"]
    left = [path.name for path in run.parent.rglob(".luthier-*")]
    return [*(f"{name} is another" for name in different(run, whole)), *(f"{name} was left" for name in left)]


def told_wrongly(ended: Ended, error: str, run: Path) -> list[str]:
    """Wanted are exit code 3, a message of one screen that names a path and the reason, and the state of a run that ended."""
    message = ended.said[-1500:]
    file = run / "manifest.json"
    state = json.loads(file.read_text())["state"] if file.is_file() else None
    wanted = {
        f"exit {ended.code}": ended.code == 3,
        "a traceback": "Traceback" not in ended.said,
        f"no reason: {message[-300:]}": WORDS[(ERRORS | RARER)[error]] in message,
        f"no path: {message[-300:]}": "/place/" in message,
        f"state {state}": state not in ("running", "trained"),
    }
    return [what for what, is_so in wanted.items() if not is_so]
