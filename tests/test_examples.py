"""Every file in examples/ is run: a few steps of its own recipe, on a tiny model and a few rows of its kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier import config
from luthier.api import Run
from tests.helpers.command_line import luthier
from tests.helpers.processes import ENVIRONMENT
from tests.helpers.tiny_models import tiny_llama

ROOT = Path(__file__).parent.parent
FOLDERS = [ROOT / "examples", *(ROOT / "examples" / name for name in ("preferences", "distillation"))]
EXAMPLES = sorted(path for folder in FOLDERS for path in folder.glob("*.yaml"))
ANSWERS = [{"instruction": f"What is {n} and {n}?", "input": "", "output": f"It is {2 * n}."} for n in range(200)]
PAIRS = [
    {"prompt": row["instruction"], "chosen": row["output"], "rejected": "I do not know that."} for row in ANSWERS[:50]
]
JUDGED = [
    {"prompt": pair["prompt"], "completion": pair[name], "label": name == "chosen"}
    for pair in PAIRS
    for name in ("chosen", "rejected")
]
ROWS = {"alpaca": ANSWERS, "huanhuan": ANSWERS, "distill": ANSWERS, "kto": JUDGED}
"""name of an example -> rows of its kind; else pairs"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("examples") / "model", max_position_embeddings=1024)


@pytest.mark.prove
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_trains(path: Path, model: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(ROWS.get(path.stem, PAIRS)), encoding="utf-8")
    finished = tmp_path / "run"
    given = [f"data.train={data}", f"model.path={model}", "max_steps=3", f"output_dir={finished}"]
    given += [f"objective.teacher={model}"] if "teacher:" in path.read_text(encoding="utf-8") else []
    assert luthier("train", path, *given) == 0
    assert [line["step"] for line in Run(finished).metrics if "loss" in line] == [1, 2, 3]
    assert [*finished.glob("adapter/adapter_model.safetensors"), *finished.glob("model/model.safetensors")]


@pytest.mark.prove
@pytest.mark.parametrize(
    ("example", "file"), [("alpaca.yaml", "alpaca_en_demo.json"), ("huanhuan.yaml", "huanhuan.json")]
)
def test_example_reads_its_real_data(example: str, file: str, model: Path, tmp_path: Path) -> None:
    """All rows of the data set that the recipe was written for are read, and one step is trained."""
    data = ROOT.parent / "shared" / "data" / file
    if not data.is_file():
        pytest.skip(f"{file} is no part of the project; put it at ../shared/data/ beside it to run this test")
    finished = tmp_path / "run"
    overrides = [f"data.train={data}", f"model.path={model}", f"output_dir={finished}"]
    overrides += ["max_steps=1", "on_long_row=drop", "on_bad_row=drop"]
    assert luthier("train", ROOT / "examples" / example, *overrides) == 0
    ledger = json.loads((finished / "ledger.json").read_text(encoding="utf-8"))
    assert ledger["rows_in"] == len(json.loads(data.read_text(encoding="utf-8")))
    assert ledger["rows_trained"] + ledger["rows_held_out"] > 0


@pytest.mark.prove
def test_the_chain_of_three_runs(model: Path, tmp_path: Path) -> None:
    """The second and the third go on from the first."""
    answers = [{"prompt": row["instruction"], "completion": row["output"]} for row in ANSWERS]
    for name, rows in {"answers": answers, "pairs": PAIRS}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    script = ROOT / "examples" / "preferences" / "chain.sh"
    environment = {
        **os.environ,
        **ENVIRONMENT,
        "MODEL": str(model),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", script, "answers.jsonl", "pairs.jsonl", "chain", "max_steps=2"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "of pairs" in done.stdout
    for name in ("reward", "dpo"):
        assert any("loss" in line for line in Run(tmp_path / "chain" / name).metrics)
    assert config.load(tmp_path / "chain" / "dpo" / "config.yaml").model.path == str(model)
