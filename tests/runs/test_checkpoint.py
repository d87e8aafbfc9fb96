"""Atomic save, verified load: every kind of damage to every file is named, and the next older checkpoint is used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import EnvironmentProblem
from luthier.runs import checkpoint
from luthier.runs.checkpoint import STATE, TENSORS, Checkpoints, pack, unpack
from luthier.system import files
from luthier.system.files import MANIFEST, verify, write_folder

FILES = [TENSORS, STATE, MANIFEST]
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text()
    | st.integers(0, 5).map(lambda n: torch.arange(n))
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers() | st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)


def equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and list(one) == list(other)
            and all(equal(value, other[key]) for key, value in one.items())
        )
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


@given(trees)
def test_any_tree_comes_back(tree: object) -> None:
    tensors: dict[str, torch.Tensor] = {}
    assert equal(unpack(pack(tree, tensors), tensors), tree)


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="set"):
        pack({"x": {1, 2}}, {})


def saved(folder: Path, steps: int = 2, keep: int = 3) -> Checkpoints:
    checkpoints = Checkpoints(folder / "checkpoints", keep)
    for step in range(1, steps + 1):
        checkpoints.save(step, {"w": torch.full((3,), float(step)), "step": step}, {"note": "x"}, None)
    return checkpoints


def test_saved_is_loaded(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    assert equal(checkpoints.load(2), {"w": torch.full((3,), 2.0), "step": 2})
    assert verify(checkpoints.path(2)) is None


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "two bytes short": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "first bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "last bit": lambda path: path.write_bytes(
        path.read_bytes()[:-2] + bytes([path.read_bytes()[-2] ^ 1]) + path.read_bytes()[-1:]
    ),
    "gone": lambda path: path.unlink(),
    "older copy": lambda path: path.write_bytes(
        (path.parent.parent / "step-000001" / path.name).read_bytes() + (b" " if path.name == MANIFEST else b"")
    ),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_older_one_used(kind: str, name: str, tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    DAMAGE[kind](checkpoints.path(2) / name)
    wrong = checkpoints.wrong_with(2)
    assert wrong is not None
    if not (kind == "older copy" and name == MANIFEST):  # then every other file is what was not written
        assert name in wrong
    assert checkpoints.wrong_with(1) is None


def newest(checkpoints: Checkpoints) -> int:
    return next(step for step in reversed(checkpoints.steps()) if checkpoints.wrong_with(step) is None)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    for step in range(1, 7):
        checkpoints.save(step, {"step": step}, {}, best_step=2 if step >= 2 else 1)
    assert checkpoints.steps() == [2, 5, 6]


class _Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("target", ["fresh", "over a damaged one"])
def test_killed_at_every_operation_of_a_save(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the k-th write, fsync or rename, for every k: the old state or the new one, never none, never a mixture."""
    calls = 0
    stop_at = 0

    def counted(function: object) -> object:
        def wrapper(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise _Killed
            return function(*args, **kwargs)  # type: ignore[operator]

        return wrapper

    with monkeypatch.context() as patch:
        for module, name in (
            (checkpoint, "save_file"),
            (files, "fsync"),
            (files, "sha256"),
        ):
            patch.setattr(module, name, counted(getattr(module, name)))
        patch.setattr(Path, "rename", counted(Path.rename))
        patch.setattr(Path, "mkdir", counted(Path.mkdir))
        for stop_at in range(1, 40):
            folder = tmp_path / str(stop_at)
            calls = -1000
            checkpoints = saved(folder, steps=1)
            if target == "over a damaged one":
                checkpoints.save(2, {"w": torch.full((3,), 5.0), "step": 2}, {}, None)
                (checkpoints.path(2) / TENSORS).write_bytes(b"")
            calls = 0
            try:
                checkpoints.save(2, {"w": torch.full((3,), 9.0), "step": 2}, {}, None)
            except _Killed:
                calls = -1000
                step = newest(checkpoints)
                value = checkpoints.load(step)["w"][0]
                assert value in (1.0, 9.0)
                assert step == 1 or value == 9.0
            else:
                break
        assert stop_at > 8, "there were operations to stop at"
        assert calls < stop_at


def test_a_full_disk_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, steps=1)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(EnvironmentProblem, match="disk is full"):
        checkpoints.save(2, {"w": torch.zeros(2)}, {}, None)
    assert checkpoints.steps() == [1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; run as another user to test a read-only folder")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        write_folder(tmp_path / "x", lambda folder: None, {})
    tmp_path.chmod(0o700)


def test_what_does_not_read_back_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, steps=1)
    monkeypatch.setattr(checkpoint, "verify", lambda folder: "tensors.safetensors is not what was written")
    with pytest.raises(EnvironmentProblem, match="read back"):
        checkpoints.save(2, {"w": torch.zeros(2)}, {}, None)
