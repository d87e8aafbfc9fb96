"""`data.add_tokens`: the tokenizer reads them whole, their rows are trained, saved, merged and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier import config
from luthier.cli import main
from luthier.errors import UserError
from luthier.inference import verified_export
from luthier.inference.opened import open_model
from luthier.models.adapters import new_tokens
from luthier.models.reading import add_tokens
from luthier.training import run
from tests.helpers.tiny_models import save_twin, tiny_tokenizer

FIRST, SECOND = 457, 458
"""The next ids of the tiny tokenizer."""

ROWS = [{"prompt": f"<violin> {number}.", "completion": f"{number} <lute>!"} for number in range(12)]


def trained(folder: Path, tuning: str, tied: bool, rows: int | None = None, tokens: str = "[<violin>, <lute>]") -> Path:
    """Of a model with a row for each old token; or, where the head has its own weight, with unused rows as large ones have.

    `rows`: another number of them."""
    save_twin(folder / "model", "llama", tie_word_embeddings=tied, vocab_size=rows or (FIRST if tied else 512))
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    keys = [f"model={folder / 'model'}", f"data={folder / 'train.jsonl'}", f"output_dir={folder / 'run'}"]
    keys += [f"data.add_tokens={tokens}", f"tuning={tuning}", "max_steps=3", "learning_rate=1e-2"]
    run.execute(config.load(None, [*keys, "dtype=float32"]), say=lambda text: None)
    return folder / "run"


@pytest.fixture(scope="module")
def spare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained new tokens, on a model with unused rows."""
    return trained(tmp_path_factory.mktemp("spare"), "lora", False).parent


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([[5, FIRST, 7, SECOND, 9]])).logits
    return found


@pytest.mark.prove
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("tuning", ["lora", "{kind: lora, modules_to_save: [embed_tokens, lm_head]}", "full"])
def test_they_are_trained_saved_and_read_back(tmp_path: Path, tuning: str, tied: bool) -> None:
    folder = trained(tmp_path, tuning, tied)
    result = folder / ("model" if tuning == "full" else "adapter")
    tokenizer = AutoTokenizer.from_pretrained(result)
    assert tokenizer.convert_tokens_to_ids(["<violin>", "<lute>"]) == [FIRST, SECOND]
    assert SECOND in tokenizer("1 <lute>!")["input_ids"]
    opened = open_model(str(folder), dtype="float32", device=torch.device("cpu"))
    wanted = logits(opened.model)
    assert wanted.shape[-1] == (SECOND + 1 if tied else 512)
    assert not torch.equal(wanted[0, 1], wanted[0, 3])
    verified_export.export(str(folder), "merged", tmp_path / "merged", say=lambda text: None, unproven=True)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(plain), wanted, atol=1e-4, rtol=0)
    assert (plain.get_output_embeddings().weight is plain.get_input_embeddings().weight) == tied
    if tuning != "full":
        verified_export.export(str(folder), "adapter", tmp_path / "copy", say=lambda text: None)


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_new_rows_move(tmp_path: Path, tied: bool) -> None:
    folder = trained(tmp_path, "lora", tied)
    stored = json.loads((folder / "manifest.json").read_text())["trained_tensors"]
    assert sum("trainable_tokens_delta" in name for name in stored) == (1 if tied else 2)
    opened = open_model(str(folder), dtype="float32", device=torch.device("cpu"))
    merged = opened.model.merge_and_unload()
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "model").get_input_embeddings().weight
    after = merged.get_input_embeddings().weight
    assert torch.equal(after[:FIRST], before[:FIRST])
    for row in (FIRST, SECOND):
        start = before.mean(0) if tied else before[row]
        assert float((after[row] - start).abs().max()) > 1e-3


def test_a_run_that_goes_on_has_them_too(tmp_path: Path) -> None:
    folder = trained(tmp_path, "lora", True)
    keys = [f"model={tmp_path / 'model'}", f"data={tmp_path / 'train.jsonl'}", f"adapter_path={folder}", "max_steps=1"]
    keys += ["dtype=float32", f"output_dir={tmp_path / 'next'}"]
    with pytest.raises(UserError, match="was trained with new tokens"):
        run.execute(config.load(None, keys), say=lambda text: None)
    run.execute(config.load(None, [*keys, "data.add_tokens=[<violin>, <lute>]"]), say=lambda text: None)
    assert "<lute>" in AutoTokenizer.from_pretrained(tmp_path / "next" / "adapter").get_vocab()


@pytest.mark.parametrize(
    ("tokens", "said", "fix"),
    [
        ("[<violin>]", r"new tokens, of which data\.add_tokens lacks '<lute>'", '["<violin>", "<lute>"]'),
        ("[<lute>, <violin>]", "in another order: '<violin>' was 457 and is 458", '["<violin>", "<lute>"]'),
        ("[<drum>, <violin>, <lute>]", "in another order", '["<violin>", "<lute>", "<drum>"]'),
        ("[<violin>, <lute>, <drum>]", "does not train the row of '<drum>'", "leave '<drum>' out"),
    ],
)
def test_other_tokens_than_the_adapter_knows_are_refused(
    spare: Path, tmp_path: Path, tokens: str, said: str, fix: str
) -> None:
    """Where the embeddings have rows to spare, every shape fits."""
    with pytest.raises(UserError, match=said) as caught:
        run.execute(config.load(None, [*goes_on(spare, tmp_path), f"data.add_tokens={tokens}"]), say=lambda text: None)
    assert fix in str(caught.value)
    assert not (tmp_path / "next").exists()


