"""A reward run in use: it measures pairs, scores files, is exported, and says that it has no words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from luthier import config
from luthier.cli import main
from luthier.errors import UserError
from luthier.inference import comparison, side_by_side
from luthier.inference.drift import ScoreDrift
from luthier.inference.opened import open_model
from luthier.inference.questions import held_out_samples
from luthier.inference.rewards import score_target
from luthier.inference.verified_export import export
from luthier.reporting.run.loss_curves import all_curves
from luthier.reporting.run.next_lines import next_lines
from luthier.runs.figures import read_figures
from luthier.training import run
from tests.helpers.killing import write_config
from tests.helpers.tiny_models import CHATML


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short reward run with LoRA, beside its data."""
    place = tmp_path_factory.mktemp("judge")
    keys = (f"output_dir={place / 'run'}", "max_steps=4", "max_tokens_per_micro_batch=400", "save_steps=2")
    run.execute(config.load(write_config(place, "reward"), [*keys, "learning_rate=3e-3"]), say=lambda _: None)
    return place / "run"


@pytest.fixture(scope="module")
def by_peft(judge: Path) -> tuple[Any, Any]:
    """The same in transformers and peft, and the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(judge / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(
        judge.parent / "model", num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    return PeftModel.from_pretrained(base, judge / "adapter").eval(), tokenizer


def score_of(by_peft: tuple[Any, Any], *turns: tuple[str, str]) -> float:
    """Of a conversation, that ends with its last token of the template."""
    model, tokenizer = by_peft
    messages = [{"role": role, "content": text} for role, text in turns]
    text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
    with torch.no_grad():
        return float(model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits)


def test_eval_measures_the_pairs_that_it_held_out(judge: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(judge), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    last = [json.loads(line) for line in (judge / "metrics.jsonl").read_text().splitlines() if "eval_loss" in line][-1]
    assert found["pairs"] == 5
    assert found["accuracy"]["value"] == pytest.approx(last["eval_accuracy"])
    assert found["margin"]["value"] == pytest.approx(last["eval_margin"], abs=1e-4)
    samples = held_out_samples(open_model(str(judge), takes="scores"))
    tokens = samples.trained.reshape(-1, 2)
    counts = {
        "accuracy_where_the_better_is_longer": int((tokens[:, 0] > tokens[:, 1]).sum()),
        "accuracy_where_the_better_is_shorter": int((tokens[:, 0] < tokens[:, 1]).sum()),
    }
    assert {name: found[name]["pairs"] for name in counts if name in found} == {k: v for k, v in counts.items() if v}
    assert main(["eval", str(judge), "--data", str(judge.parent / "train.jsonl"), "--limit", "7"]) == 0
    assert "7 pairs" in capsys.readouterr().out


def test_every_format_is_scored(judge: Path, by_peft: tuple[Any, Any], tmp_path: Path) -> None:
    asked, good, bad, other = "the violin", "good and a capital", "bad violin for", "tunes"
    rows = {
        "preference": ({"prompt": asked, "chosen": good, "rejected": bad}, [(good,), (bad,)]),
        "ranked": ({"prompt": asked, "answers": [good, other, bad]}, [(good,), (other,), (bad,)]),
        "feedback": ({"prompt": asked, "completion": good, "label": False}, [(good,)]),
        "alpaca": ({"instruction": asked, "output": bad}, [(bad,)]),
        "prompt_completion": ({"prompt": asked, "completion": bad}, [(bad,)]),
        "messages": (
            {
                "messages": [
                    {"role": r, "content": c}
                    for r, c in (("user", asked), ("assistant", good), ("user", other), ("assistant", bad))
                ]
            },
            [(good, other, bad)],
        ),
    }
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": asked}) + "\n")
    assert main(["score", str(judge), "--data", str(text), "-o", str(tmp_path / "text.scores")]) == 0
    assert len(json.loads((tmp_path / "text.scores").read_text())["scores"]) == 1
    for name, (row, answers) in rows.items():
        data, out = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.scores"
        data.write_text(json.dumps(row) + "\n")
        given = f"{{path: {data}, format: {{kind: preference, answers: answers}}}}" if name == "ranked" else str(data)
        assert main(["score", str(judge), "--data", given, "-o", str(out)]) == 0, name
        (line,) = map(json.loads, out.read_text().splitlines())
        assert line["row"] == f"{data}:1"
        roles = ("user", "assistant", "user", "assistant")
        wanted = [score_of(by_peft, *zip(roles, (asked, *said), strict=False)) for said in answers]
        assert line["scores"] == pytest.approx(wanted, abs=1e-5), name


@pytest.mark.parametrize("trained", [(True, False), (False, True)])
def test_the_last_answer_is_scored_whatever_is_trained(
    trained: tuple[bool, bool], judge: Path, by_peft: tuple[Any, Any], tmp_path: Path
) -> None:
    turns = (("user", "the violin"), ("assistant", "good"), ("user", "tunes"), ("assistant", "bad violin for"))
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
    for message, train in zip(messages[1::2], trained, strict=True):
        message["train"] = train
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"messages": messages}) + "\n")
    (row,) = score_target(str(judge), str(data)).rows
    assert row.scores == pytest.approx([score_of(by_peft, *turns)], abs=1e-5)


def test_scores_are_written_over_nothing(judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "pairs.jsonl", tmp_path / "scores.jsonl"
    data.write_bytes((judge.parent / "held.jsonl").read_bytes())
    score = ["score", str(judge), "--data", str(data), "--limit", "2"]
    assert main([*score, "-o", str(out)]) == 0
    first = out.read_bytes()
    assert main(score) == 0
    assert [json.loads(line)["scores"] for line in capsys.readouterr().out.splitlines()[-2:]] == [
        json.loads(line)["scores"] for line in first.splitlines()
    ]
    assert main([*score, "-o", str(out)]) == 2
    assert "scores-2.jsonl, or --force" in capsys.readouterr().err
    assert main([*score, "-o", str(out), "--force"]) == 0
    assert out.read_bytes() == first
    before = data.read_bytes()
    assert main([*score, "-o", str(data), "--force"]) == 2
    assert "this file is read by the command" in capsys.readouterr().err
    assert data.read_bytes() == before


def test_a_checkpoint_is_scored(judge: Path, tmp_path: Path) -> None:
    found = {}
    for name in ("checkpoints/step-000002", "checkpoints/step-000004", "."):
        out = tmp_path / f"{name.replace('/', '-')}.jsonl"
        assert main(["score", str(judge / name), "--data", str(judge.parent / "held.jsonl"), "-o", str(out)]) == 0
        found[name] = np.array([json.loads(line)["scores"] for line in out.read_text().splitlines()])
    assert np.array_equal(found["checkpoints/step-000004"], found["."])
    assert not np.allclose(found["checkpoints/step-000002"], found["."], atol=1e-3)


def test_it_has_no_words_to_say(judge: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["chat", str(judge), "--prompt", "Hello"], ["compare", str(judge), "--prompt", "Hello"]):
        assert main(line) == 2
        said = capsys.readouterr().err
        assert "it is a reward model: it gives scores, and has no words to say" in said
        assert f"luthier score {judge} --data FILE" in said


def test_what_gives_words_gives_no_scores(judge: Path) -> None:
    with pytest.raises(UserError, match="it is no reward model"):
        open_model(str(judge.parent / "model"), takes="scores")


def test_rows_without_pairs_are_no_measure_of_it(
    judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"instruction": "the violin", "output": "tunes"}) + "\n")
    assert main(["eval", str(judge), "--data", str(data)]) == 2
    assert "preference" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["merged", "adapter"])
def test_it_is_exported(to: str, judge: Path, by_peft: tuple[Any, Any], tmp_path: Path) -> None:
    folder = tmp_path / to
    assert main(["export", str(judge), "--to", to, "--output", str(folder)]) == 0
    opened = open_model(str(folder), takes="scores")
    assert opened.gives_scores
    _, tokenizer = by_peft
    if to == "merged":
        plain: Any = AutoModelForSequenceClassification.from_pretrained(folder)
        assert plain.config.pad_token_id == tokenizer.pad_token_id
        turns = (("user", "the violin"), ("assistant", "good and a capital"))
        wanted = score_of(by_peft, *turns)
        assert score_of((plain.eval(), tokenizer), *turns) == pytest.approx(wanted, abs=1e-5)
    else:
        assert "AutoModelForSequenceClassification" in (folder / "README.md").read_text()


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_merge_that_rounds_what_it_learned_away_is_refused(judge: Path, tmp_path: Path) -> None:
    """By its scores: a softmax of one number is the same whatever the number is."""
    faint = tmp_path / "faint"
    shutil.copytree(judge / "adapter", faint)
    file = faint / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: one * 1e-3 if "lora_B" in name else one for name, one in weights.items()}, file)
    half = {"dtype": "bfloat16"}
    with pytest.raises(UserError, match="what was learned would be lost"):
        export(str(faint), "merged", tmp_path / "lost", settings=half, say=lambda _: None)
    save_file({name: one * 30 if "lora_B" in name else one for name, one in weights.items()}, file)
    done = export(str(faint), "merged", tmp_path / "merged", settings=half, say=lambda _: None)
    assert isinstance(done.drift, ScoreDrift)
    assert isinstance(done.tuning, ScoreDrift)
    assert 0 < done.drift.mean_score_difference < done.tuning.mean_score_difference / 2
    assert "mean |dscore|" in done.as_text()
    assert "top token" not in done.as_text()
    kinds = {name: one.dtype for name, one in weights_of(tmp_path / "merged").items()}
    assert kinds.pop("score.weight") == torch.float32, "the head is trained and held in float32"
    assert set(kinds.values()) == {torch.bfloat16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16", "that of all but the head"


@pytest.fixture(scope="module")
def answering(judge: Path) -> Path:
    """A short run that answers, on the same base."""
    place, base = judge.parent / "answering", judge.parent
    place.mkdir()
    write_config(place)
    keys = [f"model.path={base / 'model'}", f"output_dir={place / 'run'}", "max_steps=4", "learning_rate=3e-3"]
    run.execute(config.load(place / "mine.yaml", [*keys, "eval_steps=100"]), say=lambda _: None)
    return place / "run"


def test_answers_of_base_and_tuned_are_judged(
    judge: Path, answering: Path, by_peft: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["compare", str(answering), "--judge", str(judge), "--max-new-tokens", "6"]
    asked = [word for text in ("the violin", "France is", "a capital") for word in ("--prompt", text)]
    assert main([*line, *asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model, tokenizer = by_peft
    for one in found["answers"]:
        for who in ("base", "tuned"):
            said = one[who]
            if said["text"].isascii() and not said["stopped"]:  # what was cut has no end
                text = tokenizer.apply_chat_template(
                    [{"role": "user", "content": one["prompt"]}], tokenize=False, add_generation_prompt=True
                )
                with torch.no_grad():
                    ids = tokenizer(text + said["text"], return_tensors="pt", add_special_tokens=False)
                    if ids["input_ids"].shape[1] == len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 6:
                        assert said["score"] == pytest.approx(float(model(**ids).logits), abs=1e-4)
    for who in ("base", "tuned"):
        mean = np.mean([one[who]["score"] for one in found["answers"]])
        assert found["measures"]["judge_score"][who][0] == pytest.approx(mean)
    rates = [found["measures"]["judge_win_rate"][who][0] for who in ("base", "tuned")]
    assert sum(rates) == pytest.approx(1)
    assert main([*line, *asked]) == 0
    assert "judged by" in capsys.readouterr().out


def test_answers_of_several_runs_are_judged(judge: Path, answering: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    runs, asked = [str(answering), str(answering / "checkpoints" / "step-000003")], ["--prompt", "the violin"]
    asked += ["--judge", str(judge), "--max-new-tokens", "4", "--html", str(page)]
    assert main(["compare", *runs, *asked]) == 0
    text = page.read_text()
    assert f"Answers judged by {judge}" in text
    assert 'id="judged"' in text


def test_what_cannot_judge_is_said_before_anything_is_answered(
    judge: Path,
    answering: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = ["--prompt", "the violin", "--max-new-tokens", "4"]
    assert main(["compare", str(answering), *asked, "--judge", str(answering)]) == 2
    assert "it is no reward model" in capsys.readouterr().err
    assert main(["compare", str(answering), *asked, "--judge", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
    assert main(["compare", *[str(answering)] * 2, "--judge", str(judge)]) == 2
    assert "--prompt TEXT or --prompts FILE" in capsys.readouterr().err
    template = tmp_path / "other.jinja"
    template.write_text(CHATML.replace("<|im_start|>{{ message['role'] }}", "<|im_start|>x{{ message['role'] }}"))
    assert main(["compare", str(answering), *asked, "--judge", str(judge), "--chat-template", str(template)]) == 2
    assert "it reads requests otherwise" in capsys.readouterr().err
    monkeypatch.setattr(comparison, "compare", pytest.fail)
    monkeypatch.setattr(side_by_side, "generate", pytest.fail)
    for runs in ([str(answering)], [str(answering)] * 2):
        assert main(["compare", *runs, *asked, "--judge", str(judge), "--chat-template", str(template)]) == 2
        assert "it reads requests otherwise" in capsys.readouterr().err


def test_its_page_and_its_next_lines_are_of_scores(judge: Path) -> None:
    lines = next_lines(read_figures(judge))
    assert lines[:2] == [f"luthier score {judge} --data FILE", f"luthier eval {judge}"]
    assert not any("chat" in line or "compare" in line for line in lines)
    page = "".join(all_curves(read_figures(judge)))
    assert "Pairs whose better answer is preferred" in page
    assert "Scores of both answers" in page
    assert "Log-probability" not in page
