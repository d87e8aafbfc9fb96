"""Every file in examples/ is run: a few steps of its own recipe, on a tiny model and a few rows of its kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier import config
from luthier.api import Run
from luthier.training import run
from tests.helpers.tiny_models import tiny_llama

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
ROWS = [{"instruction": f"What is {n} and {n}?", "input": "", "output": f"It is {2 * n}."} for n in range(200)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("examples") / "model", max_position_embeddings=1024)


@pytest.mark.prove
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_trains(path: Path, model: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(ROWS), encoding="utf-8")
    overrides = [f"data.train={data}", f"model.path={model}", "max_steps=3", f"output_dir={tmp_path / 'run'}"]
    finished = run.execute(config.load(path, overrides), say=lambda text: None)
    assert [line["step"] for line in Run(finished).metrics if "loss" in line] == [1, 2, 3]
    assert (finished / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.prove
@pytest.mark.parametrize(
    ("example", "file"), [("alpaca.yaml", "alpaca_en_demo.json"), ("huanhuan.yaml", "huanhuan.json")]
)
def test_example_reads_its_real_data(example: str, file: str, model: Path, tmp_path: Path) -> None:
    """All rows of the data set that the recipe was written for are read, and one step is trained."""
    data = ROOT.parent / "shared" / "data" / file
    if not data.is_file():
        pytest.skip(f"{file} is no part of the project; put it at ../shared/data/ beside it to run this test")
    overrides = [
        f"data.train={data}",
        f"model.path={model}",
        "max_steps=1",
        f"output_dir={tmp_path / 'run'}",
        "on_long_row=drop",
    ]
    finished = run.execute(
        config.load(ROOT / "examples" / example, [*overrides, "on_bad_row=drop"]), say=lambda text: None
    )
    ledger = json.loads((finished / "ledger.json").read_text(encoding="utf-8"))
    assert ledger["rows_in"] == len(json.loads(data.read_text(encoding="utf-8")))
    assert ledger["rows_trained"] + ledger["rows_held_out"] > 0
