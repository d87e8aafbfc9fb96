"""Whole runs that learn from a teacher: which teachers fit, what is kept of them, killed and resumed to the same bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier import config
from luthier.data import early_check
from luthier.errors import UserError
from luthier.inference import opened
from luthier.models.reading import load_tokenizer
from luthier.reporting.run.page import write_report
from luthier.system.paths import cache_dir
from luthier.training import run, teacher
from tests.helpers.killing import outcome, write_config
from tests.helpers.tiny_models import save_twin, tiny_llama

FIGURES = ("loss", "forward_kl", "jsd", "teacher_nll", "agreement", "eval_loss", "eval_jsd", "eval_teacher_nll")


def taught(folder: Path, keys: str = "", name: str = "teacher") -> Path:
    """A configuration of a small run, with a teacher of another architecture beside its model."""
    path = write_config(folder)
    save_twin(folder / "teacher", "qwen3", seed=5)
    objective = f"objective: {{kind: distill, teacher: {folder / name}{keys}}}"
    path.write_text(path.read_text().replace("objective: sft", objective))
    return path


def trained(
    config_file: Path, folder: Path, *overrides: str, resume: bool = False
) -> tuple[dict[str, bytes], list[str]]:
    """What a run made, and what it said."""
    said: list[str] = []
    given = config.load(config_file, [f"output_dir={folder}", "max_steps=3", *overrides])
    run.execute(given, say=said.append, resume=resume)
    return outcome(folder), said


def figures(folder: Path) -> dict[tuple[int, str], float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {(line["step"], name): line[name] for line in lines for name in FIGURES if name in line}


def refused(config_file: Path, folder: Path, words: str, *overrides: str) -> UserError:
    """The error of a start that writes nothing."""
    with pytest.raises(UserError, match=words) as error:
        trained(config_file, folder, *overrides)
    assert not (folder / "config.yaml").exists()
    return error.value


def test_the_likeliest_tokens_are_kept_for_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, and without the teacher."""
    config_file = taught(tmp_path, ", top_k: 8, divergence: jsd")
    first, said = trained(config_file, tmp_path / "first")
    assert sum("computed once" in line for line in said) == 2
    with monkeypatch.context() as absent:
        absent.setattr(teacher, "open_model", lambda *_args, **_keys: pytest.fail("the teacher was loaded"))
        again, said = trained(config_file, tmp_path / "again")
    assert not any("computed once" in line for line in said)
    assert again == first
    page = write_report(tmp_path / "first").read_text()
    assert "Likeliest token as the teacher" in page
    assert "by model and teacher" in page


@pytest.mark.prove
def test_what_is_kept_and_damaged_is_computed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And asked in every step the teacher says the same."""
    config_file = taught(tmp_path, ", top_k: 8, divergence: jsd")
    first, _ = trained(config_file, tmp_path / "first")
    for kept in (cache_dir() / "teacher").iterdir():
        content = bytearray(kept.read_bytes())
        content[len(content) // 2] ^= 1
        kept.write_bytes(content)
    mended, said = trained(config_file, tmp_path / "mended")
    assert sum("computed once" in line for line in said) == 2
    assert mended == first
    monkeypatch.setattr(run, "keep_teacher", lambda *_: None)
    trained(config_file, tmp_path / "asked")
    assert figures(tmp_path / "asked") == pytest.approx(figures(tmp_path / "first"), rel=1e-4, abs=1e-7)


@pytest.mark.prove
def test_another_question_is_not_answered_from_what_is_kept(tmp_path: Path) -> None:
    config_file = taught(tmp_path, ", top_k: 8")
    trained(config_file, tmp_path / "first")
    save_twin(tmp_path / "other", "qwen3", seed=6)
    for number, change in enumerate(("objective.top_k=7", "objective.temperature=2.0", "objective.teacher=other")):
        change = change.replace("=other", f"={tmp_path / 'other'}")
        _, said = trained(config_file, tmp_path / str(number), change)
        assert sum("computed once" in line for line in said) == 2
    _, said = trained(config_file, tmp_path / "same", "objective.divergence=reverse")  # of the same distributions
    assert not any("computed once" in line for line in said)


def test_from_itself_it_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a teacher that is not what its files say is found before the first update."""
    config_file = taught(tmp_path, name="model")
    _, said = trained(config_file, tmp_path / "base", "lora_dropout=0.0")
    assert any("what the run begins with" in line for line in said)
    assert figures(tmp_path / "base")[1, "loss"] == pytest.approx(0.0, abs=1e-6)

    def spoilt(*args: Any, **keys: Any) -> opened.Opened:
        found = opened.open_model(*args, **keys)
        with torch.no_grad():
            found.model.lm_head.weight.mul_(3)
        return found

    monkeypatch.setattr(teacher, "open_model", spoilt)
    with pytest.raises(
        UserError, match=r"forward_kl is 0\.\d+ before anything was learned, and must be 0; nothing was"
    ):
        trained(config_file, tmp_path / "spoilt")
    assert not (tmp_path / "spoilt" / "checkpoints").exists()


