"""A saved template puts the system text of the training where none is given, for any program that renders it; luthier takes it off."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from luthier.data.chat.default_system import with_default_system, without_default_system
from luthier.data.chat.library import FOLDER, facts_of
from luthier.data.chat.template import Template
from tests.helpers import tokenizers

SYSTEM = 'Don\'t "shout".\n\\n {% endif %} {# end of it #}{{ messages }}\r\nSei höflich 🙂.  '
USER = [{"role": "user", "content": "Hi"}]
OTHER = [{"role": "system", "content": "Another."}, *USER]
SPOKEN = [{"role": "system", "content": SYSTEM}, *USER]
SHIPPED = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))}
TAKING = [name for name, text in SHIPPED.items() if facts_of(text).system in ("own", "folded")]
ODD = {
    "no header": "{{ '>' }}  {% for m in messages %}{{ m.role + ':' + m.content }}\n{% endfor %}",
    "white space first": "\n\n  {% for m in messages %}{{ m.role + ':' + m.content }}\n{% endfor %}",
    "open header": "{#\nname: a\n#}\n\n {{ messages[0].content }} {{ messages | length }}",
    "header beside the body": "{#\nname: a\n#}  {% if true %}{{ messages[0].content }}{% endif %}",
}


def rendered(source: str, messages: list[dict[str, str]]) -> str:
    """As transformers renders it."""
    keys: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<p>"}
    (text,), _ = render_jinja_template([messages], chat_template=source, add_generation_prompt=True, **keys)
    return str(text)


@pytest.mark.parametrize("name", [*TAKING, *ODD])
def test_the_text_stands_where_none_is_given_and_nothing_else_changes(name: str) -> None:
    source = {**SHIPPED, **ODD}[name]
    saved = with_default_system(source, SYSTEM)
    assert rendered(saved, USER) == rendered(source, SPOKEN) != rendered(source, USER)
    assert rendered(saved, OTHER) == rendered(source, OTHER)
    assert without_default_system(saved) == source
    assert facts_of(saved) == facts_of(source)


def test_a_folded_text_is_folded_by_whoever_asks() -> None:
    tokenizer = tokenizers.chatml()
    folding = Template.choose(tokenizer, on_system="fold").saved_source
    assert rendered(with_default_system(folding, SYSTEM), USER) == rendered(folding, SPOKEN)


@pytest.mark.parametrize("name", ["gemma@transformers", "gemma@llamafactory", "gemma@ms-swift"])
def test_the_header_of_a_folding_template_says_that_it_folds(name: str) -> None:
    tokenizer = tokenizers.gemma_like()
    given, folding = Template.choose(tokenizer, name), Template.choose(tokenizer, name, on_system="fold")
    assert facts_of(folding.saved_source).system == folding.facts.system == "folded"
    assert facts_of(given.saved_source) == facts_of(SHIPPED[name]) == given.facts
    tokenizer.chat_template = folding.saved_source
    again = Template.choose(tokenizer)
    assert again.facts == folding.facts
    assert rendered(folding.saved_source, SPOKEN).count(SYSTEM.strip()) == 1


def test_without_a_text_the_template_is_as_it_was() -> None:
    assert with_default_system("{{ messages }}", None) == with_default_system("{{ messages }}", "") == "{{ messages }}"
    assert without_default_system("{{ messages }}") == "{{ messages }}"


@pytest.mark.parametrize("from_file", [False, True])
def test_luthier_reads_the_template_without_it(from_file: bool, tmp_path: Any) -> None:
    tokenizer = tokenizers.chatml()
    own = Template.choose(tokenizer)
    tokenizer.chat_template = with_default_system(own.saved_source, SYSTEM)
    (tmp_path / "saved.jinja").write_text(tokenizer.chat_template, encoding="utf-8", newline="")
    found = Template.choose(tokenizer, str(tmp_path / "saved.jinja") if from_file else "auto")
    assert found.source == own.saved_source
    assert found.added_lines == -1
