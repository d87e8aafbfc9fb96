"""S13, S15: data are read and never run, and what stands in rows stays in the files that are made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.config import DataFile
from luthier.data.readers import hub_data
from luthier.errors import LuthierError
from tests.helpers.command_line import luthier as command
from tests.helpers.tiny_models import tiny_llama
from tests.security.code import calls

PRIVATE = "the patient's number is 4711-0815, and her name is Erika Mustermann"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set with a script of its own, as hubs once ran them."""
    place = tmp_path / "rows"
    place.mkdir()
    (place / "train.jsonl").write_text(
        "".join(json.dumps({"instruction": f"Say {n}", "output": f"{n}"}) + "\n" for n in range(4))
    )
    script = f"from pathlib import Path\nPath({str(tmp_path / 'executed')!r}).touch()\n"
    for name in ("rows.py", "dataset.py", "train.py", "__init__.py", "setup.py"):
        (place / name).write_text(script)
    return place


@pytest.mark.prove
def test_s13_a_script_beside_data_is_not_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(tmp_path / "model")
    monkeypatch.chdir(folder)
    assert command("data", f"model={model}", f"data={folder}") == 0
    for name in (str(folder), f"{folder}/rows.py", f"hf:{folder}"):
        try:
            hub_data.huggingface(DataFile(path=name, split="train"))
        except LuthierError:
            continue
    assert not (tmp_path / "executed").exists()


def test_s13_no_call_trusts_a_data_set() -> None:
    found = calls("load_dataset", "load_dataset_builder")
    assert found
    assert not [file for file, call in found if "trust_remote_code" in {keyword.arg for keyword in call.keywords}]


@pytest.mark.prove
def test_s15_rows_are_not_printed_nor_kept_in_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Good rows and bad ones; beyond the 80 characters that an error may show of a value nothing is seen, and a run keeps whole rows only
    where it says so: rejected.jsonl, and the answers to prompts that the user gave."""
    model, secret = tiny_llama(tmp_path / "model"), "x" * 100 + PRIVATE
    rows = [{"instruction": f"{n}: {secret}", "output": f"{secret} {n}"} for n in range(8)]
    bad = [
        {"instruction": secret, "output": {"deep": secret}},
        {"instruction": secret, "output": ""},
        {"instruction": secret},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *bad]))
    run = tmp_path / "run"
    given = [
        f"model={model}",
        f"data={tmp_path / 'train.jsonl'}",
        f"output_dir={run}",
        "max_steps=2",
        "save_steps=1",
        "max_length=256",
    ]
    given.append("report_to=[tensorboard]")
    assert command("train", *given) == 2
    assert command("train", *given, "data.on_bad_row=drop") in (0, 2)
    shown = "".join(capfd.readouterr())
    assert PRIVATE not in shown
    keeps = {run / "rejected.jsonl"}
    files = [path for path in run.rglob("*") if path.is_file() and path not in keeps]
    assert not [str(path) for path in files if PRIVATE.encode() in path.read_bytes()]
