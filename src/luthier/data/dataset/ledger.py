"""The account of all rows and tokens: what came in, what is trained, held out, cut or dropped, and why. It adds up, or
it is a bug.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from luthier.system.words import counted, noun

LONGER = "longer than the limit"
"""Why a row is dropped whose tokens are known nevertheless."""


def breaks(laws: Sequence[str]) -> str:
    """Why a row is dropped that breaks laws."""
    return f"breaks the {noun(len(laws), 'law')} {', '.join(laws)}"


@dataclass
class Ledger:
    """Rows and tokens of one data set. Tokens are known of rows that can be used, and of those that are too long."""

    rows_in: int = 0
    rows_trained: int = 0
    rows_held_out: int = 0
    rows_cut: int = 0
    """of those trained or held out: rows that lost their end to `max_length`"""
    dropped: dict[str, list[str]] = field(default_factory=dict)
    """reason -> each row, as `Row.place` calls it"""
    cut: list[str] = field(default_factory=list)
    """each row that was cut"""
    tokens_in: int = 0
    tokens_trained: int = 0
    """with loss, of the rows that are trained on"""
    tokens_context: int = 0
    """without loss, of the rows that are trained on"""
    tokens_held_out: int = 0
    tokens_cut: int = 0
    answer_tokens_cut: int = 0
    """of tokens_cut: those that would have had loss"""
    tokens_dropped: int = 0
    """of rows dropped for their length"""
    rows_other_ids_if_encoded_whole: int = 0
    """rows for which one encoding of the whole text gives other ids than its parts (within a few characters of the
    answers' edges)
    """
    rows_with_control_text: int = 0
    """rows in which the data spell out a control token, which was encoded as plain text"""
    rows_split: int = 0
    """rows that gave a sample for each answer, because the template writes an answer otherwise once it is history"""
    held_out_prompts_also_trained: int = 0
    """held-out rows (from files of their own) whose prompt stands in the training data as well"""
    laws: dict[str, int] = field(default_factory=dict)
    """law -> rows that broke it, perhaps beside others; each of them is in `dropped`"""
    sources: list[dict[str, Any]] = field(default_factory=list)
    """name, format, whether it was recognised, rows, purpose"""

    def drop(self, reason: str, row: str) -> None:
        self.dropped.setdefault(reason, []).append(row)

    @property
    def rows_dropped(self) -> int:
        return sum(map(len, self.dropped.values()))

    def breaking(self, law: str) -> list[str]:
        """Each row that was dropped because it breaks a law."""
        return [row for reason, rows in self.dropped.items() if law in reason.replace(",", "").split() for row in rows]

    @property
    def rows_without_tokens(self) -> int:
        """Dropped rows that could not be read or break a law: they are in `rows_in`, and no tokens of them in `tokens_in`."""
        return self.rows_dropped - len(self.dropped.get(LONGER, []))

    def add(self, other: Ledger) -> None:
        """Adds the account of the rows that follow."""
        for name in (item.name for item in fields(self)):
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, dict):
                for reason, value in theirs.items():
                    mine[reason] = mine[reason] + value if reason in mine else value
            else:
                setattr(self, name, mine + theirs)

    def trains(self, tokens: int) -> None:
        """Of the tokens that are read to learn, so many have loss: texts are cut after they were counted."""
        self.tokens_context += self.tokens_trained - tokens
        self.tokens_trained = tokens
        self.check()

    def check(self) -> None:
        """Raises RuntimeError (a bug) where a row or token is missing from the account."""
        parts = self.tokens_trained + self.tokens_context + self.tokens_held_out + self.tokens_cut + self.tokens_dropped
        adds_up = (
            self.rows_in == self.rows_trained + self.rows_held_out + self.rows_dropped
            and self.tokens_in == parts
            and self.answer_tokens_cut <= self.tokens_cut
            and self.rows_cut == len(self.cut) <= self.rows_trained + self.rows_held_out
            and max(self.laws.values(), default=0) <= self.rows_dropped
            and self.rows_in == sum(source["rows"] for source in self.sources)
        )
        if not adds_up:
            raise RuntimeError(f"the ledger does not add up: {self.as_text()}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `ledger.json` has them."""
        return {**asdict(self), **{name: getattr(self, name) for name in DERIVED}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Ledger:
        return cls(**{key: value for key, value in values.items() if key not in DERIVED})

    def lines(self) -> list[str]:
        """The account as lines of text."""
        out = []
        for source in self.sources:
            how = " (recognised)" if source["recognised"] else ""
            rows_of_it = counted(source["rows"], "row")
            out.append(f"{source['name']}: {rows_of_it}, format {source['format']}{how}, {source['purpose']}")
        rows = [(self.rows_trained, "trained"), (self.rows_held_out, "held out"), (self.rows_dropped, "dropped")]
        tokens = [
            (self.tokens_trained, "trained"),
            (self.tokens_context, "context"),
            (self.tokens_held_out, "held out"),
        ]
        tokens += [(self.tokens_cut, "cut"), (self.tokens_dropped, "dropped")]
        for name, total, parts in (("rows", self.rows_in, rows), ("tokens", self.tokens_in, tokens)):
            out.append(f"{name:<7} {total:>12,} in = " + " + ".join(f"{count:,} {word}" for count, word in parts))
        if unknown := self.rows_without_tokens:
            words = noun(unknown, "row could not be used: its tokens", "rows could not be used: their tokens")
            out.append(f"note    {unknown:>12,} {words} are not known, and not in this sum")
        out += [f"dropped {len(names):>12,} {reason} ({_some(names)})" for reason, names in self.dropped.items()]
        if self.rows_cut:
            out.append(
                f"cut     {self.rows_cut:>12,} {noun(self.rows_cut, 'row lost its end', 'rows lost their ends')} with "
                f"{counted(self.answer_tokens_cut, 'token')} of answers ({_some(self.cut)})"
            )
        for count, one, many, words in (
            (
                self.rows_with_control_text,
                "row spells out",
                "rows spell out",
                "a control token; it is plain text to the model",
            ),
            (self.rows_other_ids_if_encoded_whole, "row", "rows", "would have other ids if encoded in one piece"),
            (self.rows_split, "row", "rows", "gave a sample for each answer: the template writes history otherwise"),
            (
                self.held_out_prompts_also_trained,
                "held-out row has",
                "held-out rows have",
                "a prompt that is also trained, letter for letter: the loss there is no fair measure",
            ),
        ):
            if count:
                out.append(f"note    {count:>12,} {noun(count, one, many)} {words}")
        return out

    def as_text(self) -> str:
        """The account for a terminal."""
        return "\n".join(self.lines())


DERIVED = ("rows_dropped", "rows_without_tokens")
"""What `ledger.json` has beside the fields."""


def _some(rows: list[str], most: int = 3) -> str:
    return ", ".join(rows[:most]) + (f" and {len(rows) - most:,} more" if len(rows) > most else "")