def goes_on(spare: Path, place: Path, run_name: str = "run") -> list[str]:
    keys = [f"model={spare / 'model'}", f"data={spare / 'train.jsonl'}", f"adapter_path={spare / run_name}"]
    return [*keys, "max_steps=1", "dtype=float32", f"output_dir={place / 'next'}"]


def test_the_same_tokens_go_on_and_so_does_their_record(spare: Path, tmp_path: Path) -> None:
    run.execute(
        config.load(None, [*goes_on(spare, tmp_path), "data.add_tokens=[<violin>, <lute>]"]), say=lambda text: None
    )
    assert new_tokens(tmp_path / "next" / "adapter") == {"<violin>": FIRST, "<lute>": SECOND}


def test_an_adapter_without_new_tokens_learns_none_later(spare: Path, tmp_path: Path) -> None:
    keys = [f"model={spare / 'model'}", f"data={spare / 'train.jsonl'}", "max_steps=1", "dtype=float32"]
    run.execute(config.load(None, [*keys, f"output_dir={tmp_path / 'plain'}"]), say=lambda text: None)
    keys += [f"adapter_path={tmp_path / 'plain'}", "data.add_tokens=[<violin>]", f"output_dir={tmp_path / 'next'}"]
    with pytest.raises(UserError, match="the adapter to go on from does not train the row of '<violin>'"):
        run.execute(config.load(None, keys), say=lambda text: None)


@pytest.mark.prove
def test_one_token_more_is_learned_where_all_rows_are_trained(tmp_path: Path) -> None:
    folder = trained(tmp_path, "{kind: lora, modules_to_save: [embed_tokens, lm_head]}", False)
    given = [*goes_on(tmp_path, tmp_path, folder.name), "data.add_tokens=[<violin>, <lute>, <drum>]"]
    run.execute(config.load(None, given), say=lambda text: None)
    assert list(new_tokens(tmp_path / "next" / "adapter")) == ["<violin>", "<lute>", "<drum>"]


@pytest.mark.parametrize(
    ("tuning", "tokens"),
    [
        ("{kind: lora, modules_to_save: [embed_tokens, lm_head]}", "[<violin>, <lute>]"),
        ("{kind: lora, modules_to_save: [embed_tokens], target_modules: [q_proj, lm_head]}", "[]"),
    ],
)
def test_one_token_more_makes_the_copies_of_an_adapter_larger(tmp_path: Path, tuning: str, tokens: str) -> None:
    """Where the model has no rows to spare. The new row is the mean of what the adapter has for the others."""
    folder = trained(tmp_path, tuning, False, FIRST, tokens)
    more = "[<violin>, <lute>, <drum>]" if tokens != "[]" else "[<drum>]"
    given = [*goes_on(tmp_path, tmp_path, folder.name), f"data.add_tokens={more}", "learning_rate=1e-9"]
    run.execute(config.load(None, given), say=lambda text: None)
    before, after = (
        load_file(place / "adapter" / "adapter_model.safetensors") for place in (folder, tmp_path / "next")
    )
    larger = [name for name in before if before[name].shape != after[name].shape]
    assert len(larger) == 2
    for name in larger:
        assert after[name].shape[0] == before[name].shape[0] + 1
        torch.testing.assert_close(after[name][:-1], before[name])
        torch.testing.assert_close(after[name][-1], before[name].mean(0))


def test_rows_of_another_number_are_named_as_such(tmp_path: Path) -> None:
    """Of an adapter that does not say how many rows its base had."""
    folder = trained(tmp_path, "{kind: lora, modules_to_save: [embed_tokens, lm_head]}", False, rows=FIRST)
    (folder / "adapter" / "luthier.json").unlink()
    given = [*goes_on(tmp_path, tmp_path, "run/adapter"), "data.add_tokens=[<violin>, <lute>, <drum>]"]
    with pytest.raises(UserError, match=r"with the data\.add_tokens of then"):
        run.execute(config.load(None, given), say=lambda text: None)


def test_what_is_not_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the embeddings are not trained"):
        trained(tmp_path, "freeze", True)


@pytest.mark.parametrize("trained_part", ["embed_tokens", "lm_head"])
def test_a_head_of_its_own_must_be_trained_too(tmp_path: Path, trained_part: str) -> None:
    tuning = f"{{kind: freeze, patterns: ['.*{trained_part}.*']}}"
    said = "the head is not trained" if trained_part == "embed_tokens" else "the embeddings are not trained"
    with pytest.raises(UserError, match=said):
        trained(tmp_path, tuning, False)


def test_one_weight_for_both_is_enough(tmp_path: Path) -> None:
    trained(tmp_path, "{kind: freeze, patterns: ['.*embed_tokens.*']}", True)


@pytest.mark.parametrize(
    ("tokens", "said"), [(["<a>", "<a>"], "stands there twice"), (["<|im_end|>"], "is a token already")]
)
def test_what_is_no_new_token_is_refused(tokens: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        add_tokens(tiny_tokenizer(), tokens)


def test_the_report_on_the_data_has_the_ids_of_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained(tmp_path, "lora", True)
    capsys.readouterr()
    assert main(["data", str(folder / "config.yaml"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["rows"][0]["tokens"]
    assert {FIRST, SECOND} <= {token["id"] for token in shown}