@pytest.mark.prove
@pytest.mark.parametrize(
    "tuning", ["full", "freeze", "{kind: lora, init_lora_weights: pissa}", "{kind: lora, use_dora: true}"]
)
def test_however_it_begins(tuning: str, tmp_path: Path) -> None:
    config_file = taught(tmp_path, name="model")
    _, said = trained(config_file, tmp_path / "out", f"tuning={tuning}")
    assert any("what the run begins with" in line for line in said)
    assert figures(tmp_path / "out")[1, "loss"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.prove
def test_from_the_run_that_is_gone_on_from(tmp_path: Path) -> None:
    config_file = taught(tmp_path, name="run")
    trained(config_file, tmp_path / "run", "objective=sft", "learning_rate=1e-2")
    goes_on = "tuning={kind: lora, adapter_path: " + str(tmp_path / "run") + "}"
    _, said = trained(config_file, tmp_path / "on", goes_on, "lora_dropout=0.0")
    assert any("what the run begins with" in line for line in said)
    assert figures(tmp_path / "on")[1, "loss"] == pytest.approx(0.0, abs=1e-6)
    _, said = trained(config_file, tmp_path / "from")  # a tuned teacher, and its base as the student
    assert not any("what the run begins with" in line for line in said)
    assert figures(tmp_path / "from")[1, "loss"] > 1e-5


@pytest.mark.prove
def test_a_checkpoint_is_a_teacher(tmp_path: Path) -> None:
    config_file = taught(tmp_path, name="run/checkpoints/step-000002")
    trained(config_file, tmp_path / "run", "objective=sft", "learning_rate=1e-2", "save_steps=2")
    trained(config_file, tmp_path / "of-checkpoint")
    trained(config_file, tmp_path / "of-run", f"objective.teacher={tmp_path / 'run'}")
    early, late = (figures(tmp_path / name)[1, "teacher_nll"] for name in ("of-checkpoint", "of-run"))
    assert early != late
    trained(config_file, tmp_path / "run2", "objective=sft", "tuning=full", "save_steps=2")
    of_full = [f"objective.teacher={tmp_path / 'run2/checkpoints/step-000002'}", "objective.teacher_quantization=nf4"]
    refused(config_file, tmp_path / "held", r"has weights of its own[\s\S]*luthier merge", *of_full)


@pytest.mark.prove
def test_a_teacher_in_fewer_bits(tmp_path: Path) -> None:
    """Also one whose adapter was trained on such a base, which is held as it was then and not otherwise."""
    config_file = taught(tmp_path)
    trained(config_file, tmp_path / "plain")
    _, said = trained(config_file, tmp_path / "held", "objective.teacher_quantization=nf4")
    assert any("held in nf4" in line for line in said)
    plain, held = (figures(tmp_path / name)[1, "teacher_nll"] for name in ("plain", "held"))
    assert held != plain
    assert held == pytest.approx(plain, rel=0.05)
    trained(config_file, tmp_path / "run", "objective=sft", "model.quantization=nf4", "tuning.lora_dropout=0.0")
    of_run = [f"objective.teacher={tmp_path / 'run'}"]
    _, said = trained(config_file, tmp_path / "of-run", *of_run)
    assert any("held in nf4" in line for line in said)
    words = r"objective\.teacher: .*the adapter was trained on a base held in nf4"
    refused(config_file, tmp_path / "other", words, *of_run, "objective.teacher_quantization=int8")


def with_tokens(folder: Path, *tokens: str) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(folder)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    """Both are named, and nothing is written. Rows of the embeddings beyond the tokens may differ, and so may tokens that were added
    and that no row has."""
    config_file = taught(tmp_path)
    vocabulary = tmp_path / "teacher" / "tokenizer.json"
    tree = json.loads(vocabulary.read_text())
    words = tree["model"]["vocab"]
    one, other = sorted(words, key=words.get)[300:302]
    words[one], words[other] = words[other], words[one]
    vocabulary.write_text(json.dumps(tree))
    error = refused(
        config_file, tmp_path / "out", f"{tmp_path}/teacher has another tokenizer than {tmp_path}/model: id 300"
    )
    assert "2 ids of" in error.found
    shutil.rmtree(tmp_path / "teacher")
    save_twin(tmp_path / "teacher", "qwen3", seed=5, vocab_size=600)
    with_tokens(tmp_path / "teacher", "<|tool|>")
    trained(config_file, tmp_path / "larger")


def test_a_new_token_that_the_data_have_is_refused(tmp_path: Path) -> None:
    config_file = taught(tmp_path)
    refused(config_file, tmp_path / "out", "no token there, and 'luthier' here", "data.add_tokens=[luthier]")
    trained(config_file, tmp_path / "unused", "data.add_tokens=['<|never|>']")


def test_a_teacher_that_cannot_read_the_rows_is_refused(tmp_path: Path) -> None:
    config_file = taught(tmp_path)
    save_twin(tmp_path / "teacher", "qwen3", seed=5, max_position_embeddings=16)
    error = refused(config_file, tmp_path / "out", "reads at most 16 tokens, the longest row has")
    assert error.fix == "data.max_length=16 data.on_long_row=truncate"


def test_no_such_teacher(tmp_path: Path) -> None:
    config_file = taught(tmp_path)
    error = refused(config_file, tmp_path / "out", "objective.teacher", f"objective.teacher={tmp_path / 'none'}")
    assert "model=" not in error.fix
    with pytest.raises(UserError, match=r"objective\.teacher: model") as early:  # and before torch is imported
        early_check.check(config.load(config_file, [f"objective.teacher={tmp_path / 'none'}", "output_dir=out"]))
    assert early.value.fix == error.fix


def test_another_teacher_under_the_same_name_ends_a_resume(tmp_path: Path) -> None:
    config_file = taught(tmp_path)
    trained(config_file, tmp_path / "out")
    (tmp_path / "out" / "adapter" / "adapter_model.safetensors").unlink()  # it is to be made again
    tiny_llama(tmp_path / "teacher", seed=9)
    with pytest.raises(UserError, match="the teacher changed since the run began"):
        trained(config_file, tmp_path / "out", resume=True)
