"""Makes plain requests and the YAML that they ask for.

A row is a function of (seed, set, number): the same rows on every machine. The YAML is written in one short canonical style.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from luthier.demo import phrases, values
from luthier.demo.phrases import Phrasing
from luthier.demo.values import Values

TRAINING_ROWS = 430
TEST_ROWS = 50

PERIODS = ".?!:"
OPTIONAL = {"epochs": 1, "learning_rate": 1}
"""How often a wish is uttered, against the others; in the order of the YAML."""
WISHES = {1: 6, 2: 6, 3: 2}
"""How many wishes a request has, at most."""


@dataclass(frozen=True, slots=True)
class Mix:
    """How often a method is named, and which."""

    named: float
    methods: Mapping[str, int]


TESTED = Mix(0.6, {"lora": 3, "qlora": 4, "full": 2})
TRAINED = Mix(0.85, {"lora": 1, "qlora": 3, "full": 3})
"""What is rarer in requests, and a choice instead of a value to copy, is learned from more rows."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A request and the YAML that answers it, with what they were made of (for the tests and for a look)."""

    request: str
    yaml: str
    said: Mapping[str, str]
    """field: value, in the spelling of the YAML"""
    templates: tuple[str, ...]
    """the phrasings used, before values were filled in"""


def make(count: int, seed: int, phrasing: Phrasing, pools: Values, name: str, mix: Mix = TESTED) -> list[Pair]:
    """`count` pairs without a repeated request."""
    pairs: dict[str, Pair] = {}
    number = 0
    while len(pairs) < count:
        pair = _pair(random.Random(f"{seed}/{name}/{number}"), phrasing, pools, mix)
        pairs.setdefault(pair.request, pair)
        number += 1
    return list(pairs.values())


def training_set(rows: int = TRAINING_ROWS, seed: int = 0) -> list[Pair]:
    return make(rows, seed, phrases.SEEN, values.SEEN, "train", TRAINED)


def held_out_sets(rows: int = TEST_ROWS, seed: int = 0) -> dict[str, list[Pair]]:
    """The two questions: new values in known phrasings, and known values in new phrasings."""
    return {
        "unseen values": make(rows, seed, phrases.SEEN, values.UNSEEN, "values"),
        "unseen phrasings": make(rows, seed, phrases.UNSEEN, values.SEEN, "phrasings"),
    }


def _pair(rng: random.Random, phrasing: Phrasing, pools: Values, mix: Mix) -> Pair:
    said = {"model": _model(rng, pools), "data": _file(rng, pools)}
    wishes = _wishes(rng, mix.named)
    pools_of = {"epochs": pools.epochs, "learning_rate": pools.learning_rate}
    for wish in wishes:
        said[wish] = str(_pick(rng, mix.methods)) if wish == "method" else rng.choice(pools_of[wish])
    request, templates = _say(rng, phrasing, wishes, said)
    written = {wish: _as_number(value) for wish, value in said.items()}
    return Pair(request, write_yaml(written), written, templates)


def _pick(rng: random.Random, weights: Mapping[int, int] | Mapping[str, int]) -> object:
    return rng.choices(list(weights), list(weights.values()))[0]


def _wishes(rng: random.Random, method_named: float) -> list[str]:
    """Which fields are asked for beside model and data, in the order of the request."""
    count = int(str(_pick(rng, WISHES)))
    wishes = ["method"] if rng.random() < method_named else []
    weights = dict(OPTIONAL)
    while len(wishes) < count and weights:
        wishes.append(str(_pick(rng, weights)))
        del weights[wishes[-1]]
    wishes.sort(key=["method", *OPTIONAL].index)
    if rng.random() < 0.5:
        rng.shuffle(wishes)
    return wishes


def _as_number(value: str) -> str:
    """A spelling of the request in the spelling of the YAML: `two` is 2; all else stays as it was written."""
    return str(values.NUMBER_WORDS.get(value, value))


