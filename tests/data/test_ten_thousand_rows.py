"""Ten thousand generated rows, good and broken, through the whole way from file to samples: nothing but our own errors
is raised, the ledger adds up, and what is trained is what the assistants say and the tokens at which they stop.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from luthier import component, config
from luthier.data.chat.check import TOOLS, made_tokenizer, tokens_of
from luthier.data.chat.library import Facts, library
from luthier.data.dataset.prepare import Prepared, prepare
from luthier.errors import BadRow, UserError
from luthier.types import Row
from tests.data.chat.test_masks import WORDS, trained_texts
from tests.helpers import tokenizers

FILES, ROWS = 200, 50
KINDS: dict[str, tuple[Callable[[], Any], str, tuple[str, ...]]] = {
    "prefix renders": (tokenizers.chatml, "<|im_end|>", ()),
    "generation marks": (tokenizers.marked, "<|im_end|>", ()),
    "metaspace": (tokenizers.llama_like, "</s>", ()),
    "metaspace before every part": (lambda: tokenizers.llama_like(legacy=True), "</s>", ()),
    "trimming": (tokenizers.gemma_like, "<end_of_turn>", ("refuses a system text",)),
}
FORMATS = ("alpaca", "sharegpt", "messages", "messages", "prompt_completion", "text")
JUDGED = ("preference", "feedback", "prompts")
"""Formats whose rows no objective of today learns from: they are parsed."""
TOOL = "get_weather"
BROKEN_LINES = (
    '{"broken',
    "[]",
    "3",
    "null",
    '""',
    "{}",
    '{"instruction": NaN, "output": "a."}',
    '{"text": "twice", "text": "twice"}',
    "\x00",
    "\ufeff{}",
    "[" * 300,
)
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["\ud800", "a\0b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@dataclass(frozen=True)
class Line:
    """A line of a file; `answers` is what it has to train, None where nobody knows what it is."""

    text: str
    answers: tuple[str, ...] | None


class Maker:
    """Makes rows of one format from generated texts and junk."""

    def __init__(self, kind: str, seed: int, texts: Sequence[str], junk: Sequence[Any], facts: Facts) -> None:
        self.kind, self.texts, self.junk, self.facts = kind, texts, junk, facts
        self.with_system = facts.system != "refused"
        self.draw = random.Random(seed)

    def line(self) -> Line:
        """Two of three are good."""
        if self.draw.random() < 0.05:
            return Line(self.draw.choice(BROKEN_LINES), None)
        row, answers = self.row()
        if self.draw.random() < 0.7:
            return Line(json.dumps(row, ensure_ascii=self.draw.random() < 0.5), answers)
        return Line(json.dumps(self.damaged(row)), None)

    def row(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        if self.kind == "text":
            text = self.text()
            return {"text": text}, (text,)
        if self.kind in JUDGED:
            request, good, bad = self.text(), self.text(), self.text() + "!"
            rest = {"preference": {"chosen": good, "rejected": bad}, "feedback": {"completion": good, "label": True}}
            return {"prompt": request, **rest.get(self.kind, {})}, (good,)
        turns = [(self.text(), self.text()) for _ in range(self.draw.randint(1, 3))]
        system = self.text() if self.with_system and self.draw.random() < 0.3 else None
        answers = tuple(answer for _, answer in turns)
        if self.kind == "alpaca":
            row = {"instruction": turns[-1][0], "input": "", "output": turns[-1][1], "history": turns[:-1]}
            return row | ({"system": system} if system else {}), answers
        if self.kind == "prompt_completion":
            return {"prompt": turns[0][0], "completion": turns[0][1]}, answers[:1]
        names = ("role", "content") if self.kind == "messages" else ("from", "value")
        roles = ("user", "assistant") if self.kind == "messages" else ("human", "gpt")
        said = [(role, text) for turn in turns for role, text in zip(roles, turn, strict=True)]
        said = [("system", system), *said] if system else said
        column = "messages" if self.kind == "messages" else "conversations"
        row: dict[str, Any] = {column: [dict(zip(names, pair, strict=True)) for pair in said]}
        if self.kind == "messages" and self.facts.thinking in ("kept", "stripped") and self.draw.random() < 0.4:
            thought = self.text().strip()
            row[column][-1]["reasoning_content"] = thought
            answers = (*answers[:-1], thought, answers[-1])
        if self.kind == "messages" and self.facts.tools and self.draw.random() < 0.4:
            row, answers = self.with_call(row, answers)
        return row, answers

    def with_call(self, row: dict[str, Any], answers: tuple[str, ...]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The conversation goes on with a call, its result and an answer."""
        place, result, answer = self.text(), self.text(), self.text()
        called = {"name": TOOL, "arguments": json.dumps({"place": place, "days": self.draw.randint(1, 9)})}
        more = [
            {"role": "user", "content": self.text()},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "a1b2c3d4e", "function": called}]},
            {"role": "tool", "content": result, "name": TOOL, "tool_call_id": "a1b2c3d4e"},
            {"role": "assistant", "content": answer},
        ]
        return {"messages": [*row["messages"], *more], "tools": TOOLS}, (*answers, TOOL, answer)

    def text(self) -> str:
        """Ends in a full stop, so that it never ends in the name of a control token."""
        parts = [self.draw.choice((*self.texts, *WORDS)) for _ in range(self.draw.randint(1, 4))]
        return "".join(parts) + "."

    def damaged(self, value: Any) -> Any:
        """The value with something in it replaced by junk, taken out, or added."""
        if isinstance(value, dict) and value and self.draw.random() < 0.8:
            key = self.draw.choice(list(value))
            if self.draw.random() < 0.2:
                return {name: kept for name, kept in value.items() if name != key}
            if self.draw.random() < 0.1:
                return value | {
                    self.draw.choice(("tools", "system", "chosen", "weight", "")): self.draw.choice(self.junk)
                }
            return value | {key: self.damaged(value[key])}
        if isinstance(value, list) and value and self.draw.random() < 0.7:
            at = self.draw.randrange(len(value))
            return [*value[:at], self.damaged(value[at]), *value[at + 1 + (self.draw.random() < 0.3) :]]
        return self.draw.choice(self.junk)


