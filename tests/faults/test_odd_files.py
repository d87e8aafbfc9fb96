"""What else may lie in a run's folder (links, copies, damage, somebody's files) is named and passed over, or refused: a resume
never comes to another result, and no file outside is changed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from safetensors.torch import load_file, save_file

from luthier.runs.run_folder import FILES, FOLDERS
from luthier.system.files import sha256
from tests.faults.conftest import Small, Whole, different
from tests.helpers.faults import Plan, What

Outcome = Literal["same", "refused"]
NEWEST, OLDER, NEXT = "checkpoints/step-000004", "checkpoints/step-000002", "checkpoints/step-000006"
TEXT = "somebody's own words\n"


class Place:
    """A run that was killed after its checkpoint of step 4, and a folder of somebody's beside it."""

    def __init__(self, run: Path, outside: Path, other_run: Path) -> None:
        self.run, self.outside, self.other_run = run, outside, other_run
        outside.mkdir()
        (outside / "precious.txt").write_text(TEXT)

    def link(self, name: str) -> None:
        """What has the name is moved outside, and a link leads to it."""
        there, moved = self.run / name, self.outside / name.replace("/", "-")
        if there.exists():
            shutil.move(there, moved)
        elif name in FOLDERS:
            moved.mkdir()
        else:
            moved.write_text(TEXT)
        there.symlink_to(moved)

    def damage(self, name: str, content: bytes = b"") -> None:
        (self.run / name).write_bytes(content)

    def rewrite(self, name: str, change: Callable[[Any], Any]) -> None:
        """Changes a JSON file of a checkpoint, as somebody would who makes its manifest fit."""
        path = self.run / name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
        self.fit(path.parent)

    def fit(self, folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, entry in manifest["files"].items():
            entry |= {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size}
        (folder / "manifest.json").write_text(json.dumps(manifest))

    def tensors(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        file = self.run / NEWEST / "tensors.safetensors"
        save_file(change(load_file(file)), file)
        self.fit(file.parent)

    def manifest(self, **changed: Any) -> None:
        path = self.run / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    def append(self, name: str, content: bytes) -> None:
        self.damage(name, (self.run / name).read_bytes() + content)

    def pipe(self, name: str) -> None:
        (self.run / name).unlink()
        os.mkfifo(self.run / name)

    def replace(self, name: str) -> None:
        shutil.rmtree(self.run / name)
        self.add(name)

    def copy_other(self, name: str, to: str) -> None:
        shutil.rmtree(self.run / to, ignore_errors=True)
        shutil.copytree(self.other_run / name, self.run / to)

    def second_names(self) -> None:
        for path in self.run.iterdir():
            if path.is_file() and not path.name.startswith("."):
                os.link(path, self.outside / path.name)

    def add(self, name: str) -> None:
        (self.run / name).parent.mkdir(parents=True, exist_ok=True)
        (self.run / name).write_text(TEXT)


def _says_step(step: int) -> Callable[[Any], Any]:
    def change(packed: Any) -> Any:
        progress = next(value for key, value in packed["dict"] if key == "progress")
        progress["dict"] = [[key, step if key == "step" else value] for key, value in progress["dict"]]
        return packed

    return change


def _without(key: str) -> Callable[[Any], Any]:
    return lambda packed: {"dict": [pair for pair in packed["dict"] if pair[0] != key]}


ODD: dict[str, tuple[Callable[[Place], object], Outcome]] = {
    **{f"{name} is a link": (lambda at, name=name: at.link(name), "refused") for name in FILES},
    **{f"{name} is a link": (lambda at, name=name: at.link(name), "refused") for name in FOLDERS},
    "metrics.jsonl is a pipe": (lambda at: at.pipe("metrics.jsonl"), "refused"),
    "report.html is a folder": (lambda at: (at.run / "report.html").mkdir(), "refused"),
    "answers.json is a link to nothing": (lambda at: (at.run / "answers.json").symlink_to(at.outside / "new"), "refused"),
    "adapter is a file": (lambda at: at.add("adapter"), "refused"),
    "the lock is a pipe": (lambda at: at.pipe(".luthier-lock"), "refused"),
    "the lock is a link": (lambda at: at.link(".luthier-lock"), "refused"),
    "the lock is somebody's": (lambda at: at.add(".luthier-lock"), "refused"),
    "a .lock of somebody's": (lambda at: at.add(".lock"), "same"),
    "a .manifest.json.tmp of somebody's": (lambda at: at.add(".manifest.json.tmp"), "same"),
    "a .tmp- folder of somebody's": (lambda at: at.add(".tmp-adapter-0123abcd/mine.txt"), "same"),
    "an .old- folder of somebody's": (lambda at: at.add(".old-adapter/mine.txt"), "same"),
    "step-4": (lambda at: shutil.copytree(at.run / NEWEST, at.run / "checkpoints/step-4"), "same"),
    "step-0000004": (lambda at: shutil.copytree(at.run / NEWEST, at.run / "checkpoints/step-0000004"), "same"),
    "a copy beside it": (lambda at: shutil.copytree(at.run / NEWEST, at.run / "checkpoints/step-000004 (copy)"), "same"),
    "a step in other digits": (lambda at: shutil.copytree(at.run / NEWEST, at.run / "checkpoints/step-\u0664"), "same"),
    "a step that is a power": (lambda at: shutil.copytree(at.run / NEWEST, at.run / "checkpoints/step-\u00b2"), "same"),
    "a step below nothing": (lambda at: shutil.copytree(at.run / NEWEST, at.run / "checkpoints/step--00004"), "same"),
    "a file among the checkpoints": (lambda at: at.add("checkpoints/notes.txt"), "same"),
    "a file in the place of a checkpoint": (lambda at: at.add(NEXT), "refused"),
    "a link in the place of a checkpoint": (lambda at: (at.run / NEXT).symlink_to(at.outside), "refused"),
    "the newest is a link": (lambda at: at.link(NEWEST), "refused"),
    "a copy under another step": (lambda at: shutil.copytree(at.run / NEWEST, at.run / "checkpoints/step-000005"), "same"),
    "an older one under a newer step": (lambda at: shutil.copytree(at.run / OLDER, at.run / NEXT), "same"),
    "one of another run, newer": (lambda at: at.copy_other(NEWEST, "checkpoints/step-000005"), "refused"),
    "one of another run in its place": (lambda at: at.copy_other(NEWEST, NEWEST), "refused"),
    "tensors are cut": (lambda at: at.damage(f"{NEWEST}/tensors.safetensors", b"half"), "same"),
    "the state is cut": (lambda at: at.damage(f"{NEWEST}/state.json", b'{"dict": ['), "same"),
    "the state is a list": (lambda at: at.rewrite(f"{NEWEST}/state.json", lambda _: []), "same"),
    "the state is a number": (lambda at: at.rewrite(f"{NEWEST}/state.json", lambda _: 7), "same"),
    "the state is a list of lists": (lambda at: at.rewrite(f"{NEWEST}/state.json", lambda _: {"list": [{"list": []}]}), "same"),
    "the state has no weights": (lambda at: at.rewrite(f"{NEWEST}/state.json", _without("weights")), "same"),
    "the state has no optimizer": (lambda at: at.rewrite(f"{NEWEST}/state.json", _without("optimizer")), "same"),
    "the state says another step": (lambda at: at.rewrite(f"{NEWEST}/state.json", _says_step(1)), "same"),
    "the state says a later step": (lambda at: at.rewrite(f"{NEWEST}/state.json", _says_step(6)), "same"),
    "a tensor is missing": (lambda at: at.tensors(lambda all_: dict(list(all_.items())[1:])), "same"),
    "a tensor has another shape": (lambda at: at.tensors(lambda all_: {**all_, "0": all_["0"][:1].contiguous()}), "same"),
    "no tensors at all": (lambda at: at.tensors(lambda _: {}), "same"),
    "the checkpoint's manifest knows no files": (lambda at: at.damage(f"{NEWEST}/manifest.json", b'{"files": {}, "step": 4}'), "same"),
    "the checkpoint's manifest is a list": (lambda at: at.damage(f"{NEWEST}/manifest.json", b"[]"), "same"),
    "the checkpoint's manifest is missing": (lambda at: (at.run / NEWEST / "manifest.json").unlink(), "same"),
    "the checkpoint is empty": (lambda at: [path.unlink() for path in (at.run / NEWEST).iterdir()], "same"),
    "a file more in the checkpoint": (lambda at: at.add(f"{OLDER}/notes.txt"), "same"),
    "all checkpoints are damaged": (lambda at: [at.damage(f"{name}/state.json") for name in (OLDER, NEWEST)], "refused"),
    "all checkpoints are gone": (lambda at: shutil.rmtree(at.run / "checkpoints"), "same"),
    "the folder of checkpoints is a file": (lambda at: at.replace("checkpoints"), "refused"),
    "metrics are cut in a line": (lambda at: at.append("metrics.jsonl", b'{"step": 5, "lo'), "same"),
    "metrics have somebody's line": (lambda at: at.append("metrics.jsonl", b"\xff\n"), "same"),
    "metrics have a second name": (lambda at: os.link(at.run / "metrics.jsonl", at.outside / "metrics.jsonl"), "same"),
    "all files have second names": (lambda at: at.second_names(), "same"),
    "config.yaml was edited": (lambda at: at.append("config.yaml", b"# mine\n"), "refused"),
    "config.yaml is missing": (lambda at: (at.run / "config.yaml").unlink(), "refused"),
    "the manifest is cut": (lambda at: at.damage("manifest.json", b'{"luthier": "0'), "refused"),
    "the manifest is a list": (lambda at: at.damage("manifest.json", b"[]"), "refused"),
    "the manifest is of a web page": (lambda at: at.damage("manifest.json", b'{"name": "my app"}'), "refused"),
    "the manifest is missing": (lambda at: (at.run / "manifest.json").unlink(), "refused"),
    "the manifest was edited": (lambda at: at.manifest(decisions={"dtype": "bfloat16"}), "refused"),
    "the manifest has no id": (lambda at: at.manifest(id=None), "refused"),
    "the manifest is of another run": (lambda at: shutil.copy(at.other_run / "manifest.json", at.run), "refused"),
    "the manifest says that it is finished": (lambda at: at.manifest(state="finished"), "same"),
    "the manifest says that it did not begin": (lambda at: at.manifest(state="not begun"), "refused"),
}  # fmt: skip


@pytest.fixture(scope="session")
def killed(small: Small, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs that were killed after their checkpoint of step 4, of other seeds."""
    made = []
    for seed in (0, 1):
        first = small.train(tmp_path_factory.mktemp("first").resolve() / "run", f"seed={seed}")
        run = tmp_path_factory.mktemp("killed").resolve() / "run"
        at = next(n for n, (name, path) in enumerate(first.operations, 1) if name == "rename" and path.endswith(NEWEST))
        assert small.train(run, f"seed={seed}", plan=Plan(What.KILL, at + 3)).code == -9
        assert (run / NEWEST).is_dir()
        made.append(run)
    return made[0], made[1]


def snapshot(folder: Path) -> dict[str, bytes | str]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
        if not path.is_fifo()
    }


def test_a_result_that_was_lost_is_written_again(small: Small, whole: Whole, tmp_path: Path) -> None:
    """And said, as at the end of a run; where there is nothing to do, nothing is touched."""
    run = tmp_path.resolve() / "place" / "run"
    shutil.copytree(whole.run, run)
    before = snapshot(run)
    assert "nothing to do" in small.train(run, "--resume").said
    assert snapshot(run) == before
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"cut")
    again = small.train(run, "--resume")
    assert "it is written again" in again.said
    assert "luthier chat" in again.said
    assert not different(run, whole)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if at % 10 == 0 else pytest.mark.prove) for at, name in enumerate(ODD)]
)
def test_what_else_lies_in_the_folder(
    name: str, small: Small, whole: Whole, killed: tuple[Path, Path], tmp_path: Path
) -> None:
    place = Place(tmp_path.resolve() / "place" / "run", tmp_path.resolve() / "outside", killed[1])
    shutil.copytree(killed[0], place.run, symlinks=True)
    change, outcome = ODD[name]
    change(place)
    outside, before = snapshot(place.outside), snapshot(place.run)
    ended = small.train(place.run, "--resume")
    assert "Traceback" not in ended.said
    assert "bug" not in ended.said
    assert snapshot(place.outside) == outside
    if outcome == "refused":
        assert ended.code == 2, ended.said
        after = snapshot(place.run)
        changed = {name for name in before if after.get(name) != before[name] and ".luthier-" not in name}
        assert changed <= {"manifest.json"}, "the state at most"
        return
    assert ended.code == 0, ended.said
    theirs = {key for key, value in snapshot(place.run).items() if value == TEXT.encode()}
    strange = {
        one for one in different(place.run, whole) if one in before and before[one] == snapshot(place.run).get(one)
    }
    others = {one for one in strange if "/step-" in one or one.startswith(".") or one in theirs}
    assert set(different(place.run, whole)) == others
