"""40 bad model folders, from the command line: refused before training, exit code, the file or the key, a remedy; nothing
is written. Those that are harmless by design train.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

from luthier.cli import main
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer, twin
from tests.models.bad_folders import ADAPTER, CATEGORIES, WEIGHTS, Canary, Case, canary

COUNTS = {"missing": 6, "damaged": 8, "keys": 4, "tokens": 13, "wrapped": 5, "adapters": 10}
NAMES = [(category, name) for category, cases in CATEGORIES.items() for name in cases]


def test_all_of_them_are_here() -> None:
    assert {category: len(cases) for category, cases in CATEGORIES.items()} == COUNTS
    assert len(NAMES) == sum(COUNTS.values())


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, the same in several files, and an adapter on it."""
    folder = tmp_path_factory.mktemp("folders")
    tiny_llama(folder / "model")
    twin("llama").save_pretrained(folder / "shards", max_shard_size="100KB")
    tiny_tokenizer().save_pretrained(folder / "shards")
    rows = [{"instruction": f"Say {number}", "output": f"number {number}"} for number in range(8)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained = [f"data={folder / 'train.jsonl'}", "max_steps=2", "r=4", f"output_dir={folder / 'run'}", "dtype=float32"]
    assert main(["train", f"model={folder / 'model'}", *trained]) == 0
    return folder


def copy(originals: Path, kind: str, target: Path) -> Path:
    source = originals / "run" / "adapter" if kind == "adapter" else originals / kind
    return Path(shutil.copytree(source, target))


def commands(folder: Path, originals: Path, kind: str, work: Path) -> list[list[str]]:
    """What is tried: training on a model, using an adapter."""
    if kind == "adapter":
        return [
            ["chat", str(folder), "--prompt", "hello", "--max-new-tokens", "2"],
            ["export", str(folder), "--to", "merged", "--output", str(work / "written"), "--unproven"],
        ]
    data = [f"data={originals / 'train.jsonl'}", f"output_dir={work / 'written'}", "max_steps=2", "dtype=float32"]
    return [["train", f"model={folder}", *data]]


@pytest.mark.parametrize(("category", "name"), NAMES)
def test_bad_folder(
    category: str,
    name: str,
    originals: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RUST_BACKTRACE", "0")  # as it is where nobody asked for one
    case: Case = CATEGORIES[category][name]
    folder = copy(originals, case.of, tmp_path / "model")
    case.change(folder)
    for command in commands(folder, originals, case.of, tmp_path):
        capfd.readouterr()
        code = main(command)
        shown = capfd.readouterr().err
        assert code == case.code, shown
        if case.code == 0:
            continue
        assert "Traceback" not in shown
        assert len(shown.splitlines()) <= 30
        for word in (*case.words, "fix:"):
            assert word in shown, shown
        assert os.listdir(tmp_path) == ["model"], "nothing is written, nothing was executed"


# ---------------------------------------------------------------------------
# Pickles: none is ever opened, and each is named
# ---------------------------------------------------------------------------

OF_A_TRAINER = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")
"""What other programs leave beside weights."""


def test_a_canary_that_is_opened_sings(tmp_path: Path) -> None:
    """Else the tests below would prove nothing."""
    pickle.loads(pickle.dumps(Canary(tmp_path / "executed")))  # noqa: S301
    assert (tmp_path / "executed").exists()


def test_pickles_beside_safetensors(originals: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A checkpoint of another program is a model like any other; what it holds beside the weights is left alone."""
    folder = copy(originals, "model", tmp_path / "model")
    for file in ("pytorch_model.bin", *OF_A_TRAINER):
        canary(file)(folder)
    (command,) = commands(folder, originals, "model", tmp_path)
    assert main(command) == 0
    shown = capfd.readouterr().err
    assert all(file in shown for file in ("pytorch_model.bin", *OF_A_TRAINER)), shown
    assert main(["chat", str(tmp_path / "written"), "--prompt", "hello", "--max-new-tokens", "2"]) == 0
    assert sorted(os.listdir(tmp_path)) == ["model", "written"], "nothing was executed"


@pytest.mark.parametrize("command", ["chat", "export"])
def test_a_pickled_adapter(command: str, originals: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = copy(originals, "adapter", tmp_path / "model")
    (folder / ADAPTER).unlink()
    canary("adapter_model.bin")(folder)
    (given,) = (words for words in commands(folder, originals, "adapter", tmp_path) if words[0] == command)
    assert main(given) == 2
    shown = capfd.readouterr().err
    assert "adapter_model.bin" in shown
    assert "fix:" in shown
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("command", ["chat", "export"])
def test_a_pickled_model(command: str, originals: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = copy(originals, "model", tmp_path / "model")
    (folder / WEIGHTS).unlink()
    canary("pytorch_model.bin")(folder)
    (given,) = (words for words in commands(folder, originals, "adapter", tmp_path) if words[0] == command)
    assert main(given) == 2
    shown = capfd.readouterr().err
    assert "pytorch_model.bin" in shown
    assert "--convert" in shown
    assert os.listdir(tmp_path) == ["model"]


def test_pickles_in_a_checkpoint(originals: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Beside a checkpoint's own files they are named and left alone; in the place of one, the checkpoint is damaged."""
    folder = copy(originals, "model", tmp_path / "model")
    (command,) = commands(folder, originals, "model", tmp_path)
    run = tmp_path / "written"
    assert main([*command, "max_steps=3", "save_steps=1"]) == 0
    (run / "manifest.json").write_text((run / "manifest.json").read_text().replace('"finished"', '"stopped"'))
    last, before = run / "checkpoints" / "step-000003", run / "checkpoints" / "step-000002"
    (last / "tensors.safetensors").write_bytes(pickle.dumps(Canary(tmp_path / "executed")))
    for file in OF_A_TRAINER:
        (before / file).write_bytes(pickle.dumps(Canary(tmp_path / "executed")))
    capfd.readouterr()
    assert main([*command, "max_steps=3", "save_steps=1", "--resume"]) == 0
    shown = capfd.readouterr().out
    assert "tensors.safetensors is not what was written" in shown
    assert all(file in shown for file in OF_A_TRAINER), shown
    assert "resumed at step 2" in shown
    assert not (tmp_path / "executed").exists()