def run(folder: Path, lines: Sequence[Line], tokenizer: Any, overrides: Sequence[str]) -> Prepared:
    file = folder / "train.jsonl"
    file.write_text("".join(line.text + "\n" for line in lines), encoding="utf-8")
    wanted = config.load(None, ["model=m", f"output_dir={folder}/run", *overrides])
    objective = component.load("objectives", "sft")(wanted.objective)
    return prepare(wanted, tokenizer, context_length=None, objective=objective)


def account_is_right(prepared: Prepared, lines: Sequence[Line]) -> None:
    ledger = prepared.ledger
    ledger.check()
    sets = [samples for samples in (prepared.train, prepared.eval) if samples is not None]
    kept = [sample for samples in sets for sample in samples]
    assert ledger.rows_in == len(lines)
    assert ledger.rows_trained + ledger.rows_held_out == len({sample.row for sample in kept})
    assert (len(kept) > ledger.rows_in - ledger.rows_dropped) == (ledger.rows_split > 0)
    assert ledger.rows_dropped == len(prepared.rejected)
    assert sum(map(len, kept)) == ledger.tokens_trained + ledger.tokens_context + ledger.tokens_held_out
    assert sum(sample.trained_tokens for sample in prepared.train) == ledger.tokens_trained


def trained_is_what_was_said(
    prepared: Prepared, lines: Sequence[Line], kind: str, limit: int | None, counts: Counter[str]
) -> None:
    """Of every good row that was not cut."""
    stop, is_metaspace, is_bytes = KINDS[kind][1], kind.startswith("metaspace"), not KINDS[kind][0]().bos_token
    tokenizer, cut = prepared.renderer.tokenizer, set(prepared.ledger.cut)
    found = {sample.row: sample for samples in (prepared.train, prepared.eval) if samples for sample in samples}
    for number, line in enumerate(lines, start=1):
        sample = next((found[row] for row in found if row.endswith(f":{number}")), None)
        if sample is None:
            assert line.answers is None or limit is not None, prepared.rejected
            continue
        assert limit is None or len(sample) <= limit
        if sample.row in cut or line.answers is None:
            continue
        counts["rows compared"] += 1
        if "text" in json.loads(line.text):
            ids = list(sample.input_ids)
            ids = ids[1:] if prepared.renderer.encoder.adds_bos else ids
            assert ids[-1] == tokenizer.eos_token_id
            text = tokenizer.decode(ids[:-1])
            wanted_text = line.answers[0]
            if not is_bytes:  # a space is put before a text that begins with none
                text, wanted_text = text.removeprefix(" "), wanted_text.removeprefix(" ")
            assert same(text, wanted_text)
            assert sample.trained_tokens == len(sample) - 1
            continue
        wanted = [{"trimming": answer.strip()}.get(kind, answer) + stop for answer in line.answers]
        wanted = [f" {answer}" for answer in wanted] if is_metaspace else wanted
        for ours, theirs in zip(trained_texts(tokenizer, sample), wanted, strict=True):
            assert same(ours, theirs)


