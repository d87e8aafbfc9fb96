"""A finished report is found again where nothing has changed, and made anew where anything has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.errors import UserError
from luthier.inspecting.data import kept
from luthier.inspecting.data.kept import KeptReport
from luthier.inspecting.data.shown_rows import Wanted
from luthier.reporting.data.page import render_page
from luthier.system import machine
from tests.helpers.looked_at import PLAIN, loaded, looked, prepare_folder, write_rows

OTHER_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}: {% if message.role == 'assistant' %}{% generation %}"
    "{{ message.content }}<|im_end|>{% endgeneration %}{% else %}{{ message.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    prepare_folder([*PLAIN, PLAIN[0], {"instruction": "x", "output": ""}])
    Path("own.jinja").write_text(OTHER_TEMPLATE)
    return tmp_path


def place(
    *overrides: str, wanted: Wanted | None = None, every_view: bool = True, environment: dict[str, str] | None = None
) -> KeptReport:
    return KeptReport(
        loaded("on_bad_row=drop", *overrides),
        wanted or Wanted(),
        every_view,
        Path("model").resolve(),
        environment or {},
    )


def kept_once(*overrides: str) -> None:
    looked("on_bad_row=drop", *overrides, every_view=True, environment={})


@pytest.mark.prove
def test_the_second_time_is_the_same_without_torch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As text, as JSON and as a page, from a process that imports neither torch nor transformers."""
    commands = [[], ["--json", "--row", "2", "--longest"], ["--worst", "--longest"], ["--html", "page.html", "--json"]]
    code = (
        "import sys; from luthier.cli import main; codes = [main(words.split('\\t')) for words in sys.argv[1:]]; "
        "heavy = {'torch', 'transformers', 'tokenizers', 'peft'} & set(sys.modules); assert not heavy, heavy; "
        "sys.exit(max(codes))"
    )
    whole = [["data", "mine.yaml", "on_bad_row=drop", "eval=0.3", *words] for words in commands]
    for words in whole:
        assert main(words) == 0
    fresh, page = capsys.readouterr().out, Path("page.html").read_bytes()
    Path("page.html").unlink()
    again = subprocess.run(
        [sys.executable, "-c", code, *map("\t".join, whole)], capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout == fresh
    assert Path("page.html").read_bytes() == page


@pytest.mark.prove
def test_whatever_changes_it_is_made_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept_once()
    assert place().find() is not None
    for other in (
        place("global_batch_size=2"),
        place("seed=1"),
        place("max_length=100"),
        place("eval=0.3"),
        place("chat_template=own.jinja"),
        place("tuning.r=2"),
        place(wanted=Wanted(row="2")),
        place(wanted=Wanted(samples=1)),
        place(wanted=Wanted(worst=True)),
        place(wanted=Wanted(longest=True)),
        place(every_view=False),
        place(environment={"CUDA_VISIBLE_DEVICES": "1"}),
    ):
        assert other.find() is None
    assert place(environment={"HOME": "/elsewhere"}).find() is not None  # decides nothing
    for name in ("train.jsonl", "model/config.json", "model/tokenizer.json", "model/chat_template.jinja"):
        before = Path(name).read_bytes()
        Path(name).write_bytes(before + b"\n")
        assert place().find() is None, name
        Path(name).write_bytes(before)
        assert place().find() is not None, name
    Path("model/added.json").write_text("{}")
    assert place().find() is None
    Path("model/added.json").unlink()
    os.utime("model/model.safetensors")
    assert place().find() is not None
    monkeypatch.setattr(machine, "devices", lambda: ["another card"])
    assert place().find() is None


def test_the_other_views_are_kept_with_the_first(folder: Path) -> None:
    looked("on_bad_row=drop", environment={})
    for wanted in (Wanted(worst=True), Wanted(longest=True), Wanted()):
        kept = place(wanted=wanted, every_view=False).find()
        assert kept == looked("on_bad_row=drop", wanted=wanted)
    assert place(wanted=Wanted(row="2"), every_view=False).find() is None


def test_a_template_in_a_file_counts_by_its_content(folder: Path) -> None:
    kept_once("chat_template=own.jinja")
    assert place("chat_template=own.jinja").find() is not None
    Path("own.jinja").write_text(OTHER_TEMPLATE + "{# a word #}")
    assert place("chat_template=own.jinja").find() is None


def test_other_versions_and_other_code_make_it_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept_once()
    found, package = kept.version, kept.PACKAGE
    for name in ("torch", "transformers", "tokenizers", "jinja2", "py3langid"):
        monkeypatch.setattr(kept, "version", lambda asked, name=name: found(asked) + "+1" * (asked == name))
        assert place().find() is None, name
    monkeypatch.setattr(kept, "version", found)
    shutil.copytree(package, "code", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(kept, "PACKAGE", Path("code"))
    assert place().find() is not None
    for name in ("code/inspecting/data/token_view.py", "code/templates/chatml@plain.jinja"):
        before = Path(name).read_bytes()
        Path(name).write_bytes(before + b"\n")
        assert place().find() is None, name
        Path(name).write_bytes(before)
    assert place().find() is not None


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[:-20],
    "a digit": lambda data: data.replace(b'"rows_in": 6', b'"rows_in": 7'),
    "no hash": lambda data: data.partition(b"\n")[2],
    "no report": lambda data: b"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a\n{}",
    "no text": lambda data: b"\xff\xfe\n" + data,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_anew(folder: Path, damage: str) -> None:
    kept_once()
    (file,) = Path("cache/reports").iterdir()
    whole = file.read_bytes()
    file.write_bytes(DAMAGES[damage](whole))
    assert file.read_bytes() != whole
    assert place().find() is None
    kept_once()
    assert file.read_bytes() == whole


def test_what_is_found_is_what_was_kept(folder: Path) -> None:
    fresh = looked("on_bad_row=drop", "eval=0.3", every_view=True)
    kept_once("eval=0.3")
    found = place("eval=0.3").find()
    assert found == fresh
    assert render_page(found) == render_page(fresh)


def test_reports_that_nobody_reads_go(folder: Path) -> None:
    kept_once()
    (old,) = Path("cache/reports").iterdir()
    month = time.time() - 31 * 86_400
    os.utime(old, (month, month))
    assert place().find() is not None  # it was read: it stays
    kept_once("seed=1")
    assert old.exists()
    os.utime(old, (month, month))
    kept_once("seed=2")
    assert not old.exists()
    assert len(list(Path("cache/reports").iterdir())) == 2


def test_data_that_change_meanwhile_are_not_kept(folder: Path) -> None:
    before = place()
    report = looked("on_bad_row=drop", every_view=True)
    write_rows([*PLAIN, *PLAIN])
    with pytest.raises(UserError, match="changed while it was read"):
        before.keep([(Wanted(), report)])
    assert not Path("cache/reports").exists()


THEIRS = """
from typing import Literal

from luthier.formats import alpaca


class Theirs(alpaca.Alpaca):
    class Config(alpaca.Alpaca.Config):
        kind: Literal["theirs:Theirs"] = "theirs:Theirs"
"""


def test_someone_elses_code_is_always_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A format of another package may change without any of luthier's files changing."""
    Path("theirs.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(str(folder))
    given = "data={train: [{path: train.jsonl, format: {kind: 'theirs:Theirs'}}], on_bad_row: drop}"
    report = looked(given, environment={})
    assert report.ledger["rows_trained"] == 5
    assert not Path("cache/reports").exists()
