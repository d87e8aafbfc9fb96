"""Keys of a configuration that are right one by one and wrong together; and sums of objectives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from luthier import component
from luthier.component import ComponentConfig
from luthier.config.components import default_component
from luthier.config.documents import Document, to_line
from luthier.config.problems import and_more
from luthier.config.sections import WITHOUT_WARMUP, DataConfig, RunConfig
from luthier.config.translation import HELD_OUT, OF_HELD_OUT
from luthier.errors import UserError

MOST_OF_SEVERAL_LINES = 8


def terms_of(objective: ComponentConfig) -> tuple[ComponentConfig, ...]:
    """The terms of a sum of objectives; of any other, itself."""
    terms: tuple[ComponentConfig, ...] = cast("Any", objective).terms if _is_sum(objective) else (objective,)
    return terms


def _is_sum(objective: ComponentConfig) -> bool:
    return bool(component.load("objectives", objective.kind).is_sum)


def weighted_sum(objective: ComponentConfig, before: Sequence[Any] = (), after: Sequence[Any] = ()) -> str:
    """The override for a weighted sum of an objective, or of its terms, with more terms before and after them."""
    terms = [shortly(term) for term in terms_of(objective)]
    own = objective.model_dump(exclude_unset=True, exclude={"kind", "terms"}) if _is_sum(objective) else {}
    kinds = [kind for kind in component.listing("objectives") if component.load("objectives", kind).is_sum]
    return f"objective={to_line({'kind': kinds[0], 'terms': [*before, *terms, *after], **own})}"


def shortly(term: ComponentConfig) -> dict[str, Any]:
    """An objective, or the term of a sum, without what is as it is by default."""
    usual = component.load("objectives", term.kind).Config.model_fields
    return {
        key: value
        for key, value in term.model_dump(exclude_unset=True).items()
        if key == "kind" or value != (1 if key == "weight" else usual[key].default)
    }


def refuse_wrong_combinations(document: Document, config: RunConfig) -> None:
    """Raises UserError where keys are right one by one and wrong together; all such pairs at once."""
    found = sorted(_wrong_combinations(config), key=lambda one: document.order(one[0]))
    errors = [UserError(document.place(path), *words) for path, *words in found]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        shown = list(map(str, errors[:MOST_OF_SEVERAL_LINES]))
        raise UserError("", "\n".join([*shown, *and_more(len(errors) - len(shown))]))


def _wrong_combinations(config: RunConfig) -> Iterator[tuple[tuple[str | int, ...], str, str, str]]:
    """(where, what was found, what was expected, the remedy)"""
    training = config.training
    yield from _idle_weights(config.data)
    yield from _nothing_to_learn_from(config.objective)
    yield from _scores_and_words(config)
    if config.data.eval is None:
        for key in OF_HELD_OUT:
            if getattr(training, key) not in (None, False):
                yield (
                    ("training", key),
                    f"training.{key} without held-out data",
                    "data.eval",
                    f"write data.eval: {HELD_OUT}, or leave {key} out",
                )
    if config.model.quantization is not None and not component.load("tuning", config.tuning.kind).makes_adapter:
        yield (
            ("tuning",),
            f"tuning: {config.tuning.kind} of a quantized model",
            "weights that can be trained",
            "tuning=lora, or leave model.quantization out",
        )
    if training.lr_scheduler_type == WITHOUT_WARMUP and training.warmup_steps:
        yield (
            ("training", "warmup_steps"),
            f"warmup_steps: {training.warmup_steps:g} with lr_scheduler_type: {WITHOUT_WARMUP}, which has no warm-up",
            "a schedule that has one",
            "lr_scheduler_type=constant_with_warmup, or leave warmup_steps out",
        )
    if (
        isinstance(training.warmup_steps, int)
        and training.max_steps is not None
        and training.warmup_steps >= training.max_steps
    ):
        yield (
            ("training", "warmup_steps"),
            f"{training.warmup_steps} warm-up steps of {training.max_steps} steps",
            "fewer warm-up steps than steps",
            "warmup_steps=0.03",
        )


def _nothing_to_learn_from(objective: ComponentConfig) -> Iterator[tuple[tuple[str | int, ...], str, str, str]]:
    """Objectives that say nothing of the answers, with none beside them that does."""
    kinds = [term.kind for term in terms_of(objective)]
    usual = [component.load("objectives", kind).only_as_term for kind in kinds]
    if None in usual:
        return
    found = f"{' and '.join(kinds)} alone: nothing would be learned from the answers"
    beside = default_component("objective")
    if _is_sum(objective):
        fix = weighted_sum(objective, before=[{"kind": beside.kind}])
    else:
        term = objective.model_dump(exclude_unset=True) | {"weight": usual[0]}
        fix = weighted_sum(ComponentConfig(kind=beside.kind), after=[term])
    yield ("objective",), found, f"a term beside {beside.kind}", fix


def _scores_and_words(config: RunConfig) -> Iterator[tuple[tuple[str | int, ...], str, str, str]]:
    """What asks words of a model that gives scores."""
    kinds = [term.kind for term in terms_of(config.objective)]
    scoring = [kind for kind in kinds if "value" in component.load("objectives", kind).wants]
    if scoring and len(kinds) > 1:
        found = f"{scoring[0]} beside {', '.join(kind for kind in kinds if kind != scoring[0])}"
        because = "its model has a head of scores in the place of that of words"
        yield ("objective",), f"{found}: {because}", f"{scoring[0]} alone", f"objective={scoring[0]}"
    if scoring and config.training.sample_prompts:
        found = f"sample_prompts with objective {scoring[0]}, whose model gives scores and no answers"
        yield ("training", "sample_prompts"), found, "no sample prompts", "leave sample_prompts out"


def _idle_weights(data: DataConfig) -> Iterator[tuple[tuple[str | int, ...], str, str, str]]:
    """Weights that nothing would ask for. A weight of 1 says nothing, and stands in every resolved configuration."""
    held_out = data.eval if isinstance(data.eval, tuple) else ()
    for purpose, files in (("train", data.train), ("eval", held_out)):
        for index, file in enumerate(files):
            if file.weight == 1 or (purpose == "train" and data.mixing != "concatenate"):
                continue
            found = f"weight: {file.weight:g} of {file.path}, which is not mixed with other files by weights"
            expected = (
                "data.mixing: first_exhausted or all_exhausted" if purpose == "train" else "no weight in data.eval"
            )
            fix = (
                "write data.mixing: first_exhausted, or leave weight out" if purpose == "train" else "leave weight out"
            )
            yield ("data", purpose, index, "weight"), found, expected, fix