def trained_has_what_was_said(prepared: Prepared, lines: Sequence[Line], counts: Counter[str]) -> None:
    """Of every good row that was not cut, under a template that comes with luthier: the trained texts of all its samples
    have the answers, thoughts and calls in their order.
    """
    sets = [samples for samples in (prepared.train, prepared.eval) if samples is not None]
    found: dict[str, list[str]] = {}
    for sample in (sample for samples in sets for sample in samples):
        found.setdefault(sample.row, []).extend(trained_texts(prepared.renderer.tokenizer, sample))
    for row, texts in found.items():
        line = lines[int(row.rpartition(":")[2]) - 1]
        if line.answers is None or row in prepared.ledger.cut or "text" in json.loads(line.text):
            continue
        whole, at = "".join(texts), 0
        for answer in line.answers:
            at = whole.index(answer.strip(), at) + len(answer.strip())
        counts["rows of our templates compared"] += 1
        counts["calls"] += TOOL in line.answers
        counts["thoughts"] += "reasoning_content" in line.text


def parsed_is_what_was_said(kind: str, lines: Sequence[Line], counts: Counter[str]) -> None:
    """Of every good row; the others are refused as rows that cannot be used, or read."""
    read = component.load("formats", kind)
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line.text)
            found = read(read.Config()).parse(Row(values if isinstance(values, dict) else {}, "a", number))
        except (BadRow, ValueError):
            assert line.answers is None
            continue
        if line.answers is not None:
            answers = found.answers[0] if kind == "preference" else found.messages
            wanted = json.loads(line.text)["prompt"] if kind == "prompts" else line.answers[0]
            assert answers[-1].content == wanted
            counts["rows parsed"] += 1


@cache
def tokenizer_of(name: str) -> Any:
    return made_tokenizer(tokens_of(name))


def same(found: str, wanted: str) -> bool:
    """Pieces write a space as this character, and cannot tell the two apart."""
    return found.replace("\u2581", " ") == wanted.replace("\u2581", " ")


@pytest.mark.prove
def test_ten_thousand_rows() -> None:
    counts: Counter[str] = Counter()
    refused: list[UserError] = []

    @settings(max_examples=FILES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        seed=st.integers(0, 2**32),
        kind=st.sampled_from([*sorted(KINDS) * 6, *library()]),
        data=st.sampled_from([*FORMATS * 3, *JUDGED]),
        named=st.booleans(),
        texts=st.lists(TEXTS, min_size=3, max_size=6),
        junk=st.lists(JUNK, min_size=3, max_size=6),
        limit=st.sampled_from([None, None, 40, 200]),
        on_bad_row=st.sampled_from(["drop", "drop", "drop", "error"]),
        on_long_row=st.sampled_from(["drop", "truncate", "truncate", "error"]),
        share=st.sampled_from([None, 0.3]),
    )
    def one_file(
        seed: int,
        kind: str,
        data: str,
        named: bool,
        texts: list[str],
        junk: list[Any],
        limit: int | None,
        on_bad_row: str,
        on_long_row: str,
        share: float | None,
    ) -> None:
        refuses = Facts(system="refused" if kind in KINDS and KINDS[kind][2] else "own")
        maker = Maker(data, seed, texts, junk, library()[kind].facts if kind in library() else refuses)
        lines = [maker.line() for _ in range(ROWS)]
        counts["files"] += 1
        counts["rows"] += len(lines)
        if data in JUDGED:
            parsed_is_what_was_said(data, lines, counts)
            return
        with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
            patch.setenv("LUTHIER_CACHE", f"{name}/cache")
            file = f"{{path: {name}/train.jsonl, format: {data if named else 'auto'}}}"
            overrides = [f"data.train=[{file}]", f"on_bad_row={on_bad_row}", f"on_long_row={on_long_row}"]
            overrides += [f"max_length={limit}"] if limit else []
            overrides += [f"data.eval={share}"] if share else []
            overrides += [f"chat_template={kind}"] if kind in library() else []
            try:
                prepared = run(Path(name), lines, KINDS[kind][0]() if kind in KINDS else tokenizer_of(kind), overrides)
            except UserError as error:
                refused.append(error)
                return
            account_is_right(prepared, lines)
            if kind in library():
                trained_has_what_was_said(prepared, lines, counts)
            else:
                trained_is_what_was_said(prepared, lines, kind, limit, counts)
            if prepared.template is not None:
                prepared.template.close()

    usual = {"data": "messages", "named": True, "texts": ["a b", "ü", "{x}"], "junk": [None, 1, "x"], "share": None}
    usual |= {"limit": None, "on_bad_row": "drop", "on_long_row": "drop"}
    for seed, (name, one) in enumerate(library().items()):
        if one.facts.tools or one.facts.thinking in ("kept", "stripped"):
            one_file = example(seed=seed, kind=name, **usual)(one_file)
    one_file()
    assert counts["rows"] >= 10_000
    assert counts["rows compared"] >= 400
    assert counts["rows of our templates compared"] >= 400
    assert counts["rows parsed"] >= 200
    assert min(counts["calls"], counts["thoughts"]) >= 20
    assert len(refused) < 0.6 * counts["files"]
    assert all(error.found and error.exit_code == 2 for error in refused)
