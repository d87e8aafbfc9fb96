"""The laws of an encoded conversation. Each is one function: None, or what it found broken. All are checked on every
sample.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from luthier.data.chat.encoded import Encoded, Evidence
from luthier.data.chat.tools import END_OF_THOUGHT, forms, hidden_part, hidden_tool
from luthier.errors import BadRow, excerpt


@dataclass(frozen=True, slots=True)
class Broken:
    found: str
    expected: str
    fix: str = ""


class LawBroken(BadRow):
    """A row whose encoding breaks laws."""

    def __init__(self, row: str, broken: Mapping[str, Broken]) -> None:
        self.laws = tuple(broken)
        self.law, *others = self.laws
        first = broken[self.law]
        found = first.found + (f" (it breaks {' and '.join(others)} too)" if others else "")
        super().__init__(row, f"law {self.law}", found, first.expected, first.fix)
        self.encoded: Encoded | None = None
        """the row in tokens, where it could be rendered"""


Law = Callable[[Evidence], Broken | None]
KNOWN_TERMINATORS = (
    "</s>",
    "<eod>",
    "<eos>",
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<|eom_id|>",
)
"""End-of-turn tokens of many models: an answer that ends with one was rendered for another model."""
ROLE_WORD = re.compile(r"\b(?:user|assistant|system|model|tool|human|bot)\Z")
ANOTHER_TEMPLATE = "data.chat_template=FILE.jinja, or a name that `luthier template list` shows, is another template"

SHOWS_TOOLS = "data.chat_template=NAME of a template that shows tools (luthier template list), or leave these rows out"
SHOWS_THOUGHTS = "data.chat_template=NAME of a template that shows thoughts (luthier template list), or leave them out"


def served_prompt_is_trained_prefix(e: Evidence) -> Broken | None:
    """What stands before an answer in training is what is served when that answer is asked for."""
    for turn in e.turns:
        if turn.trained and (turn.prompt.own or turn.prompt.shared != turn.start):
            at = max(0, min(turn.start, turn.prompt.shared) - 10)
            return Broken(
                f"trained after …{excerpt(e.text[at : turn.start], 34)}, "
                f"served after …{excerpt(str(turn.prompt)[at:], 34)}",
                "the same text",
                ANOTHER_TEMPLATE,
            )
    return None


def stop_token_is_trained_and_stops(e: Evidence) -> Broken | None:
    """Each answer ends in a trained token that ends generation. Inner answers may lack one where the template writes none;
    the last answer may not, nor may all answers that are trained.
    """
    trained = [turn for turn in e.turns if turn.trained]
    for turn, (_, end) in zip(trained, e.spans, strict=True):
        if not turn.stop:
            if turn is not e.turns[-1] and e.inner_stop != "yes":
                continue
            return Broken(
                "no stop token stands after the answer: the model would never learn to stop",
                "the tokenizer's end token after each answer",
                "let the template write {{ eos_token }} after the answer, inside {% generation %} if it has that, or take one of "
                "those that `luthier template list` shows",
            )
        stop = e.control[turn.stop]
        if e.ids[end - 1] != stop:
            return Broken(
                f"the answer's last trained token is not its stop token {turn.stop}",
                "a trained stop token",
                ANOTHER_TEMPLATE,
            )
        if stop not in e.stop_ids:
            return Broken(
                f"{turn.stop} ends the answer, but generation stops only at the ids {sorted(e.stop_ids)}",
                f"its id {stop} among them",
                f"add {stop} to eos_token_id in the model's generation_config.json",
            )
    if trained and e.inner_stop != "target" and not any(turn.stop for turn in trained):
        return Broken(
            "only inner answers are trained, behind which the template writes no stop token",
            "at least one trained answer with a stop token behind it",
            "train the last answer too, or take a template that ends every answer",
        )
    if not e.turns and e.ids[-1] not in e.stop_ids:
        return Broken("the text does not end with the end token", "the tokenizer's end token")
    return None


def nothing_after_the_stop_token(e: Evidence) -> Broken | None:
    """Nothing is trained behind the stop token, for the model will never get to write it."""
    for turn in e.turns:
        if turn.trained and turn.after.strip():
            return Broken(
                f"{excerpt(turn.after, 40)} is marked as the assistant's behind {turn.stop}",
                "the end of the turn at the stop token",
                "let {% endgeneration %} follow the stop token at once",
            )
    return None


def answer_has_no_terminator(e: Evidence) -> Broken | None:
    """An answer does not itself end in a stop token (and perhaps a role's name), left from another rendering."""
    endings = (*e.control, *KNOWN_TERMINATORS)
    for turn in e.turns:
        if not turn.trained:
            continue
        tail = ROLE_WORD.sub("", turn.message.content[-200:].rstrip()).rstrip()
        for words in (turn.message.content.rstrip(), tail):
            if words.endswith(endings):
                ending = next(word for word in endings if words.endswith(word))
                return Broken(
                    f"the answer ends in {excerpt(turn.message.content[turn.message.content.rindex(ending) :], 40)}",
                    "the answer alone: the template adds the stop token",
                    "take it off in the data",
                )
    return None


def no_double_bos(e: Evidence) -> Broken | None:
    """BOS never stands twice in a row."""
    twice = e.bos_id is not None and e.ids.count(e.bos_id) > 1
    if twice and any(a == b == e.bos_id for a, b in zip(e.ids, e.ids[1:], strict=False)):
        return Broken(
            "the BOS token stands twice in a row",
            "one BOS: the tokenizer adds none here, so the template or the data has two",
        )
    return None


def begins_with_bos(e: Evidence) -> Broken | None:
    """A template from a file begins with BOS where the tokenizer puts it before every text."""
    if e.bos_wanted and e.ids[:1] != [e.bos_id]:
        return Broken(
            "the first token is not BOS, which this tokenizer puts before every text",
            "BOS first",
            "begin the template with {{ bos_token }}",
        )
    return None


def something_is_trained(e: Evidence) -> Broken | None:
    """At least one token has loss."""
    return None if True in e.trained else Broken("no token of it would be trained", "an answer with at least one token")


def no_smuggled_control_token(e: Evidence) -> Broken | None:
    """Control tokens come from the template alone; one typed into the data is plain text."""
    found = sum(map(e.control_ids.__contains__, e.ids))
    if found != e.control_expected:
        return Broken(
            f"{found} control tokens, of which the template wrote {e.control_expected}",
            "no control token from the data",
        )
    return None


def every_message_is_shown(e: Evidence) -> Broken | None:
    """No message is dropped or changed by the template (white space at its ends apart): a system text that is not
    rendered trains a lie.
    """
    turns, at = {turn.index: turn for turn in e.turns}, 0
    for index, message in enumerate(e.messages):
        turn = turns.get(index)
        if turn is not None and not turn.trained:
            at = turn.end  # context may be shortened by the template, as thoughts in earlier turns are
            continue
        words = message.content.strip()
        if message.role == "assistant" and turn is None:
            words = words.rpartition(END_OF_THOUGHT)[2].strip()
        if message.role == "system":
            found = -1 if e.drops_system else e.plain.find(words)
        elif turn is not None:
            found = e.plain.rfind(words, at, turn.end)
        else:
            found = max(e.plain.find(form, at) for form in (forms(words) if message.role == "tool" else {words}))
        if found < 0 or (turn is not None and found + len(words) <= turn.start):  # that was the header
            return Broken(
                f"message {index} ({message.role}) does not appear in the rendered text as it is",
                "every message, in order",
                "data.on_system=fold puts it into the first request" if message.role == "system" else ANOTHER_TEMPLATE,
            )
        at = at if message.role == "system" else found + len(words)
    return None


def every_tool_call_and_thought_is_shown(e: Evidence) -> Broken | None:
    """The tools on offer stand before the answers; a trained answer shows its calls with all arguments, and its thoughts.
    What is not shown would be asked of the model out of nothing, or not be learned.
    """
    turns = {turn.index: turn for turn in e.turns}
    if e.tools:
        first = next((turn.start for turn in e.turns if turn.trained), len(e.text))
        if hidden := hidden_tool(e.tools, e.text[:first]):
            return Broken(f"the tool {excerpt(hidden, 40)} is not shown as it is", "every tool on offer", SHOWS_TOOLS)
    for index, message in enumerate(e.messages):
        if not message.tool_calls and not message.thinking:
            continue
        turn = turns.get(index)
        text = e.text[turn.start : turn.end] if turn is not None else e.plain
        for call in message.tool_calls:
            if hidden := hidden_part(call, text):
                found = f"the call of {excerpt(call.name, 40)} in message {index} is not shown: {excerpt(hidden, 40)}"
                return Broken(found, "its name and all its arguments", SHOWS_TOOLS)
        if turn is not None and turn.trained and message.thinking.strip() not in text:
            return Broken(f"the thoughts of message {index} are not shown", "thoughts and answer", SHOWS_THOUGHTS)
    return None


MARKS_CHANGE_NOTHING = "marks_change_nothing"
"""Without our marks the template writes the same text."""
TEMPLATE_ONLY_APPENDS = "template_only_appends"
"""Without generation marks: more messages change nothing of what was written for those before them."""


LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        served_prompt_is_trained_prefix,
        stop_token_is_trained_and_stops,
        nothing_after_the_stop_token,
        answer_has_no_terminator,
        no_double_bos,
        begins_with_bos,
        something_is_trained,
        no_smuggled_control_token,
        every_message_is_shown,
        every_tool_call_and_thought_is_shown,
    )
}


