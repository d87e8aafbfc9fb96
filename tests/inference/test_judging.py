"""compare and eval: questions of files, figures by hand, verdicts, and the commands as they are typed."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from luthier.cli import main
from luthier.errors import UserError
from luthier.inference import comparison, measures, questions
from luthier.inference.asked import Asked
from luthier.inference.comparison import Answered, measures_of, verdict
from luthier.inference.generation import Generation
from luthier.inference.opened import Opened, open_model
from luthier.inference.questions import Question, from_sample, matches, read_questions, read_samples
from luthier.types import NO_TARGET, Message, Sample
from tests.inference.conftest import make_run

ROWS = [{"instruction": f"What is {n}?", "output": f"The answer is {n}, because {'there ' * n}."} for n in range(1, 9)]


@pytest.fixture(scope="module")
def opened(run: Path) -> Opened:
    return open_model(str(run))


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_the_last_turn_of_a_row_is_the_question(opened: Opened, tmp_path: Path) -> None:
    turns = [("user", "Hi"), ("assistant", "Hello."), ("user", "And Paris?"), ("assistant", "Paris is 你好 🎻.")]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}) + "\n")
    (question,) = read_questions(opened, str(path))
    assert question.prompt_ids == opened.renderer.prompt_ids([Message(role, content) for role, content in turns[:3]])
    assert question.reference == "Paris is 你好 🎻."
    assert question.row == f"{path}:1"
    assert question.sample is not None
    trained = question.sample.targets != NO_TARGET
    expected = opened.tokenizer("Paris is 你好 🎻.", add_special_tokens=False)["input_ids"] + [2]
    assert question.sample.targets[trained].tolist() == expected
    assert question.sample.input_ids[: len(question.prompt_ids)].tolist() == question.prompt_ids


def test_text_without_a_prompt_is_no_question(opened: Opened) -> None:
    ids = np.arange(5, 10)
    whole = Sample(ids, np.append(ids[1:], NO_TARGET), "x:1", 0)
    assert from_sample(whole, opened.tokenizer, {2}) is None
    assert from_sample(Sample(ids, np.full(5, NO_TARGET), "x:1", 0), opened.tokenizer, {2}) is None


def test_rows_are_asked_with_the_system_text_of_the_training_data(opened: Opened, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "A?", "completion": "Yes."}\n')
    (found,) = read_questions(replace(opened, system="Be brief."), str(rows))
    assert found.prompt_ids == opened.renderer.prompt_ids([Message("system", "Be brief."), Message("user", "A?")])
    (found,) = read_questions(opened, str(rows))
    assert found.prompt_ids == opened.renderer.prompt_ids([Message("user", "A?")])


def test_prompts_alone_from_text_and_rows(opened: Opened, tmp_path: Path) -> None:
    plain = tmp_path / "p.txt"
    plain.write_text("Who are you?\n\n What is 你好? \n")
    found = read_questions(opened, str(plain), system="Be brief.")
    assert [(item.prompt, item.reference, item.row) for item in found] == [
        ("Who are you?", None, f"{plain}:1"),
        ("What is 你好?", None, f"{plain}:3"),
    ]
    assert found[0].prompt_ids == opened.renderer.prompt_ids(
        [Message("system", "Be brief."), Message("user", "Who are you?")]
    )
    rows = tmp_path / "p.jsonl"
    rows.write_text('{"prompt": "A?"}\n{"prompt": "B?", "system": "Be long."}\n{"prompt": "C?"}\n')
    found = read_questions(opened, str(rows), limit=2)
    assert [item.prompt for item in found] == ["A?", "B?"]
    assert found[1].prompt_ids == opened.renderer.prompt_ids([Message("system", "Be long."), Message("user", "B?")])
    named = tmp_path / "named.jsonl"
    named.write_text('{"q": "A?", "note": 1}\n{"q": "B?", "note": 2}\n')
    assert [
        item.prompt for item in read_questions(opened, f"{{path: {named}, format: {{kind: prompts, prompt: q}}}}")
    ] == [
        "A?",
        "B?",
    ]
    assert [item.row for item in read_questions(opened, f"{{path: {plain}}}")] == [f"{plain}:1", f"{plain}:3"]
    rows.write_text('{"prompt": "A?"}\n{"prompt": " "}\n')
    with pytest.raises(UserError, match=r"p\.jsonl:2"):
        read_questions(opened, str(rows))
    rows.write_text('{"prompt": "A?"}\n{"prompt": "B", "completion": "C"}\n')
    with pytest.raises(UserError, match="a prompt alone"):
        read_questions(opened, str(rows))


def test_bad_rows_are_all_listed_and_may_be_dropped(opened: Opened, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a", "output": ""}\nnot json\n')
    with pytest.raises(UserError) as caught:
        read_questions(opened, str(path))
    assert "bad.jsonl:2" in str(caught.value)
    assert "bad.jsonl:3" in str(caught.value)
    assert "--drop-bad-rows" in caught.value.fix
    assert [item.reference for item in read_questions(opened, str(path), drop_bad_rows=True)] == ["b"]


def test_a_limit_of_a_configuration_is_no_advice_where_there_is_none(opened: Opened, tmp_path: Path) -> None:
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in (turn, turn * 501)))
    for read in (read_samples, read_questions):
        with pytest.raises(UserError, match="1,002 messages") as caught:
            read(opened, str(path))
        assert "data." not in str(caught.value)
        assert caught.value.fix == "mend the rows, or add --drop-bad-rows"


@pytest.mark.parametrize("others", ["", ", num_samples: 2"])
def test_columns_of_their_own_are_answered_with_the_option_that_works(
    others: str, opened: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "qa.csv"
    path.write_text("question,answer\nWhat is 1?,One.\nWhat is 2?,Two.\n")
    given = f"{{path: {path}{others}}}" if others else str(path)
    for option, command in (("--data", "eval"), ("--prompts", "compare")):
        with pytest.raises(UserError, match="no format fits") as caught:
            read_samples(opened, given, option=option)
        assert main([command, opened.target, option, given, "--limit", "1"]) == 2
        assert f"fix: {caught.value.fix}\n" in capsys.readouterr().err
        name, entry = shlex.split(caught.value.fix)
        assert name == option
        assert ("num_samples: 2" in entry) == bool(others)
        assert [one.reference for one in read_questions(opened, entry)] == ["One.", "Two."]


def test_a_template_that_does_not_fit_is_answered_with_the_option(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", str(run), "--chat-template", "yuan", "--prompt", "Hi"]) == 2
    said = capsys.readouterr().err
    assert "--chat-template: yuan" in said
    fix = said.partition("fix: ")[2].split()
    assert fix == ["--chat-template", "auto"]
    assert main(["chat", str(run), *fix, "--prompt", "Hi", "--max-new-tokens", "1"]) == 0


@pytest.mark.parametrize("rows", [1, 2])
def test_where_all_rows_are_bad_dropping_them_is_no_advice(rows: int, opened: Opened, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"instruction": "a", "output": ""}\n' * rows)
    with pytest.raises(UserError, match="cannot be used") as caught:
        read_questions(opened, str(path))
    assert "trained" not in caught.value.found
    assert caught.value.fix == "mend the rows"
    with pytest.raises(UserError, match="no rows are left") as caught:
        read_questions(opened, str(path), drop_bad_rows=True)
    assert caught.value.fix == "without --drop-bad-rows the reasons are listed"


def test_matching_needs_an_end() -> None:
    question = Question("p", [1], "Paris.")
    assert matches(Generation(" Paris.\n", [5], True), question)
    assert not matches(Generation("Paris.", [5], False), question)
    assert not matches(Generation("Paris", [5], True), question)
    assert not matches(Generation("", [], True), Question("p", [1]))


@pytest.mark.prove
def test_compared_figures_are_those_of_the_two_models_apart(
    opened: Opened, base: Path, rows_file: Path, run: Path
) -> None:
    found = comparison.compare_target(str(run), Asked(("Hi",), str(rows_file), max_new_tokens=12))
    assert len(found.answered) == 1 + len(ROWS)
    assert found.answered[0].base_nll is None
    plain = open_model(str(base), dtype="float32")
    for name, model in (("base", plain), ("tuned", opened)):
        rows = read_questions(model, str(rows_file))
        sums = []
        for question, item in zip(rows, found.answered[1:], strict=True):
            with torch.no_grad():
                logits = model.model(torch.from_numpy(question.sample.input_ids)[None]).logits[0].log_softmax(-1)
            trained = question.sample.targets != NO_TARGET
            targets = torch.from_numpy(question.sample.targets[trained])
            sums.append(-float(logits[torch.from_numpy(trained)].gather(-1, targets[:, None]).sum()))
            assert getattr(item, f"{name}_nll") == pytest.approx(sums[-1], rel=1e-4)
        single = measures.measure_target(
            str(run if name == "tuned" else base), str(rows_file), answered=0, max_new_tokens=8
        )
        assert single.figures["nll_per_token"][0] == pytest.approx(getattr(found.measures[0], name)[0], rel=1e-4)
    assert found.measures[0].difference[0] == pytest.approx(
        found.measures[0].tuned[0] - found.measures[0].base[0], rel=1e-6
    )
    assert found.answered[0].base.text != found.answered[0].tuned.text
    json.dumps(found.as_dict())


def test_an_adapter_that_changes_nothing_makes_no_detectable_difference(
    base: Path, rows_file: Path, tmp_path: Path
) -> None:
    same = make_run(tmp_path / "same", base, strength=0.0)
    found = comparison.compare_target(str(same), Asked((), str(rows_file), max_new_tokens=4))
    assert [item.verdict for item in found.measures] == [comparison.NO_DIFFERENCE] * 2
    assert all(item.base == item.tuned for item in found.answered)
    assert found.measures[0].difference == (0.0, 0.0, 0.0)


def answered(base: list[float], tuned: list[float], tokens: int = 10) -> list[Answered]:
    nothing = Generation("", [], True)
    return [Answered(Question("p", [1], "x"), nothing, nothing, b, t, tokens) for b, t in zip(base, tuned, strict=True)]


def test_verdicts() -> None:
    worse = [10.0 + n for n in range(20)]
    better = [value - 3.0 - n % 2 for n, value in enumerate(worse)]
    assert measures_of(answered(worse, better))[0].verdict == "tuned is better"
    assert measures_of(answered(better, worse))[0].verdict == "tuned is worse"
    noise = np.random.default_rng(0).normal(size=20)
    assert measures_of(answered(worse, list(worse + noise - noise.mean())))[0].verdict == comparison.NO_DIFFERENCE
    assert "too few" in measures_of(answered(worse[:5], better[:5]))[0].verdict
    assert verdict(50, (0.2, 0.1, 0.3), lower_is_better=False) == "tuned is better"
    assert verdict(50, (-0.2, -0.3, -0.1), lower_is_better=False) == "tuned is worse"
    assert measures_of([]) == []


@pytest.mark.prove
def test_exact_match_of_eval_counts_what_the_model_says(opened: Opened, run: Path, tmp_path: Path) -> None:
    """Two rows whose references are what the model answers, two whose references are something else."""
    from luthier.inference.generation import generate

    asked = ["Hi", "What is Paris?", "Who are you?", "Why?"]
    prompts = [opened.renderer.prompt_ids([Message("user", text)]) for text in asked]
    said = generate(opened.model, opened.tokenizer, prompts, max_new_tokens=60, stop_ids={2})
    path = tmp_path / "rows.jsonl"
    references = [answer.text if index < 2 else "something else" for index, answer in enumerate(said)]
    path.write_text(
        "".join(
            json.dumps({"prompt": text, "completion": reference}) + "\n"
            for text, reference in zip(asked, references, strict=True)
        )
    )
    expected = sum(
        answer.stopped and answer.text.strip() == reference.strip()
        for answer, reference in zip(said, references, strict=True)
    )
    found = measures.measure_target(str(run), str(path), answered=100, max_new_tokens=60, drop_bad_rows=True)
    assert found.figures["exact_match"][0] == pytest.approx(expected / found.answered_rows)
    low, high = found.figures["exact_match"][1:]
    assert 0 <= low < high <= 1


def test_eval_scores_text_without_asking(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "A luthier builds violins."}\n{"text": "Paris is the capital."}\n')
    found = measures.measure_target(str(run), str(path), answered=10, max_new_tokens=5)
    assert found.answered_rows == 0
    assert set(found.figures) == {"nll_per_token", "perplexity", "token_accuracy"}
    nll, ppl = found.figures["nll_per_token"], found.figures["perplexity"]
    assert ppl == pytest.approx(tuple(np.exp(nll)), rel=1e-6)
    assert nll[1] <= nll[0] <= nll[2]


@pytest.mark.prove
def test_commands_print_tables_and_json(run: Path, rows_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--data", str(rows_file), "--generate", "2", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["rows"] == len(ROWS)
    assert tree["perplexity"]["low"] <= tree["perplexity"]["value"] <= tree["perplexity"]["high"]
    assert tree["answered_rows"] == 2
    assert main(["eval", str(run), "--data", str(rows_file), "--generate", "0"]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert main(["compare", str(run), "--prompts", str(rows_file), "--max-new-tokens", "4", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert set(tree["measures"]) == {"nll_per_token", "exact_match"}
    assert len(tree["answers"]) == len(ROWS)
    assert (
        main(["compare", str(run), "--prompt", "Hi [bold]", "--prompts", str(rows_file), "--max-new-tokens", "4"]) == 0
    )
    shown = capsys.readouterr().out
    assert "[bold]" in shown
    assert "verdict" in shown


def test_what_all_prompts_begin_with_is_shown_once() -> None:
    system = "You are terse.\nAnswer in one word.\n"
    nothing = Generation("x", [], True)
    asked = [f"{system}{text}" for text in ("Hi", "Hello", "Hell")]
    found = comparison.Comparison(
        "runs/a", "org/base", [Answered(Question(text, [1]), nothing, nothing, None, None, 0) for text in asked], []
    )
    console = Console(width=100, record=True, file=StringIO())
    console.print(comparison.render(found))
    shown = console.export_text()
    assert shown.count("You are terse.") == 1
    assert all(f"│ {text} " in shown for text in ("Hi", "Hello", "Hell"))
    assert comparison.shared_beginning(asked[:1]) == ""
    assert comparison.shared_beginning(["Hell", "Hello"]) == ""


def test_wrong_use_ends_with_one_screen(
    run: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(run)]) == 2
    assert "--prompt TEXT" in capsys.readouterr().err
    assert main(["compare", str(base), "--prompt", "Hi"]) == 2
    assert "before it was tuned" in capsys.readouterr().err
    assert main(["eval", str(run), "--data", str(tmp_path / "none.jsonl")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "none"), "--data", "x.jsonl"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_questions_name_their_file_when_it_cannot_be_read(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt"):
        questions.read_questions(opened, str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match="no question"):
        questions.read_questions(opened, str(tmp_path / "empty.txt"))