def _model(rng: random.Random, pools: Values) -> str:
    if rng.random() < 0.15:
        return rng.choice(pools.models)
    name = f"{rng.choice(pools.families)}-{rng.choice(pools.sizes)}"
    if rng.random() < 0.1:
        name += f"-{rng.choice(pools.endings)}"
    return f"{rng.choice(pools.orgs)}/{name}" if rng.random() < 0.05 else name


def _file(rng: random.Random, pools: Values) -> str:
    stem = rng.choice(pools.words)
    if rng.random() < 0.1:
        stem += rng.choice("_-") + rng.choice(pools.tags)
    name = f"{stem}.{rng.choice(values.ENDINGS_OF_FILES)}"
    return f"{rng.choice(pools.folders)}/{name}" if rng.random() < 0.05 else name


def _say(
    rng: random.Random, phrasing: Phrasing, wishes: list[str], said: Mapping[str, str]
) -> tuple[str, tuple[str, ...]]:
    """The request in words, and the templates that it was made of."""
    manner = rng.choices(("prose", "steps", "notes"), (5, 4, 3))[0]
    frame = rng.choice(getattr(phrasing, manner))
    clauses = []
    for wish in wishes:
        known = phrasing.clauses.get(wish) or phrasing.clauses[f"{wish}={said[wish]}"]
        clauses.append(rng.choice(known[manner]))
    used = [frame, *clauses]
    texts = [_singular(clause.format(v=said[wish])) for clause, wish in zip(clauses, wishes, strict=True)]
    if manner == "steps":
        text = frame + "".join(f" {sentence}." for sentence in texts)
    elif manner == "prose":
        text = frame.replace("{list}", _enumerate(rng, texts))
    else:
        text = frame.replace("{list}", rng.choice((", ", ", ", " ", "; ")).join(texts))
    if manner != "notes":
        text = _wrap(rng, phrasing, text, used)
    text = _slip(rng, text)
    return text.replace("{model}", said["model"]).replace("{data}", said["data"]), tuple(used)


def _singular(text: str) -> str:
    """`one epochs` is one epoch."""
    return re.sub(r"\b(1|one) (epoch|time|pass|round)(?:e?s)\b", r"\1 \2", text)


def _enumerate(rng: random.Random, texts: list[str]) -> str:
    if len(texts) == 1 or rng.random() < 0.2:
        return ", ".join(texts)
    return ", ".join(texts[:-1]) + " and " + texts[-1]


def _wrap(rng: random.Random, phrasing: Phrasing, text: str, used: list[str]) -> str:
    """Greeting, thanks, and how carefully it is typed."""
    if rng.random() < 0.06:
        used.append(rng.choice(phrasing.before))
        text = f"{used[-1]} {text}"
    if rng.random() < 0.08:
        used.append(rng.choice(phrasing.after))
        text = f"{text} {used[-1]}"
    if rng.random() < 0.15 and not text.startswith("{"):
        text = text[0].lower() + text[1:]
    return text[:-1] if rng.random() < 0.2 and text[-1] in PERIODS else text


def _slip(rng: random.Random, text: str) -> str:
    """In a few requests, one word with a slip of the hand. Values of clauses are never among these words."""
    if rng.random() < 0.06:
        for right, wrong in rng.sample(phrases.TYPOS, len(phrases.TYPOS)):
            if right in text:
                return text.replace(right, wrong, 1)
    return text


def write_yaml(said: Mapping[str, str]) -> str:
    """The canonical answer: every slot in a fixed order; `null`, luthier's own default, where nothing was said.

    A slot that is always there is a question that the model answers where it stands; one that may be absent is a question
    that it must have answered before.
    """
    method = said.get("method", "lora")
    model = {"path": said["model"], "quantization": "nf4" if method == "qlora" else "null"}
    training = {
        "num_train_epochs": said.get("epochs", "null"),
        "learning_rate": said.get("learning_rate", "null"),
    }
    return "\n".join(
        [
            _section("model", model),
            f"data: {said['data']}",
            f"tuning: {'full' if method == 'full' else 'lora'}",
            _section("training", training),
        ]
    )


def _section(name: str, keys: Mapping[str, str]) -> str:
    return f"{name}: {{{', '.join(f'{key}: {value}' for key, value in keys.items())}}}"