NAMES = (MARKS_CHANGE_NOTHING, TEMPLATE_ONLY_APPENDS, *LAWS)
"""All laws; the first two are checked while rendering, for without them there is nothing to encode."""


def meaning(name: str) -> str:
    """What a law says, in a sentence."""
    told = {
        MARKS_CHANGE_NOTHING: "The marks that say what the assistant wrote change nothing of the text.",
        TEMPLATE_ONLY_APPENDS: "More messages change nothing of what was written for those before them.",
    }
    return told.get(name) or " ".join((LAWS[name].__doc__ or "").split()).partition(". ")[0].rstrip(".") + "."


def explained() -> dict[str, str]:
    """Of each law its name as reports print it, and what `luthier explain` says of it."""
    return {
        name.replace("_", " "): (
            f"{name.replace('_', ' ')}: a law of every row that is put into tokens\n  {meaning(name)}\n"
            "  A row that breaks it cannot be used; the message about the row says what stands there and what to write. "
            "luthier data CONFIG.yaml lists all laws and the rows that break one."
        )
        for name in NAMES
    }


def overview() -> str:
    """All laws, a line each."""
    return "\n".join(["laws of encoded rows", *(f"  {name.replace('_', ' ')}: {meaning(name)}" for name in NAMES)])


def check(evidence: Evidence, row: str) -> LawBroken | None:
    """All laws that an encoded example breaks."""
    broken = {name: found for name, law in LAWS.items() if (found := law(evidence)) is not None}
    return LawBroken(row, broken) if broken else None
