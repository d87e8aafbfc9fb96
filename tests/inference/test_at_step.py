"""A checkpoint is taken wherever a run is, and is the run as it was then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from luthier import config
from luthier.errors import UserError
from luthier.inference.opened import open_model
from luthier.runs.at_step import at_step
from luthier.training import run
from tests.helpers.command_line import luthier
from tests.helpers.tiny_models import save_twin

ROWS = [{"prompt": f"Say {number}.", "completion": f"{number}!"} for number in range(12)]
IDS = torch.arange(3, 30)[None]
KINDS = {"lora": [], "pissa": ["init_lora_weights=pissa"], "full": ["tuning=full"]}


def quiet(_text: str) -> None:
    """What is said on the way."""


def made(folder: Path, steps: int, keys: list[str]) -> Path:
    """A run of so many steps, at a rate that does not depend on their number."""
    if not (folder / "model").is_dir():
        save_twin(folder / "model", "llama")
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    out = folder / f"run-{steps}"
    rates = ["lr_scheduler_type=constant", "warmup_steps=0", "learning_rate=1e-2", "global_batch_size=4"]
    data = [f"model={folder / 'model'}", f"data={folder / 'train.jsonl'}", "data.eval=0.2", "dtype=float32"]
    given = [*data, *rates, f"max_steps={steps}", "save_steps=2", *keys, f"output_dir={out}"]
    run.execute(config.load(None, given), say=quiet)
    return out


def logits(target: Path) -> torch.Tensor:
    opened = open_model(str(target), dtype="float32", device=torch.device("cpu"))
    with torch.no_grad():
        found: torch.Tensor = opened.model(IDS).logits
    return found


@pytest.fixture(scope="module", params=["lora", pytest.param("pissa", marks=pytest.mark.prove), "full"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of four steps, and one that ended after two."""
    folder = tmp_path_factory.mktemp(request.param)
    return made(folder, 4, KINDS[request.param]), made(folder, 2, KINDS[request.param])


def test_a_checkpoint_is_the_run_of_that_step(both: tuple[Path, Path]) -> None:
    whole, short = both
    assert torch.equal(logits(whole / "checkpoints" / "step-000004"), logits(whole))
    assert torch.equal(logits(whole / "checkpoints" / "step-000002"), logits(short))
    assert not torch.allclose(logits(short), logits(whole), atol=1e-3)


def test_every_command_takes_one(both: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, short = both
    early = whole / "checkpoints" / "step-000002"
    said = []
    for target in (early, short, whole):
        assert luthier("chat", target, "--prompt", "Say 3.", "--max-new-tokens", 8) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    figures = []
    for target in (early, short):
        assert luthier("eval", target, "--data", whole.parent / "train.jsonl", "--generate", 0, "--json") == 0
        figures.append(json.loads(capsys.readouterr().out)["nll_per_token"])
        assert luthier("compare", target, "--prompt", "Say 3.", "--max-new-tokens", 4, "--json") == 0
        figures.append(json.loads(capsys.readouterr().out)["answers"][0])
    assert figures[:2] == figures[2:]
    assert luthier("merge", early, "-o", tmp_path / "merged", "--dtype", "float32", "--unproven") == 0
    assert torch.allclose(logits(tmp_path / "merged"), logits(short), atol=1e-4)
    if (whole / "adapter").is_dir():
        assert luthier("export", early, "--to", "adapter", "-o", tmp_path / "adapter") == 0
        assert torch.equal(logits(tmp_path / "adapter"), logits(short))


def test_a_run_goes_on_from_one(both: tuple[Path, Path], tmp_path: Path) -> None:
    whole, short = both
    if not (whole / "adapter").is_dir():
        pytest.skip("all weights are its own")
    made_of = []
    for number, target in enumerate((whole / "checkpoints" / "step-000002", short)):
        place = tmp_path / str(number)
        place.mkdir()
        shutil.copytree(whole.parent / "model", place / "model")
        shutil.copy(whole.parent / "train.jsonl", place)
        made_of.append(made(place, 1, [f"tuning.adapter_path={target}"]))
    assert torch.equal(*map(logits, made_of))
    hashes = [json.loads((one / "manifest.json").read_text())["fingerprints"]["adapter"] for one in made_of]
    assert None not in hashes
    assert hashes[0] != hashes[1]


def test_what_is_no_checkpoint_is_told(tmp_path: Path) -> None:
    whole = made(tmp_path, 2, [])
    place = whole / "checkpoints"
    assert at_step(str(whole)) is None
    assert at_step("org/name") is None
    assert at_step(str(tmp_path)) is None
    for target in (place, place / "step-2", place / "step-000004"):
        with pytest.raises(UserError, match="there are: step-000002") as caught:
            open_model(str(target))
        assert caught.value.fix == str(place / "step-000002")
    shutil.copytree(place / "step-000002", place / "step-000004")
    with pytest.raises(UserError, match="it is of step 2"):
        open_model(str(place / "step-000004"))
    shutil.rmtree(whole / "adapter")
    with pytest.raises(UserError, match="no result yet") as caught:
        open_model(str(place / "step-000002"))
    assert luthier(*caught.value.fix.split()[1:]) == 0
    assert logits(place / "step-000002").shape[1] == IDS.shape[1]
