"""The demo from end to end on a tiny model, and `ask` with one that has learned a single answer."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from rich.console import Console

from luthier import config
from luthier.demo import flow, show
from luthier.demo.ask import ask
from luthier.demo.judge import Outcome, Verdict, figures
from luthier.demo.requests import Pair, held_out_sets, training_set
from luthier.errors import UserError
from luthier.training import run
from tests.helpers.tiny_models import tiny_llama

YAML = "model: m\ndata: x.csv\noutput_dir: runs/x"


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "base", max_position_embeddings=512, num_hidden_layers=12)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, base: Path) -> tuple[Path, str, list[Outcome]]:
    folder, screen = tmp_path_factory.mktemp("runs") / "demo", io.StringIO()
    outcomes = flow.demo(folder, Console(file=screen, width=120), model=str(base), rows=12, test_rows=3)
    return folder, screen.getvalue(), outcomes


def test_it_leaves_figures_answers_picture_and_report(finished: tuple[Path, str, list[Outcome]]) -> None:
    folder, _, outcomes = finished
    result = json.loads((folder / "demo.json").read_text())
    assert [item["name"] for item in result["sets"]] == ["unseen values", "unseen phrasings"]
    for item, outcome in zip(result["sets"], outcomes, strict=True):
        assert item["base"]["requests"] == item["tuned"]["requests"] == 3
        assert item["tuned"]["exact"]["value"] == outcome.tuned.exact.value
        assert item["met"] is outcome.met is False
    assert result["seconds"]["total_s"] >= result["seconds"]["training_s"] > 0
    answers = json.loads((folder / "answers.json").read_text())
    assert len(answers) == 6
    assert {"prompt", "reference", "before", "after"} == answers[0].keys()
    assert answers[0]["prompt"] in (folder / "report.html").read_text()
    assert ET.fromstring((folder / "demo.svg").read_text()).tag.endswith("svg")


def test_it_says_what_it_did_and_what_to_type_next(finished: tuple[Path, str, list[Outcome]]) -> None:
    folder, text, outcomes = finished
    assert "unseen values" in text
    assert "below target" in text
    assert text.count("base") >= len(outcomes)
    assert f"luthier chat {folder}" in text
    assert f"--writer {folder}" in text


def test_the_reference_is_the_base_itself(finished: tuple[Path, str, list[Outcome]], base: Path) -> None:
    from luthier.inference.opened import open_model

    folder, _, outcomes = finished
    opened = open_model(str(base))
    opened.renderer = flow.open_model(str(folder)).renderer  # asked in the same words
    asked = [pair.request for pair in outcomes[0].pairs]
    assert flow.answer(opened, asked) == outcomes[0].before


@pytest.mark.prove
def test_a_second_call_trains_nothing_and_judges_the_same(
    finished: tuple[Path, str, list[Outcome]], base: Path
) -> None:
    folder, _, outcomes = finished
    before = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    screen = io.StringIO()
    again = flow.demo(folder, Console(file=screen, width=120), model=str(base), rows=12, test_rows=3)
    assert "finished already" in screen.getvalue()
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert [item.after for item in again] == [item.after for item in outcomes]


def test_the_data_it_writes_are_the_generators(finished: tuple[Path, str, list[Outcome]]) -> None:
    folder = flow.data_folder(finished[0])
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert rows == [{"prompt": pair.request, "completion": pair.yaml} for pair in training_set(12)]
    test = [json.loads(line)["completion"] for line in (folder / "unseen_values.jsonl").read_text().splitlines()]
    assert test == [pair.yaml for pair in held_out_sets()["unseen values"]]
    assert config.load(folder / "demo.yaml").output_dir == str(finished[0])


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "demo-data").write_text("")
    with pytest.raises(UserError, match="demo-data: is a file"):
        flow.write_data(tmp_path / "demo")


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A run that learned one answer by heart."""
    folder = tmp_path_factory.mktemp("writer")
    (folder / "one.jsonl").write_text(json.dumps({"prompt": "please tune m on x.csv", "completion": YAML}) + "\n")
    (folder / "template.jinja").write_text(flow.TEMPLATE)
    chosen = config.from_dict(
        {
            "model": str(base),
            "data": {"train": str(folder / "one.jsonl"), "chat_template": str(folder / "template.jinja")},
            "tuning": "full",
            "training": {"learning_rate": 3e-3, "max_steps": 100},
            "output_dir": str(folder / "run"),
        }
    )
    return run.execute(chosen, say=lambda _: None)


def test_ask_returns_a_configuration_that_loads(writer: Path) -> None:
    assert ask(str(writer), "please tune m  on\nx.csv") == YAML + "\n"


def test_ask_shows_what_was_written_where_it_is_no_configuration(finished: tuple[Path, str, list[Outcome]]) -> None:
    with pytest.raises(UserError, match="wrote no valid configuration"):
        ask(str(finished[0]), "please tune m on x.csv")


def test_ask_takes_no_answer_that_is_cut_off(writer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of a line what is there is a configuration: without its last keys."""
    tokens = len(flow.open_model(str(writer)).tokenizer(YAML)["input_ids"])
    monkeypatch.setattr("luthier.demo.ask.LONGEST", tokens)
    with pytest.raises(UserError, match=f"it had not ended after {tokens} tokens"):
        ask(str(writer), "please tune m on x.csv")


def test_ask_needs_a_request(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an empty request"):
        ask(str(tmp_path), "  ")


def outcome(base: list[Verdict], tuned: list[Verdict], after: str) -> Outcome:
    pairs = [Pair(f"request {index}", YAML, {}, ()) for index in range(len(base))]
    return Outcome(
        "unseen values", pairs, ["no idea"] * len(pairs), [after] * len(pairs), figures(base), figures(tuned)
    )


def test_bars_and_picture_show_share_and_interval() -> None:
    item = outcome([Verdict(False, 0, 4)] * 20, [Verdict(True, 4, 4)] * 15 + [Verdict(False, 3, 4)] * 5, YAML)
    lines = show.bars([item]).plain.splitlines()
    assert [line[26:31].strip() for line in lines] == ["base", "tuned"] * 2
    assert lines[1].endswith("75 %")
    assert lines[0].count("█") == 0
    drawn = ET.fromstring(show.svg([item]))
    widths = [float(shape.get("width", "0")) for shape in drawn.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[1] == pytest.approx(0.75 * 420)
    assert "75 % [53, 89]" in show.svg([item])


def test_the_third_example_is_one_that_went_wrong() -> None:
    right = outcome([Verdict(False, 0, 4)] * 3, [Verdict(True, 4, 4)] * 3, YAML)
    wrong = outcome([Verdict(False, 0, 4)] * 3, [Verdict(False, 3, 4)] * 3, YAML.replace("x.csv", "y.csv"))
    chosen = show.choose_examples([right, wrong])
    assert len(chosen) == 3
    assert [after for *_, after in chosen][1:] == [YAML.replace("x.csv", "y.csv")] * 2
